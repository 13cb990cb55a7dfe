package dns

import (
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	// apexTTL is how long others may keep what the zone says of itself, in time and seconds.
	apexTTL     = 30 * time.Second
	apexSeconds = uint32(apexTTL / time.Second)
	// hostmaster is the mailbox in SOA records, which nobody reads.
	hostmaster = "hostmaster"
)

// Lookup is Answer for what most questions are, addresses of a name that has them,
// without allocation. name is in wire format, in lower case, uncompressed, with the
// root's zero at its end: "\x03web\x07overlay\x05local\x00". The addresses of the
// family are appended to into, rotated, and addrs is into with them. found is false,
// and into as it was, if only Answer knows: the name is none of ours, has no such
// addresses, or more than into has room for, which is cap(into)-len(into).
func (z *Zone) Lookup(name []byte, ipv6 bool, into []netip.Addr) (addrs []netip.Addr, ttl uint32, found bool) {
	n, a := z.find(name)
	if a == nil {
		return into, 0, false
	}
	family := a.family(ipv6)
	if len(family) == 0 || len(family) > cap(into)-len(into) {
		return into, 0, false
	}
	first := z.turn(n, ipv6, len(family))
	for _, addr := range family[first:] {
		into = append(into, addr.netip())
	}
	for _, addr := range family[:first] {
		into = append(into, addr.netip())
	}
	return into, a.ttl, true
}

// Answer answers a question of class IN. ours is false if the zone is not the
// authority for its name.
func (z *Zone) Answer(question dns.Question) (reply Reply, ours bool) {
	var buffer [maxName]byte
	wire := questionName(&buffer, question.Name)
	if wire == nil {
		return Reply{}, false
	}
	n, a := z.find(wire)
	if a != nil && (question.Qtype == dns.TypeA || question.Qtype == dns.TypeAAAA) {
		if rrs := z.records(n, a, question); len(rrs) > 0 {
			return Reply{Authoritative: true, Answer: rrs}, true
		}
	}
	switch at, reversed := z.placeOf(wire); {
	case reversed:
		return z.answerReverse(at, a != nil, question), true
	case inside(wire, z.zone.wire):
		return z.answerOther(n, a, question), true
	case a != nil:
		// A zone of one name.
		if reply, of := z.ofApex(question); of {
			return reply, true
		}
		return z.negative(dns.RcodeSuccess, question.Name), true
	}
	return Reply{}, false
}

// ofApex answers what a zone's own name has that others have not, if it is asked for.
func (z *Zone) ofApex(question dns.Question) (reply Reply, of bool) {
	var record dns.RR
	switch question.Qtype {
	case dns.TypeSOA:
		record = z.soa(question.Name, apexSeconds)
	case dns.TypeNS:
		record = z.ns(question.Name)
	default:
		return Reply{}, false
	}
	return Reply{Authoritative: true, Answer: []dns.RR{record}}, true
}

// answerOther answers what asks for no addresses that there are, of a name in the
// zone, or of none if a is nil.
func (z *Zone) answerOther(n *name, a *answer, question dns.Question) Reply {
	if n == z.zone {
		if reply, of := z.ofApex(question); of {
			return reply
		}
	}
	switch {
	case n == z.zone, n == z.server, a != nil && a != z.nowhere:
		return z.negative(dns.RcodeSuccess, z.Name())
	case z.unfinished.Load():
		// A place above names may be a name as well.
		return Reply{Rcode: dns.RcodeServerFailure}
	case a != nil:
		return z.negative(dns.RcodeSuccess, z.Name())
	}
	return z.negative(dns.RcodeNameError, z.Name())
}

// find returns a name that exists and its answer, or nil.
func (z *Zone) find(wire []byte) (*name, *answer) {
	n := z.names.get(wire)
	if n == nil {
		return nil, nil
	}
	a := n.answer.Load()
	if a == nil {
		return nil, nil
	}
	return n, a
}

func (a *answer) family(ipv6 bool) []address {
	if ipv6 {
		return a.addrs[a.four:]
	}
	return a.addrs[:a.four]
}

// turn is which of the addresses is the first this time, and notes that they were
// asked for.
func (z *Zone) turn(n *name, ipv6 bool, addresses int) int {
	several := n.several.Load()
	if several == nil {
		return 0
	}
	now := time.Now().UnixNano()
	several.asked.Store(now)
	if now-z.asked.Load() > int64(askedWithin) {
		z.asked.Store(now)
	}
	return int((several.turns[boolInt(ipv6)].Add(1) - 1) % uint32(addresses)) //nolint:gosec // addresses are far fewer
}

// records are the addresses that are asked for, rotated.
func (z *Zone) records(n *name, a *answer, question dns.Question) []dns.RR {
	ipv6 := question.Qtype == dns.TypeAAAA
	family := a.family(ipv6)
	if len(family) == 0 {
		return nil
	}
	header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: a.ttl}
	first := z.turn(n, ipv6, len(family))
	rrs := make([]dns.RR, 0, len(family))
	for i := range family {
		addr := family[(first+i)%len(family)].netip().AsSlice()
		if ipv6 {
			rrs = append(rrs, &dns.AAAA{Hdr: header, AAAA: addr})
		} else {
			rrs = append(rrs, &dns.A{Hdr: header, A: addr})
		}
	}
	return rrs
}

// negative says that there is no such name, or nothing of the type, in a way that
// others may keep (RFC 2308, section 3).
func (z *Zone) negative(rcode int, authority string) Reply {
	soa := z.soa(authority, min(apexSeconds, seconds(z.config.NegativeTTL)))
	return Reply{Rcode: rcode, Authoritative: true, Ns: []dns.RR{soa}}
}

// soa is the record of the zone, or of one of those of addresses.
func (z *Zone) soa(authority string, ttl uint32) dns.RR {
	return &dns.SOA{
		Hdr:     dns.RR_Header{Name: authority, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:      nameText(z.server.wire),
		Mbox:    hostmaster + "." + z.Name(),
		Serial:  z.serial.tell(),
		Refresh: 7200, Retry: 1800, Expire: 86400,
		Minttl: seconds(z.config.NegativeTTL),
	}
}

func (z *Zone) ns(authority string) dns.RR {
	return &dns.NS{
		Hdr: dns.RR_Header{Name: authority, Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: apexSeconds},
		Ns:  nameText(z.server.wire),
	}
}

// inside tells whether a name is in a zone, or is the zone's.
func inside(wire []byte, zone string) bool {
	for len(wire) > len(zone) && wire[0] != 0 {
		wire = wire[1+int(wire[0]):]
	}
	return string(wire) == zone
}
