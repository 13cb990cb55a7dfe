package dns

import (
	"bytes"
	"net/netip"
	"slices"
)

// address is an IPv6 address, or an IPv4 one mapped into IPv6: a zone keeps many,
// and this is smaller than a netip.Addr and has nothing that the garbage collector
// looks at.
type address [16]byte

func (a address) is4() bool { return [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff} }

func (a address) netip() netip.Addr {
	if a.is4() {
		return netip.AddrFrom4([4]byte(a[12:]))
	}
	return netip.AddrFrom16(a)
}

// compareAddresses puts those of IPv4 first.
func compareAddresses(a, b address) int {
	switch {
	case a.is4() == b.is4():
		return bytes.Compare(a[:], b[:])
	case a.is4():
		return -1
	}
	return 1
}

// addressesOf appends those that DNS has records for: not the zero value, nor one
// that means something on one link only by its zone.
func addressesOf(to []address, addrs []netip.Addr) []address {
	for _, addr := range addrs {
		if addr.IsValid() && addr.Zone() == "" {
			to = append(to, addr.As16())
		}
	}
	return to
}

// ordered sorts addresses in place and leaves each once.
func ordered(addrs []address) []address {
	slices.SortFunc(addrs, compareAddresses)
	return slices.Compact(addrs)
}

func netipAddrs(addrs []address) []netip.Addr {
	to := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		to[i] = a.netip()
	}
	return to
}

// prefixSet finds whether an address is in one of many prefixes.
type prefixSet struct {
	has map[netip.Prefix]bool
	// bits are the lengths of those of IPv4 and of those of IPv6.
	bits [2][]int
}

func newPrefixSet(prefixes []netip.Prefix) prefixSet {
	s := prefixSet{has: make(map[netip.Prefix]bool, len(prefixes))}
	for _, p := range prefixes {
		if !p.IsValid() {
			continue
		}
		s.has[p.Masked()] = true
		if bits := &s.bits[boolInt(p.Addr().Is6())]; !slices.Contains(*bits, p.Bits()) {
			*bits = append(*bits, p.Bits())
		}
	}
	return s
}

func (s prefixSet) contains(a address) bool {
	addr := a.netip()
	return slices.ContainsFunc(s.bits[boolInt(addr.Is6())], func(bits int) bool {
		prefix, err := addr.Prefix(bits)
		return err == nil && s.has[prefix]
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
