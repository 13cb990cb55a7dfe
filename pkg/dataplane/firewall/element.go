package firewall

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// An element is one entry of a set, by the bytes of its key. In a set of
// intervals it reaches from key to end, exclusive; an end of "" means that it
// reaches to the last address. In a set of ranges, whose keys are concatenated, it
// reaches from key to end, inclusive, in each field. Elsewhere end is "".
type element struct{ key, end string }

// intervals returns the prefixes of one family as the fewest intervals that
// hold the same addresses: the kernel refuses intervals that overlap.
func intervals(prefixes []netip.Prefix, v4 bool) []element {
	var wanted []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4() == v4 {
			wanted = append(wanted, p.Masked())
		}
	}
	slices.SortFunc(wanted, netip.Prefix.Compare)
	var out []element
	for _, p := range wanted {
		first, end := addrKey(p.Addr()), endKey(p)
		if n := len(out); n > 0 && (out[n-1].end == "" || first <= out[n-1].end) {
			// It begins inside the last interval or right behind it.
			if end == "" || (out[n-1].end != "" && end > out[n-1].end) {
				out[n-1].end = end
			}
			continue
		}
		out = append(out, element{key: first, end: end})
	}
	return out
}

// endKey returns the address behind the last one of p, "" if there is none.
func endKey(p netip.Prefix) string {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	next := last.Next()
	if !next.IsValid() {
		return ""
	}
	return addrKey(next)
}

// ranges returns the prefixes of one family as ranges of a link's name and an
// address: as few as intervals.
func ranges(link string, prefixes []netip.Prefix, v4 bool) []element {
	name := linkNames([]string{link})[0].key
	var out []element
	for _, e := range intervals(prefixes, v4) {
		out = append(out, element{key: name + e.key, end: name + lastKey(e)})
	}
	return out
}

// lastKey returns the last address of an interval.
func lastKey(e element) string {
	if behind, ok := netip.AddrFromSlice([]byte(e.end)); ok {
		return addrKey(behind.Prev())
	}
	return strings.Repeat("\xff", len(e.key))
}

func addrKey(a netip.Addr) string { return string(a.AsSlice()) }

// addresses returns the addresses of one family as keys.
func addresses(all []netip.Addr, v4 bool) []element {
	var out []element
	for _, a := range all {
		if a.Is4() == v4 {
			out = append(out, element{key: addrKey(a)})
		}
	}
	return out
}

// linkNames returns interface names as keys: zero-padded, as the kernel keeps
// them.
func linkNames(names []string) []element {
	out := make([]element, 0, len(names))
	for _, name := range names {
		var key [maxLinkName + 1]byte
		copy(key[:], name)
		out = append(out, element{key: string(key[:])})
	}
	return out
}

// elementsOf returns what a pin puts into the set of ports and into the sets of
// sources. Beside its addresses a pod sends from the link-local address and,
// while it has no address yet, from none: what it may send from there is for the
// rules to say.
func elementsOf(p Pin) (port, sources4, sources6 []element) {
	port = []element{{key: indexKey(p.PortIndex)}}
	six := []netip.Addr{linkLocal(p.MAC), netip.IPv6Unspecified()}
	for _, a := range p.Addrs {
		if a = a.Unmap(); a.Is4() {
			sources4 = append(sources4, element{key: sourceKey(p, a)})
		} else {
			six = append(six, a)
		}
	}
	for _, a := range six {
		sources6 = append(sources6, element{key: sourceKey(p, a)})
	}
	return port, sources4, sources6
}

// sourceKey is port, MAC and address, each padded to whole registers of four
// bytes: the layout of a concatenated key.
func sourceKey(p Pin, a netip.Addr) string {
	key := make([]byte, 0, 4+8+16)
	key = append(key, indexKey(p.PortIndex)...)
	key = append(key, p.MAC...)
	key = append(key, 0, 0)
	return string(append(key, a.AsSlice()...))
}

// indexKey is an interface index as the kernel loads it: in the machine's own
// byte order.
func indexKey(index int) string {
	return string(binary.NativeEndian.AppendUint32(nil, uint32(index)))
}

// linkLocal returns the address that the kernel derives from a MAC (EUI-64, RFC
// 4291 appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	const universalBit = 0x02
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80,
		8: mac[0] ^ universalBit, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}
