package dataplane

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
)

// reservation is an address that ReserveIP gave out, which no link holds.
type reservation struct {
	Owner   string     `json:"owner"`
	Service string     `json:"service,omitempty"`
	Addr    netip.Addr `json:"addr"`
}

func (r reservation) recordName() string { return r.Addr.String() }

// holder is who holds the address. No sandbox's ID has a colon.
func (r reservation) holder() string { return "reserved:" + r.Owner + " " + r.Service }

// reservations are those of ReserveIP. Its methods are serialized by mu.
type reservations struct {
	store records[reservation]

	mu  sync.Mutex
	all []reservation
}

func newReservations(stateDir string) *reservations {
	return &reservations{store: records[reservation]{filepath.Join(stateDir, reservationsDir)}}
}

// ReserveIP sets an address aside for somebody who attaches it himself: of a
// dedicated service's blocks, else of the node's first slice. The same owner
// gets the same again; without an owner every call gives another. It stays,
// over restarts, until ReleaseIP.
//
// Errors: ErrNotReady, ipam.ErrExhausted.
func (d *Dataplane) ReserveIP(ctx context.Context, service, owner string) (netip.Addr, error) {
	parts := d.current()
	if parts == nil {
		return netip.Addr{}, fmt.Errorf("reserve address: %s: %w", d.whyWaiting(), ErrNotReady)
	}
	r := parts.reservations
	r.mu.Lock()
	defer r.mu.Unlock()
	owner = cmp.Or(owner, rand.Text())
	for _, known := range r.all {
		if known.Owner == owner && known.Service == service {
			return known.Addr, nil
		}
	}
	made := reservation{Owner: owner, Service: service}
	var err error
	if made.Addr, err = pick(parts.addresses.pools[0], made.holder(), parts.services.blocks(service)); err != nil {
		return netip.Addr{}, fmt.Errorf("reserve address: %w", err)
	}
	if err := errors.Join(ctx.Err(), r.store.put(made)); err != nil {
		parts.addresses.release(made.holder())
		return netip.Addr{}, fmt.Errorf("reserve address %s: %w", made.Addr, err)
	}
	r.all = append(r.all, made)
	return made.Addr, nil
}

// ReleaseIP gives a reserved address back. One that is not reserved is none to
// give back. With an owner it must be his.
//
// Errors: ErrNotReady, ErrConflict for an address of somebody else.
func (d *Dataplane) ReleaseIP(ctx context.Context, addr netip.Addr, owner string) error {
	parts := d.current()
	if parts == nil {
		return fmt.Errorf("release address %s: %s: %w", addr, d.whyWaiting(), ErrNotReady)
	}
	r := parts.reservations
	r.mu.Lock()
	defer r.mu.Unlock()
	at := slices.IndexFunc(r.all, func(one reservation) bool { return one.Addr == addr })
	if at < 0 {
		if slices.ContainsFunc(parts.attacher.List(), func(a attach.Attachment) bool { return slices.Contains(a.Addrs, addr) }) {
			return fmt.Errorf("release address %s: a sandbox has it, until it is detached: %w", addr, ErrConflict)
		}
		return nil
	}
	known := r.all[at]
	if owner != "" && owner != known.Owner {
		return fmt.Errorf("release address %s: it is reserved for %s: %w", addr, shorten(known.Owner), ErrConflict)
	}
	if err := errors.Join(ctx.Err(), r.store.remove(known.recordName())); err != nil {
		return fmt.Errorf("release address %s: %w", addr, err)
	}
	r.all = slices.Delete(r.all, at, at+1)
	parts.addresses.release(known.holder())
	return nil
}

// dropService forgets what is reserved in the blocks of a service that ends.
func (r *reservations) dropService(addresses *addresses, service string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	r.all = slices.DeleteFunc(r.all, func(one reservation) bool {
		if one.Service != service {
			return false
		}
		err := r.store.remove(one.recordName())
		if err == nil {
			addresses.release(one.holder())
		}
		errs = append(errs, err)
		return err == nil
	})
	return errors.Join(errs...)
}

// adopt takes back what an earlier run reserved.
func (r *reservations) adopt(addresses *addresses, blocksOf func(string) []netip.Prefix) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	all, err := r.store.load()
	errs := []error{err}
	for _, one := range all {
		err := addresses.adopt(one.holder(), []netip.Addr{one.Addr}, blocksOf(one.Service))
		if errors.Is(err, ipam.ErrOutside) {
			err = errors.Join(err, r.store.remove(one.recordName())) // the node has other slices now
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r.all = append(r.all, one)
	}
	return errors.Join(errs...)
}
