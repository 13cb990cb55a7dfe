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
	"strconv"
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
func (r reservation) holder() string { return "reserved:" + strconv.Quote(r.Owner) + " " + r.Service }

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
	made := reservation{Owner: cmp.Or(owner, rand.Text()), Service: service}
	err := d.withService(ctx, service, func(parts *parts) error {
		reserve := func(blocks []netip.Prefix) (err error) {
			made.Addr, err = parts.reservations.reserve(parts.addresses, made, blocks)
			return err
		}
		if s := parts.services.get(service); s != nil {
			return d.fromBlocks(ctx, parts, s, reserve)
		}
		return reserve(nil)
	})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("reserve address: %w", err)
	}
	return made.Addr, nil
}

// reserve keeps an address for the owner of made, or finds the one he has.
func (r *reservations) reserve(addresses *addresses, made reservation, blocks []netip.Prefix) (netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, known := range r.all {
		if known.Owner == made.Owner && known.Service == made.Service {
			return known.Addr, nil
		}
	}
	var err error
	if made.Addr, err = pick(addresses.pools[0], made.holder(), blocks); err != nil {
		return netip.Addr{}, err
	}
	if err := r.store.put(made); err != nil {
		addresses.release(made.holder())
		return netip.Addr{}, err
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
func (r *reservations) dropService(addresses *addresses, blocks []netip.Prefix) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	r.all = slices.DeleteFunc(r.all, func(one reservation) bool {
		if !within(blocks, one.Addr) {
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

// within tells whether addr is in one of the blocks.
func within(blocks []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(blocks, func(block netip.Prefix) bool { return block.Contains(addr) })
}

// adopt takes back what an earlier run reserved. What was reserved before its
// service became a dedicated one is in none of the blocks.
func (r *reservations) adopt(addresses *addresses, blocksOf func(string) []netip.Prefix) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	all, err := r.store.load()
	errs := []error{err}
	for _, one := range all {
		blocks := blocksOf(one.Service)
		if !within(blocks, one.Addr) {
			blocks = nil
		}
		err := addresses.adopt(one.holder(), []netip.Addr{one.Addr}, blocks)
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
