package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
)

// addresses are the node's pools, one for each of its slices. An owner holds
// one address of every pool or none: a sandbox never gets half of dual stack.
// Safe for concurrent use as far as different owners go.
type addresses struct {
	pools []*ipam.Pool
	// apart are the blocks of what is not on the sandboxes' link, nil where everything may have any address.
	apart []netip.Prefix
}

// newAddresses makes the pools and keeps out of them what is the node's own.
func newAddresses(layouts []layout) (*addresses, error) {
	a := &addresses{}
	for _, one := range layouts {
		pool, err := one.pool()
		if err != nil {
			return nil, err
		}
		a.pools = append(a.pools, pool)
		if one.apart.IsValid() {
			a.apart = append(a.apart, one.apart)
		}
	}
	return a, nil
}

// nodeAddress is the node's own overlay address in a slice: its first host.
func nodeAddress(slice netip.Prefix) netip.Addr { return slice.Masked().Addr().Next() }

// allocate gives owner an address of every pool: the requested one where there
// is one. With blocks they come out of these, and else out of none. The same
// owner gets the same addresses again. Nothing is held after an error that was
// not held before.
func (a *addresses) allocate(owner string, requested []netip.Addr, blocks []netip.Prefix) (_ []netip.Addr, undo func(), err error) {
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
			err = claim(pool, addr, owner, blocks) // it may have been attached elsewhere before
		case want:
			err = claim(pool, addr, owner, blocks)
		default:
			addr, err = pick(pool, owner, blocks)
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

// pick takes any free address of the pool, or of those blocks that are in it.
func pick(pool *ipam.Pool, owner string, blocks []netip.Prefix) (netip.Addr, error) {
	if blocks == nil {
		return pool.Allocate(owner)
	}
	err := fmt.Errorf("no block of %s: %w", pool.Stats().Prefix, ipam.ErrExhausted)
	for _, block := range blocks {
		if !pool.Stats().Prefix.Overlaps(block) {
			continue
		}
		var addr netip.Addr
		if addr, err = pool.AllocateIn(block, owner); !errors.Is(err, ipam.ErrExhausted) {
			return addr, err
		}
	}
	return netip.Addr{}, err
}

// claim takes one address of the pool, which with blocks is in one of them.
func claim(pool *ipam.Pool, addr netip.Addr, owner string, blocks []netip.Prefix) error {
	if blocks == nil {
		return pool.Claim(addr, owner)
	}
	for _, block := range blocks {
		if block.Contains(addr) {
			return pool.ClaimIn(block, addr, owner)
		}
	}
	return fmt.Errorf("address %s is in none of the service's blocks %v: %w", addr, blocks, ipam.ErrOutside)
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

// adopt claims the addresses that somebody has in the kernel or on disk, in
// blocks if there are any. Addresses outside the slices (the node had others
// before) are reported and left alone: no pool can hand them out.
func (a *addresses) adopt(owner string, addrs []netip.Addr, blocks []netip.Prefix) error {
	var errs []error
	for _, addr := range addrs {
		pool := a.poolOf(addr)
		if pool == nil {
			errs = append(errs, fmt.Errorf("adopt address %s of %s: %w", addr, owner, ipam.ErrOutside))
			continue
		}
		if err := claim(pool, addr, owner, blocks); err != nil {
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

// held are the addresses of owner, in the order of the slices.
func (a *addresses) held(owner string) []netip.Addr {
	var addrs []netip.Addr
	for _, pool := range a.pools {
		if addr, held := pool.Held(owner); held {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

func (a *addresses) stats() []ipam.Stats {
	var stats []ipam.Stats
	for _, pool := range a.pools {
		stats = append(stats, pool.Stats())
	}
	return stats
}

// Prefix lengths of a service's blocks: 16 addresses of IPv4, 256 of IPv6. A
// small slice has smaller blocks, so that several services find room in it.
const (
	blockBits4, blockBits6 = 28, 120
	leastBlocks            = 2 // bits
)

// blockBits is the length of the blocks in a slice.
func blockBits(slice netip.Prefix) int {
	bits := blockBits6
	if slice.Addr().Is4() {
		bits = blockBits4
	}
	return min(max(bits, slice.Bits()+leastBlocks), slice.Addr().BitLen())
}

// missingBlocks sets a block of every slice aside that has none of have. Nothing
// is set aside after an error.
func (a *addresses) missingBlocks(have []netip.Prefix) ([]netip.Prefix, error) {
	return a.allocateBlocks(func(pool *ipam.Pool) bool {
		return !slices.ContainsFunc(have, pool.Stats().Prefix.Overlaps)
	})
}

// moreBlocks sets a block of every slice aside in which none of have has a free
// address. Nothing is set aside after an error.
func (a *addresses) moreBlocks(have []netip.Prefix) ([]netip.Prefix, error) {
	return a.allocateBlocks(func(pool *ipam.Pool) bool {
		return !slices.ContainsFunc(have, func(block netip.Prefix) bool {
			stats := pool.BlockStats(block)
			return uint64(stats.Used) < stats.Capacity
		})
	})
}

func (a *addresses) allocateBlocks(lacks func(*ipam.Pool) bool) (blocks []netip.Prefix, err error) {
	for _, pool := range a.pools {
		slice := pool.Stats().Prefix
		if !lacks(pool) {
			continue
		}
		block, err := pool.AllocateBlock(blockBits(slice))
		if err != nil {
			return nil, errors.Join(err, a.releaseBlocks(blocks))
		}
		blocks = append(blocks, block)
	}
	return blocks, nil
}

// claimBlocks sets blocks aside that a service had before a restart. It returns
// those that it could, with the error of the others.
func (a *addresses) claimBlocks(blocks []netip.Prefix) (claimed []netip.Prefix, err error) {
	var errs []error
	for _, block := range blocks {
		pool := a.poolOf(block.Addr())
		if pool == nil {
			errs = append(errs, fmt.Errorf("claim block %s: %w", block, ipam.ErrOutside))
			continue
		}
		if err := pool.ClaimBlock(block); err != nil {
			errs = append(errs, err)
			continue
		}
		claimed = append(claimed, block)
	}
	return claimed, errors.Join(errs...)
}

// releaseBlocks returns blocks in which nobody has an address.
func (a *addresses) releaseBlocks(blocks []netip.Prefix) error {
	var errs []error
	for _, block := range blocks {
		if pool := a.poolOf(block.Addr()); pool != nil {
			errs = append(errs, pool.ReleaseBlock(block))
		}
	}
	return errors.Join(errs...)
}

// usedBlocks are those in which somebody has an address.
func (a *addresses) usedBlocks(blocks []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(blocks), func(block netip.Prefix) bool {
		pool := a.poolOf(block.Addr())
		return pool == nil || pool.BlockStats(block).Used == 0
	})
}
