package dns

import (
	"net/netip"

	"github.com/miekg/dns"
)

// The trees of addresses (RFC 1035, section 3.5; RFC 3596, section 2.5), in wire format.
const (
	tree4 = "\x07in-addr\x04arpa\x00"
	tree6 = "\x03ip6\x04arpa\x00"
)

// place is where a name is in one of the zones of addresses.
type place struct {
	// zone is the zone's name.
	zone string
	// prefix has the addresses below the name; strange means that no address is,
	// as the name goes on with labels that are none of addresses.
	prefix  netip.Prefix
	strange bool
	// top means that the name is the zone's.
	top bool
}

// placeOf returns where a name is in the zones of addresses. A prefix has as many
// zones as it takes for each to end at a label: 16 for 10.64.0.0/12.
func (z *Zone) placeOf(wire []byte) (place, bool) {
	var starts [maxName]uint8
	labels := 0
	for at := 0; wire[at] != 0; at += 1 + int(wire[at]) {
		starts[labels] = uint8(at) //nolint:gosec // below maxName
		labels++
	}
	if labels < 2 {
		return place{}, false
	}
	var tree netip.Prefix
	var step int
	switch string(wire[starts[labels-2]:]) {
	case tree4:
		tree, step = netip.PrefixFrom(netip.IPv4Unspecified(), 0), 8
	case tree6:
		tree, step = netip.PrefixFrom(netip.IPv6Unspecified(), 0), 4
	default:
		return place{}, false
	}
	prefix, rest := descend(tree, step, wire, starts[:labels-2])
	for _, p := range *z.reverse.Load() {
		// Its zones are as long as it is, rounded up to the next label.
		bits := (p.Bits() + step - 1) / step * step
		if bits > prefix.Bits() || !p.Contains(prefix.Addr()) {
			continue
		}
		return place{
			zone:   nameText(string(wire[starts[labels-2-bits/step]:])),
			prefix: prefix, strange: rest > 0,
			top: rest == 0 && bits == prefix.Bits(),
		}, true
	}
	return place{}, false
}

// descend follows the labels that start at starts, from the last, down a tree of
// addresses with step bits a label. rest is how many labels remain that are none of
// an address, or below one.
func descend(tree netip.Prefix, step int, wire []byte, starts []uint8) (below netip.Prefix, rest int) {
	bytes, bits := tree.Addr().AsSlice(), 0
	for rest = len(starts); rest > 0 && bits < 8*len(bytes); rest-- {
		at := int(starts[rest-1])
		value, ok := labelValue(wire[at+1:at+1+int(wire[at])], step)
		if !ok {
			break
		}
		bytes[bits/8] |= value << (8 - step - bits%8)
		bits += step
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return netip.PrefixFrom(addr, bits), rest
}

// labelValue is the number of a label, decimal of 8 bits and hexadecimal of 4. It
// has one way to write each.
func labelValue(label []byte, bits int) (value byte, ok bool) {
	base, most := 10, 255
	if bits == 4 {
		base, most = 16, 15
	}
	number := 0
	for i, c := range label {
		digit := base
		switch {
		case '0' <= c && c <= '9':
			digit = int(c - '0')
		case 'a' <= c && c <= 'f':
			digit = int(c-'a') + 10
		}
		number = number*base + digit
		if digit >= base || number > most || i > 0 && number < base {
			return 0, false
		}
	}
	return byte(number), len(label) > 0 //nolint:gosec // at most 255
}

// answerReverse answers a question for a name of a zone of addresses. Names above
// addresses all exist, whether or not addresses below have names: servers that ask
// label by label (RFC 9156) come to the address itself. What is held as a name of
// its own exists as well.
func (z *Zone) answerReverse(at place, held bool, question dns.Question) Reply {
	if at.top {
		if reply, of := z.ofApex(question); of {
			return reply
		}
	}
	switch {
	case at.strange && !held:
		return z.negative(dns.RcodeNameError, at.zone)
	case at.strange:
		return z.negative(dns.RcodeSuccess, at.zone)
	case !at.prefix.IsSingleIP():
		return z.negative(dns.RcodeSuccess, at.zone)
	}
	told, ttl := z.pointedAt(at.prefix.Addr())
	switch {
	case told != "" && question.Qtype == dns.TypePTR:
		header := dns.RR_Header{Name: question.Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: ttl}
		return Reply{Authoritative: true, Answer: []dns.RR{&dns.PTR{Hdr: header, Ptr: told}}}
	case told != "" || at.top || held:
		return z.negative(dns.RcodeSuccess, at.zone)
	case z.unfinished.Load():
		return Reply{Rcode: dns.RcodeServerFailure}
	}
	return z.negative(dns.RcodeNameError, at.zone)
}

// pointedAt is the name that is told of an address and its TTL, "" if none is.
func (z *Zone) pointedAt(addr netip.Addr) (told string, ttl uint32) {
	key := addr.As16()
	p := z.pointers.get(key[:])
	if p == nil {
		return "", 0
	}
	for n := p.name.Load(); n != nil; {
		if a := n.answer.Load(); a != nil {
			return nameText(n.wire), a.ttl
		}
		// The name has gone since, and the address may be another's.
		now := p.name.Load()
		if now == n {
			break
		}
		n = now
	}
	return "", 0
}
