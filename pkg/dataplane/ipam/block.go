package ipam

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sort"
)

// block is a part of a pool that is set aside.
type block struct {
	prefix   netip.Prefix
	capacity uint64 // addresses that may be handed out, at most math.MaxUint64
	free     *shelf
}

// AllocateBlock sets a block of that prefix length aside and returns it: the
// highest in which no address is in use or reserved and which overlaps no other
// block. Blocks in which freed addresses rest come last. From then on
// its addresses are given out by AllocateIn and ClaimIn alone.
//
// The prefix's network and broadcast address may lie in a block and are still
// nobody's; every other address of a block is usable. It returns ErrExhausted,
// with the prefix and its counts, when there is no such block.
func (p *Pool) AllocateBlock(bits int) (netip.Prefix, error) {
	if bits < p.prefix.Bits() || bits > p.prefix.Addr().BitLen() {
		return netip.Prefix{}, fmt.Errorf("allocate block of %s: a /%d does not fit", p.prefix, bits)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	busy := make(map[netip.Prefix]struct{})
	mark := func(addr netip.Addr) { busy[netip.PrefixFrom(addr, bits).Masked()] = struct{}{} }
	for addr := range p.owners {
		mark(addr)
	}
	for addr := range p.reserved {
		mark(addr)
	}
	fallback, ok := p.highestLocked(bits, busy)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("allocate block /%d of %s: %w, %d of %d in use, %d in blocks", bits, p.prefix, ErrExhausted, len(p.owners), p.capacity, p.blockedLocked())
	}
	for addr := range p.free.resting {
		mark(addr)
	}
	prefix, ok := p.highestLocked(bits, busy)
	if !ok {
		prefix = fallback
	}
	p.setAsideLocked(prefix)
	return prefix, nil
}

// ClaimBlock sets prefix aside, as a block that was in use before a restart. It
// comes before the claims of addresses in it. Claiming a block again changes
// nothing. It returns ErrOutside for what is no part of the pool or holds no
// address of a host, and ErrTaken if an address in it is in use or reserved, or
// if it overlaps another block.
func (p *Pool) ClaimBlock(prefix netip.Prefix) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.checkBlockLocked(prefix); err != nil {
		return fmt.Errorf("claim block %s of %s: %w", prefix, p.prefix, err)
	}
	if p.blockLocked(prefix) == nil {
		p.setAsideLocked(prefix)
	}
	return nil
}

func (p *Pool) checkBlockLocked(prefix netip.Prefix) error {
	if !prefix.IsValid() || prefix != prefix.Masked() || prefix.Bits() < p.prefix.Bits() || !p.prefix.Contains(prefix.Addr()) || !p.usable(prefix) {
		return ErrOutside
	}
	if other := p.overlapLocked(prefix); other != nil {
		if other.prefix == prefix {
			return nil
		}
		return fmt.Errorf("%w: overlaps block %s", ErrTaken, other.prefix)
	}
	for addr := range p.reserved {
		if prefix.Contains(addr) {
			return fmt.Errorf("%w: %s is reserved", ErrTaken, addr)
		}
	}
	return p.unusedLocked(prefix)
}

// ReleaseBlock gives the block back to the pool; what was used in it rests there
// like other freed addresses. A block that is none of the pool's is no error. It
// returns ErrTaken, and the block stays, while an address in it has an owner.
func (p *Pool) ReleaseBlock(prefix netip.Prefix) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.blockLocked(prefix)
	if b == nil {
		return nil
	}
	if err := p.unusedLocked(prefix); err != nil {
		return fmt.Errorf("release block %s of %s: %w", prefix, p.prefix, err)
	}
	p.blocks = slices.DeleteFunc(p.blocks, func(other *block) bool { return other == b })
	p.free.merge(b.free)
	return nil
}

// AllocateIn is Allocate in a block: the address of owner there, the same when
// asked again. It returns ErrExhausted when all of them are used, and ErrOutside
// for a block that is none of the pool's.
func (p *Pool) AllocateIn(prefix netip.Prefix, owner string) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.blockLocked(prefix)
	if b == nil {
		return netip.Addr{}, fmt.Errorf("allocate in %s of %s: no such block: %w", prefix, p.prefix, ErrOutside)
	}
	addr, err := p.allocateLocked(b.free, owner)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("allocate in block %s of %s: %w, %d may be used", prefix, p.prefix, err, b.capacity)
	}
	return addr, nil
}

// ClaimIn is Claim in a block. It returns ErrTaken, or ErrOutside for an address
// outside the block and a block that is none of the pool's.
func (p *Pool) ClaimIn(prefix netip.Prefix, addr netip.Addr, owner string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.blockLocked(prefix)
	if b == nil || !prefix.Contains(addr) {
		return fmt.Errorf("claim %s in block %s of %s: %w", addr, prefix, p.prefix, ErrOutside)
	}
	if err := p.claimLocked(b.free, addr, owner); err != nil {
		return fmt.Errorf("claim %s in block %s of %s: %w", addr, prefix, p.prefix, err)
	}
	return nil
}

// BlockStats returns a block's counts at this moment, the zero value for one
// that is none of the pool's. Resting and Blocked are not counted.
func (p *Pool) BlockStats(prefix netip.Prefix) Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.blockLocked(prefix)
	if b == nil {
		return Stats{}
	}
	stats := Stats{Prefix: prefix, Capacity: b.capacity}
	for addr := range p.owners {
		if prefix.Contains(addr) {
			stats.Used++
		}
	}
	return stats
}

// highestLocked returns the highest block that is usable, overlaps none, and is
// not busy. What it skips is in the way one by one, so its steps follow the
// addresses and blocks in use.
func (p *Pool) highestLocked(bits int, busy map[netip.Prefix]struct{}) (netip.Prefix, bool) {
	for last := lastOf(p.prefix); p.prefix.Contains(last); {
		prefix := netip.PrefixFrom(last, bits).Masked()
		_, taken := busy[prefix]
		other := p.overlapLocked(prefix)
		switch {
		case other != nil:
			last = earlier(other.prefix.Addr(), prefix.Addr()).Prev()
		case taken || !p.usable(prefix):
			last = prefix.Addr().Prev()
		default:
			return prefix, true
		}
	}
	return netip.Prefix{}, false
}

// usable tells whether a host may have an address of prefix, a part of the pool.
func (p *Pool) usable(prefix netip.Prefix) bool {
	within := p.within(prefix)
	return within.first.Compare(within.last) <= 0
}

// within is what hosts may have of prefix, a part of the pool.
func (p *Pool) within(prefix netip.Prefix) span {
	return span{later(p.first, prefix.Addr()), earlier(p.last, lastOf(prefix))}
}

// unusedLocked returns ErrTaken if an address of prefix has an owner.
func (p *Pool) unusedLocked(prefix netip.Prefix) error {
	for addr := range p.owners {
		if prefix.Contains(addr) {
			return fmt.Errorf("%w: %s is in use", ErrTaken, addr)
		}
	}
	return nil
}

// setAsideLocked makes prefix a block. Nothing in it may be in use.
func (p *Pool) setAsideLocked(prefix netip.Prefix) {
	b := &block{prefix: prefix, free: p.free.split(p.within(prefix)), capacity: math.MaxUint64}
	if bits := hostBits(prefix); bits < 64 {
		b.capacity = 1 << bits
		for _, edge := range []netip.Addr{prefix.Addr(), lastOf(prefix)} {
			if !p.holds(edge) {
				b.capacity--
			}
		}
	}
	p.blocks = slices.Insert(p.blocks, p.positionLocked(prefix), b)
}

// blockLocked returns the block prefix, or nil.
func (p *Pool) blockLocked(prefix netip.Prefix) *block {
	if i := slices.IndexFunc(p.blocks, func(b *block) bool { return b.prefix == prefix }); i >= 0 {
		return p.blocks[i]
	}
	return nil
}

// overlapLocked returns the highest block that overlaps prefix, or nil.
func (p *Pool) overlapLocked(prefix netip.Prefix) *block {
	if at := p.positionLocked(prefix); at > 0 && p.blocks[at-1].prefix.Overlaps(prefix) {
		return p.blocks[at-1]
	}
	return nil
}

// positionLocked is the index behind the blocks that begin at or before
// prefix's last address.
func (p *Pool) positionLocked(prefix netip.Prefix) int {
	last := lastOf(prefix)
	return sort.Search(len(p.blocks), func(i int) bool { return p.blocks[i].prefix.Addr().Compare(last) > 0 })
}

// blockedLocked counts the addresses in blocks.
func (p *Pool) blockedLocked() uint64 {
	var sum uint64
	for _, b := range p.blocks {
		sum += min(b.capacity, math.MaxUint64-sum)
	}
	return sum
}
