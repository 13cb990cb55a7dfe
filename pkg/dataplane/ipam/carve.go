package ipam

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sort"
)

// Carve gives every name a slice of the cluster's prefix, bits long: its own
// in fixed if it has one there, else the first free one from the slot that the
// name hashes to (FNV-1a, 64 bits, modulo the slots) onwards. What overlaps a
// fixed slice, of whatever length and of any name, stays free.
//
// Names are served in the order given, so the same list gives the same slices
// everywhere; a name given twice counts once. The rule is that of ZLayer's
// NodeSliceAllocator. It returns ErrExhausted, and no slices, when not all
// names fit.
func Carve(cluster netip.Prefix, bits int, fixed map[string]netip.Prefix, names []string) (map[string]netip.Prefix, error) {
	if !cluster.IsValid() || cluster != cluster.Masked() || cluster.Addr().Is4In6() {
		return nil, fmt.Errorf("carve %s: not a masked prefix of IPv4 or IPv6", cluster)
	}
	if bits < cluster.Bits() || bits > cluster.Addr().BitLen() {
		return nil, fmt.Errorf("carve %s: slices of /%d do not fit", cluster, bits)
	}
	c := carver{cluster: cluster, bits: bits, slots: slotCount(bits - cluster.Bits()), taken: make(map[uint64]struct{})}
	c.keepFree(fixed)
	result := make(map[string]netip.Prefix, len(names))
	for _, name := range names {
		if _, done := result[name]; done {
			continue
		}
		if slice := fixed[name]; slice.IsValid() {
			result[name] = slice
			continue
		}
		slot, ok := c.take(name)
		if !ok {
			return nil, fmt.Errorf("carve %s into /%d for %s: %w: all %d slices assigned", cluster, bits, name, ErrExhausted, c.slots)
		}
		result[name] = c.slice(slot)
	}
	return result, nil
}

// carver numbers the slices of a cluster by slot, from 0.
type carver struct {
	cluster netip.Prefix
	bits    int
	slots   uint64
	blocked []slotRange         // sorted, disjoint
	taken   map[uint64]struct{} // assigned by take
}

// slotRange is the slots first to last, both included.
type slotRange struct{ first, last uint64 }

// slotCount returns 2^width, at most 2^63 so that arithmetic on slots cannot
// overflow.
func slotCount(width int) uint64 { return 1 << min(width, 63) }

// keepFree blocks every slot that a fixed slice overlaps.
func (c *carver) keepFree(fixed map[string]netip.Prefix) {
	var ranges []slotRange
	for _, slice := range fixed {
		if slice.IsValid() && slice.Overlaps(c.cluster) {
			slice = slice.Masked()
			ranges = append(ranges, slotRange{c.slotOf(slice.Addr()), c.slotOf(lastOf(slice))})
		}
	}
	slices.SortFunc(ranges, func(a, b slotRange) int { return cmp.Compare(a.first, b.first) })
	for _, r := range ranges {
		if n := len(c.blocked); n > 0 && r.first <= c.blocked[n-1].last {
			c.blocked[n-1].last = max(c.blocked[n-1].last, r.last)
		} else {
			c.blocked = append(c.blocked, r)
		}
	}
}

// take assigns the first free slot from name's hash onwards.
func (c *carver) take(name string) (uint64, bool) {
	slot := fnv1a(name) % c.slots
	for walked := uint64(0); walked < c.slots; {
		step := uint64(1)
		if last, ok := c.blockedUntil(slot); ok {
			step = last - slot + 1
		} else if _, ok := c.taken[slot]; !ok {
			c.taken[slot] = struct{}{}
			return slot, true
		}
		walked += step
		slot = (slot + step) % c.slots
	}
	return 0, false
}

// blockedUntil returns the last slot of the blocked range that slot lies in.
func (c *carver) blockedUntil(slot uint64) (uint64, bool) {
	i := sort.Search(len(c.blocked), func(i int) bool { return c.blocked[i].last >= slot })
	if i == len(c.blocked) || c.blocked[i].first > slot {
		return 0, false
	}
	return c.blocked[i].last, true
}

// slice returns the prefix at slot: the cluster's address with the slot's bits
// just above the slice's host bits.
func (c *carver) slice(slot uint64) netip.Prefix {
	raw := c.cluster.Addr().AsSlice()
	for bit := c.bits - 1; bit >= c.cluster.Bits() && slot > 0; bit-- {
		if slot&1 == 1 {
			raw[bit/8] |= 0x80 >> (bit % 8)
		}
		slot >>= 1
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(addr, c.bits)
}

// slotOf returns the slot of addr by its bits below the cluster's, or the last
// slot if its own is beyond the count. Of the first and last address of a
// prefix around the cluster these bits are all 0 and all 1: every slot.
func (c *carver) slotOf(addr netip.Addr) uint64 {
	var slot uint64
	raw := addr.AsSlice()
	for bit := c.cluster.Bits(); bit < c.bits; bit++ {
		if slot >= 1<<62 {
			return c.slots - 1
		}
		slot = slot<<1 | uint64(raw[bit/8]>>(7-bit%8)&1)
	}
	return slot
}

// fnv1a is FNV-1a of 64 bits; hash/fnv would cost an allocation per name.
func fnv1a(s string) uint64 {
	const offset, prime = 0xcbf29ce484222325, 0x100000001b3
	hash := uint64(offset)
	for i := range len(s) {
		hash = (hash ^ uint64(s[i])) * prime
	}
	return hash
}
