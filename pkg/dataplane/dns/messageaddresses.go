package dns

import (
	"encoding/binary"
	"net/netip"

	"github.com/miekg/dns"
)

// mostAddresses is how many addresses an answer may have that is written here;
// one with more is too long for UDP.
const mostAddresses = 80

// scratch is memory that a goroutine answers with, again and again.
type scratch struct {
	name  [maxName]byte
	addrs [mostAddresses]netip.Addr
	out   [packetSize]byte
}

// answerAddresses answers what most questions are, those for addresses of a
// name that has some, in a fifth of the time that the general way takes: without
// text and without allocation. It returns nil if it cannot.
func (s *Server) answerAddresses(q *query, use *scratch, proto protocol) []byte {
	if q.qtype != dns.TypeA && q.qtype != dns.TypeAAAA {
		return nil
	}
	name := appendLower(use.name[:0], q.name())
	addrs, ttl, found := s.zone.Lookup(name, q.qtype == dns.TypeAAAA, use.addrs[:0])
	if !found || !q.fits(len(addrs), proto) {
		return nil
	}
	out := q.appendHeader(use.out[:0], bitAA|s.recursion(), dns.RcodeSuccess)
	binary.BigEndian.PutUint16(out[6:], uint16(len(addrs))) // ANCOUNT
	for _, addr := range addrs {
		const nameOfQuestion = 0xc000 | headerSize
		out = binary.BigEndian.AppendUint16(out, nameOfQuestion)
		out = binary.BigEndian.AppendUint16(out, q.qtype)
		out = binary.BigEndian.AppendUint16(out, dns.ClassINET)
		out = binary.BigEndian.AppendUint32(out, ttl)
		if addr.Is4() {
			bytes := addr.As4()
			out = append(append(out, 0, byte(len(bytes))), bytes[:]...)
		} else {
			bytes := addr.As16()
			out = append(append(out, 0, byte(len(bytes))), bytes[:]...)
		}
	}
	return q.appendOPT(out, dns.RcodeSuccess)
}

// fits tells whether an answer with so many addresses is whole.
func (q *query) fits(addrs int, proto protocol) bool {
	const pointer, ipv4, ipv6 = 2, 4, 16
	size, each := q.end, pointer+recordTail+ipv4
	if q.qtype == dns.TypeAAAA {
		each = pointer + recordTail + ipv6
	}
	if q.opt {
		size += optSize
	}
	return size+addrs*each <= q.limit(proto)
}

// appendLower appends a name in wire format in lower case. Lengths of labels are
// less than any letter.
func appendLower(to, name []byte) []byte {
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		to = append(to, c)
	}
	return to
}
