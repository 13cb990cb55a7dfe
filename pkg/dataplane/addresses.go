package dataplane

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
)

// addresses are the node's pools, one for each of its slices. An owner holds
// one address of every pool or none: a sandbox never gets half of dual stack.
// Safe for concurrent use as far as different owners go.
type addresses struct {
	pools []*ipam.Pool
}

// newAddresses makes the pools and keeps each slice's node address out of them.
func newAddresses(slices []netip.Prefix) (*addresses, error) {
	a := &addresses{}
	for _, slice := range slices {
		pool, err := ipam.NewPool(slice, nodeAddress(slice))
		if err != nil {
			return nil, fmt.Errorf("make address pool of slice %s: %w", slice, err)
		}
		a.pools = append(a.pools, pool)
	}
	return a, nil
}

// nodeAddress is the node's own overlay address in a slice: its first host.
func nodeAddress(slice netip.Prefix) netip.Addr { return slice.Masked().Addr().Next() }

// allocate gives owner an address of every pool: the requested one where there
// is one. The same owner gets the same addresses again. Nothing is held after
// an error that was not held before.
func (a *addresses) allocate(owner string, requested []netip.Addr) (_ []netip.Addr, undo func(), err error) {
	taken := map[*ipam.Pool]netip.Addr{}
	giveBack := func() {
		for pool, addr := range taken {
			pool.Release(addr, owner)
		}
	}
	defer func() {
		if err != nil {
			giveBack()
		}
	}()
	wanted, err := a.match(requested)
	if err != nil {
		return nil, nil, err
	}
	var addrs []netip.Addr
	for _, pool := range a.pools {
		held, before := pool.Held(owner)
		addr, want := wanted[pool]
		switch {
		case before && want && addr != held:
			return nil, nil, fmt.Errorf("sandbox holds %s already, cannot give it %s: %w", held, addr, ipam.ErrTaken)
		case before:
			addr = held
		case want:
			err = pool.Claim(addr, owner)
		default:
			addr, err = pool.Allocate(owner)
		}
		if err != nil {
			return nil, nil, err
		}
		if !before {
			taken[pool] = addr
		}
		addrs = append(addrs, addr)
	}
	return addrs, giveBack, nil
}

// match finds the pool of each requested address.
func (a *addresses) match(requested []netip.Addr) (map[*ipam.Pool]netip.Addr, error) {
	wanted := map[*ipam.Pool]netip.Addr{}
	for _, addr := range requested {
		pool := a.poolOf(addr)
		if pool == nil {
			return nil, fmt.Errorf("requested address %s: %w", addr, ipam.ErrOutside)
		}
		if other, twice := wanted[pool]; twice && other != addr {
			return nil, fmt.Errorf("requested addresses %s and %s are of one slice, %s: a sandbox gets one: %w", other, addr, pool.Stats().Prefix, ErrInvalid)
		}
		wanted[pool] = addr
	}
	return wanted, nil
}

func (a *addresses) poolOf(addr netip.Addr) *ipam.Pool {
	for _, pool := range a.pools {
		if pool.Stats().Prefix.Contains(addr) {
			return pool
		}
	}
	return nil
}

// adopt claims the addresses that an attachment has in the kernel. Addresses
// outside the slices (the node had others before) are reported and left alone:
// no pool can hand them out.
func (a *addresses) adopt(owner string, addrs []netip.Addr) error {
	var errs []error
	for _, addr := range addrs {
		pool := a.poolOf(addr)
		if pool == nil {
			errs = append(errs, fmt.Errorf("adopt address %s of %s: %w", addr, owner, ipam.ErrOutside))
			continue
		}
		if err := pool.Claim(addr, owner); err != nil {
			errs = append(errs, fmt.Errorf("adopt address of %s: %w", owner, err))
		}
	}
	return errors.Join(errs...)
}

// release frees whatever owner holds.
func (a *addresses) release(owner string) {
	for _, pool := range a.pools {
		if addr, held := pool.Held(owner); held {
			pool.Release(addr, owner)
		}
	}
}

func (a *addresses) stats() []ipam.Stats {
	var stats []ipam.Stats
	for _, pool := range a.pools {
		stats = append(stats, pool.Stats())
	}
	return stats
}
