// Package ipam hands out addresses of one prefix, and carves prefixes out of a
// cluster's. It is pure: no files, no kernel, no clock.
//
// It keeps no lease: the kernel's links are the record of what is in use, and
// the caller claims their addresses again after a restart. A Pool is safe for
// concurrent use. Its memory follows the addresses and blocks in use and the
// addresses resting, never the size of the prefix.
package ipam

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"
)

var (
	// ErrExhausted tells that every address of a pool is in use, or that every
	// slice of a cluster is assigned.
	ErrExhausted = errors.New("no free address")
	// ErrTaken tells that an address belongs to another owner, or is reserved.
	ErrTaken = errors.New("address is taken")
	// ErrOutside tells that an address is none of the pool's, or none that a
	// host may have (network, broadcast, subnet-router anycast).
	ErrOutside = errors.New("address is outside the pool")
)

var errNoOwner = errors.New("no owner")

// restLimit is how many freed addresses wait before the oldest of them is
// preferred to one never used. It bounds the memory of a pool that never runs
// out of unused addresses, such as a /64.
const restLimit = 4096

// A Pool hands out the addresses of one prefix: single ones, and blocks of them
// that are set aside for one use each.
type Pool struct {
	prefix      netip.Prefix
	first, last netip.Addr // what a host may have; both invalid if nothing
	capacity    uint64
	reserved    map[netip.Addr]struct{}

	mu     sync.Mutex              // guards what follows
	free   *shelf                  // what is in no block
	blocks []*block                // sorted, disjoint
	owners map[netip.Addr]string   // used addresses, those in blocks too
	owned  map[string][]netip.Addr // the same by owner, oldest first
}

// Stats counts a pool's addresses.
type Stats struct {
	Prefix   netip.Prefix
	Capacity uint64 // addresses that may be handed out, in blocks or not, at most math.MaxUint64
	Blocked  uint64 // those of them that are in blocks, in use or not, at most math.MaxUint64
	Used     int    // addresses with an owner, in blocks or not
	Resting  int    // freed addresses that wait for their turn again, in blocks or not
	// UsedInBlocks counts those of Used that are in blocks.
	UsedInBlocks int
}

// Free counts what Allocate may still give: addresses without an owner that are
// in no block, at most math.MaxUint64.
func (s Stats) Free() uint64 { return s.Capacity - s.Blocked - uint64(s.Used-s.UsedInBlocks) }

// NewPool returns a pool of prefix, which must be masked. It never hands out
// the IPv4 network and broadcast address (of a /30 or wider: RFC 3021), the
// IPv6 subnet-router anycast address (of a /126 or wider: RFC 6164), and
// reserved. Reserved addresses outside prefix are ignored, so that a node may
// name its addresses of both families.
func NewPool(prefix netip.Prefix, reserved ...netip.Addr) (*Pool, error) {
	if !prefix.IsValid() || prefix.Addr().Is4In6() {
		return nil, fmt.Errorf("make pool of %s: not a prefix of IPv4 or IPv6", prefix)
	}
	if prefix != prefix.Masked() {
		return nil, fmt.Errorf("make pool of %s: host bits are set, %s meant", prefix, prefix.Masked())
	}
	p := &Pool{
		prefix:   prefix,
		reserved: make(map[netip.Addr]struct{}),
		owners:   make(map[netip.Addr]string),
		owned:    make(map[string][]netip.Addr),
	}
	p.first, p.last = hosts(prefix)
	for _, addr := range reserved {
		if p.holds(addr) {
			p.reserved[addr] = struct{}{}
		}
	}
	p.capacity = capacity(prefix) - uint64(len(p.reserved))
	p.free = newShelf(spans{{p.first, p.last}})
	return p, nil
}

// Allocate returns the address of owner that is in no block: the first it
// holds, else one never used, else the one freed longest ago. Asking again gives
// the same address. It returns ErrExhausted, with the prefix and its counts,
// when all are used.
func (p *Pool) Allocate(owner string) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	addr, err := p.allocateLocked(p.free, owner)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("allocate from %s: %w, %d of %d in use, %d in blocks", p.prefix, err, len(p.owners), p.capacity, p.blockedLocked())
	}
	return addr, nil
}

// Claim gives owner the address addr: one found in use after a restart, or one
// asked for. Claiming it again for the same owner changes nothing. An owner may
// hold several. It returns ErrTaken, also for an address in a block, or
// ErrOutside.
//
// Claims before the first Allocate also move its starting point behind them:
// what was freed shortly before a restart is then not the first to be reused.
func (p *Pool) Claim(addr netip.Addr, owner string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.claimLocked(p.free, addr, owner); err != nil {
		return fmt.Errorf("claim %s of %s: %w", addr, p.prefix, err)
	}
	return nil
}

// Release frees addr if owner holds it, and tells whether it did. The address
// then rests behind all freed before it.
func (p *Pool) Release(addr netip.Addr, owner string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if holder, ok := p.owners[addr]; !ok || holder != owner {
		return false
	}
	delete(p.owners, addr)
	held := p.owned[owner]
	for i := range held {
		if held[i] == addr {
			held = append(held[:i], held[i+1:]...)
			break
		}
	}
	if len(held) == 0 {
		delete(p.owned, owner)
	} else {
		p.owned[owner] = held
	}
	p.shelfLocked(addr).rest(addr)
	return true
}

// Held returns the first address that owner holds, in a block or not, if it
// holds any.
func (p *Pool) Held(owner string) (netip.Addr, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if held := p.owned[owner]; len(held) > 0 {
		return held[0], true
	}
	return netip.Addr{}, false
}

// Stats returns the pool's counts at this moment.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := Stats{Prefix: p.prefix, Capacity: p.capacity, Blocked: p.blockedLocked(), Used: len(p.owners), Resting: p.free.queue.Len()}
	if len(p.blocks) == 0 {
		return stats
	}
	for _, b := range p.blocks {
		stats.Resting += b.free.queue.Len()
	}
	for addr := range p.owners {
		if p.shelfLocked(addr) != p.free {
			stats.UsedInBlocks++
		}
	}
	return stats
}

// holds tells whether addr is one that a host of the prefix may have.
func (p *Pool) holds(addr netip.Addr) bool {
	return p.first.IsValid() && p.prefix.Contains(addr) && p.first.Compare(addr) <= 0 && addr.Compare(p.last) <= 0
}

// allocateLocked returns owner's address of those that belong to shelf.
func (p *Pool) allocateLocked(shelf *shelf, owner string) (netip.Addr, error) {
	if owner == "" {
		return netip.Addr{}, errNoOwner
	}
	for _, held := range p.owned[owner] {
		if p.shelfLocked(held) == shelf {
			return held, nil
		}
	}
	addr, ok := shelf.pick(func(addr netip.Addr) bool {
		_, used := p.owners[addr]
		_, reserved := p.reserved[addr]
		return used || reserved
	})
	if !ok {
		return netip.Addr{}, ErrExhausted
	}
	p.takeLocked(shelf, addr, owner)
	return addr, nil
}

// claimLocked gives owner the address addr if it belongs to shelf.
func (p *Pool) claimLocked(shelf *shelf, addr netip.Addr, owner string) error {
	if owner == "" {
		return errNoOwner
	}
	if !p.holds(addr) {
		return ErrOutside
	}
	if _, ok := p.reserved[addr]; ok {
		return fmt.Errorf("%w: reserved", ErrTaken)
	}
	if p.shelfLocked(addr) != shelf {
		return fmt.Errorf("%w: in a block", ErrTaken)
	}
	if holder, ok := p.owners[addr]; ok {
		if holder == owner {
			return nil
		}
		return ErrTaken
	}
	shelf.startBehind(addr)
	p.takeLocked(shelf, addr, owner)
	return nil
}

// shelfLocked returns the shelf that addr goes back to.
func (p *Pool) shelfLocked(addr netip.Addr) *shelf {
	if b := p.overlapLocked(netip.PrefixFrom(addr, addr.BitLen())); b != nil {
		return b.free
	}
	return p.free
}

// takeLocked records that owner holds addr, which was free.
func (p *Pool) takeLocked(shelf *shelf, addr netip.Addr, owner string) {
	shelf.forget(addr)
	p.owners[addr] = owner
	p.owned[owner] = append(p.owned[owner], addr)
}

// hosts returns the first and last address that a host of prefix may have.
func hosts(prefix netip.Prefix) (first, last netip.Addr) {
	first, last = prefix.Addr(), lastOf(prefix)
	if hostBits(prefix) < 2 {
		return first, last
	}
	if first.Is4() {
		last = last.Prev()
	}
	return first.Next(), last
}

// capacity counts the addresses from first to last of hosts.
func capacity(prefix netip.Prefix) uint64 {
	bits := hostBits(prefix)
	switch {
	case bits > 63:
		return math.MaxUint64 // of a /64 exactly, without its anycast address
	case bits < 2:
		return 1 << bits
	case prefix.Addr().Is4():
		return 1<<bits - 2
	default:
		return 1<<bits - 1
	}
}

func hostBits(prefix netip.Prefix) int { return prefix.Addr().BitLen() - prefix.Bits() }

// lastOf returns the highest address of a masked prefix.
func lastOf(prefix netip.Prefix) netip.Addr {
	raw := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(raw)
	return last
}
