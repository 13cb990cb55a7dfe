// Package ipam hands out addresses of one prefix, and carves prefixes out of a
// cluster's. It is pure: no files, no kernel, no clock.
//
// It keeps no lease: the kernel's links are the record of what is in use, and
// the caller claims their addresses again after a restart. A Pool is safe for
// concurrent use. Its memory follows the addresses in use and those resting,
// never the size of the prefix.
package ipam

import (
	"container/list"
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

// restLimit is how many freed addresses wait before the oldest of them is
// preferred to one never used. It bounds the memory of a pool that never runs
// out of unused addresses, such as a /64.
const restLimit = 4096

// A Pool hands out the addresses of one prefix.
type Pool struct {
	prefix      netip.Prefix
	first, last netip.Addr // what a host may have; both invalid if nothing
	capacity    uint64
	reserved    map[netip.Addr]struct{}

	mu sync.Mutex // guards what follows
	// Addresses never used run from next around the ring to just before
	// start. An invalid next means that none is left.
	start, next netip.Addr
	allocated   bool                    // whether Allocate ran: start is settled
	owners      map[netip.Addr]string   // used addresses
	owned       map[string][]netip.Addr // the same by owner, oldest first
	queue       *list.List              // of netip.Addr: resting, freed longest ago first
	resting     map[netip.Addr]*list.Element
}

// Stats counts a pool's addresses.
type Stats struct {
	Prefix   netip.Prefix
	Capacity uint64 // addresses that may be handed out, at most math.MaxUint64
	Used     int    // addresses with an owner
	Resting  int    // freed addresses that wait for their turn again
}

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
		queue:    list.New(),
		resting:  make(map[netip.Addr]*list.Element),
	}
	p.first, p.last = hosts(prefix)
	for _, addr := range reserved {
		if p.holds(addr) {
			p.reserved[addr] = struct{}{}
		}
	}
	p.capacity = capacity(prefix) - uint64(len(p.reserved))
	p.start, p.next = p.first, p.first
	return p, nil
}

// Allocate returns the address of owner: the first it holds, else one never
// used, else the one freed longest ago. Asking again gives the same address.
// It returns ErrExhausted, with the prefix and its counts, when all are used.
func (p *Pool) Allocate(owner string) (netip.Addr, error) {
	if owner == "" {
		return netip.Addr{}, fmt.Errorf("allocate from %s: no owner", p.prefix)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if held := p.owned[owner]; len(held) > 0 {
		return held[0], nil
	}
	p.allocated = true
	addr, ok := p.pickLocked()
	if !ok {
		return netip.Addr{}, fmt.Errorf("allocate from %s: %w: %d of %d in use", p.prefix, ErrExhausted, len(p.owners), p.capacity)
	}
	p.takeLocked(addr, owner)
	return addr, nil
}

// Claim gives owner the address addr: one found in use after a restart, or one
// asked for. Claiming it again for the same owner changes nothing. An owner may
// hold several. It returns ErrTaken or ErrOutside.
//
// Claims before the first Allocate also move its starting point behind them:
// what was freed shortly before a restart is then not the first to be reused.
func (p *Pool) Claim(addr netip.Addr, owner string) error {
	if owner == "" {
		return fmt.Errorf("claim %s of %s: no owner", addr, p.prefix)
	}
	if !p.holds(addr) {
		return fmt.Errorf("claim %s of %s: %w", addr, p.prefix, ErrOutside)
	}
	if _, ok := p.reserved[addr]; ok {
		return fmt.Errorf("claim %s of %s: %w: reserved", addr, p.prefix, ErrTaken)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if holder, ok := p.owners[addr]; ok {
		if holder == owner {
			return nil
		}
		return fmt.Errorf("claim %s of %s: %w", addr, p.prefix, ErrTaken)
	}
	if !p.allocated && addr.Compare(p.start) >= 0 {
		p.start = p.after(addr)
		p.next = p.start
	}
	p.takeLocked(addr, owner)
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
	// What the cursor has yet to reach need not be remembered to be found again.
	if p.queue.Len() < restLimit || !p.aheadLocked(addr) {
		p.resting[addr] = p.queue.PushBack(addr)
	}
	return true
}

// Held returns the address that Allocate would give owner again: the first it
// holds, if it holds any.
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
	return Stats{Prefix: p.prefix, Capacity: p.capacity, Used: len(p.owners), Resting: p.queue.Len()}
}

// holds tells whether addr is one that a host of the prefix may have.
func (p *Pool) holds(addr netip.Addr) bool {
	return p.first.IsValid() && p.prefix.Contains(addr) && p.first.Compare(addr) <= 0 && addr.Compare(p.last) <= 0
}

// after returns the address behind addr on the ring from first to last.
func (p *Pool) after(addr netip.Addr) netip.Addr {
	if addr == p.last {
		return p.first
	}
	return addr.Next()
}

// pickLocked chooses a free address.
func (p *Pool) pickLocked() (netip.Addr, bool) {
	if p.queue.Len() < restLimit {
		if addr, ok := p.freshLocked(); ok {
			return addr, true
		}
	}
	if oldest := p.queue.Front(); oldest != nil {
		return oldest.Value.(netip.Addr), true
	}
	return netip.Addr{}, false
}

// freshLocked moves the cursor to an address never used and past it.
func (p *Pool) freshLocked() (netip.Addr, bool) {
	for p.next.IsValid() {
		addr := p.next
		if p.next = p.after(addr); p.next == p.start {
			p.next = netip.Addr{}
		}
		_, used := p.owners[addr]
		_, rests := p.resting[addr]
		_, reserved := p.reserved[addr]
		if !used && !rests && !reserved {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// aheadLocked tells whether the cursor has yet to reach addr.
func (p *Pool) aheadLocked(addr netip.Addr) bool {
	if !p.next.IsValid() {
		return false
	}
	if p.next.Compare(p.start) >= 0 {
		return addr.Compare(p.next) >= 0 || addr.Compare(p.start) < 0
	}
	return addr.Compare(p.next) >= 0 && addr.Compare(p.start) < 0
}

// takeLocked records that owner holds addr, which was free.
func (p *Pool) takeLocked(addr netip.Addr, owner string) {
	if element, ok := p.resting[addr]; ok {
		p.queue.Remove(element)
		delete(p.resting, addr)
	}
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
