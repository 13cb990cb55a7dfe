package dns

import (
	"encoding/binary"
	"slices"

	"github.com/miekg/dns"
)

const (
	headerSize   = 12
	questionTail = 4 // type and class
	// recordTail is what follows a record's name: type, class, TTL and the length of its data.
	recordTail = 10
	// optSize is an OPT record without options.
	optSize = 1 + recordTail
	// maxTCP is what the length before a message can say.
	maxTCP = 65535

	// ednsSize is what we take by UDP, and the most we send by it: it fits the
	// smallest MTU of IPv6 without fragments (DNS flag day 2020).
	ednsSize = 1232
	// plainSize is what a client without EDNS takes by UDP.
	plainSize = 512
)

// The bits of the header's second field.
const (
	bitQR = 1 << 15
	bitAA = 1 << 10
	bitTC = 1 << 9
	bitRD = 1 << 8
	bitRA = 1 << 7
	bitAD = 1 << 5
	bitCD = 1 << 4

	opcodeMask = 0xf << 11
	bitDO      = 1 << 15 // in the TTL field of an OPT record
)

// noAnswer stands in for a response code where nothing may be sent back.
const noAnswer = -1

// query is a question as it came. Its bytes belong to the packet.
type query struct {
	packet []byte
	// end is where the question section does, 0 if it could not be read.
	end          int
	bits         uint16
	qtype, class uint16
	// opt tells whether the client has EDNS; do and size are what it said there.
	opt, do bool
	version uint8
	size    uint16
}

// readQuery reads a packet. The code is RcodeSuccess if its question may be
// looked at, noAnswer if it has to be dropped, else the error to answer with.
// It follows no compression pointers: a question has nothing to point to, and
// the names of other records do not matter. It does not allocate.
func readQuery(packet []byte) (query, int) {
	q := query{packet: packet}
	if len(packet) < headerSize {
		return q, noAnswer
	}
	q.bits = binary.BigEndian.Uint16(packet[2:])
	switch {
	case q.bits&bitQR != 0:
		return q, noAnswer
	case q.bits&opcodeMask != 0:
		return q, dns.RcodeNotImplemented
	case q.bits&bitTC != 0 || binary.BigEndian.Uint16(packet[4:]) != 1:
		return q, dns.RcodeFormatError
	}
	end, ok := skipLabels(packet, headerSize)
	if !ok || len(packet)-end < questionTail {
		return q, dns.RcodeFormatError
	}
	q.qtype, q.class = binary.BigEndian.Uint16(packet[end:]), binary.BigEndian.Uint16(packet[end+2:])
	q.end = end + questionTail
	if !q.readRecords() {
		return q, dns.RcodeFormatError
	}
	return q, q.check()
}

// check finds what we do not answer, whatever the name.
func (q *query) check() int {
	switch {
	case q.version > 0:
		return dns.RcodeBadVers
	case q.class != dns.ClassINET:
		return dns.RcodeRefused
	case q.qtype == dns.TypeNone || q.qtype == dns.TypeOPT:
		return dns.RcodeFormatError
	case q.qtype >= firstMetaType && q.qtype < dns.TypeANY:
		return dns.RcodeRefused
	}
	return dns.RcodeSuccess
}

// firstMetaType begins the range in which only ANY asks for records (RFC 6895, section 3.1).
const firstMetaType = 128

// readRecords walks over what follows the question, of which only OPT matters.
func (q *query) readRecords() bool {
	before := int(binary.BigEndian.Uint16(q.packet[6:])) + int(binary.BigEndian.Uint16(q.packet[8:]))
	all := before + int(binary.BigEndian.Uint16(q.packet[10:]))
	offset := q.end
	for i := range all { // each takes 11 bytes of the packet or ends the loop
		start := offset
		end, ok := skipName(q.packet, offset)
		if !ok || len(q.packet)-end < recordTail {
			return false
		}
		data := end + recordTail
		offset = data + int(binary.BigEndian.Uint16(q.packet[data-2:]))
		if offset > len(q.packet) {
			return false
		}
		if binary.BigEndian.Uint16(q.packet[end:]) != dns.TypeOPT {
			continue
		}
		// One, at the root, in the last section (RFC 6891, section 6.1.1).
		if q.opt || i < before || end != start+1 || !wholeOptions(q.packet[data:offset]) {
			return false
		}
		ttl := binary.BigEndian.Uint32(q.packet[end+4:])
		q.opt, q.do, q.version = true, ttl&bitDO != 0, uint8(ttl>>16)
		q.size = binary.BigEndian.Uint16(q.packet[end+2:])
	}
	return offset == len(q.packet)
}

// wholeOptions tells whether the data of an OPT record is options and nothing else.
func wholeOptions(data []byte) bool {
	const optionHeader = 4
	for len(data) >= optionHeader {
		size := optionHeader + int(binary.BigEndian.Uint16(data[2:]))
		if size > len(data) {
			return false
		}
		data = data[size:]
	}
	return len(data) == 0
}

// skipLabels returns the end of a name that is written out.
func skipLabels(packet []byte, offset int) (int, bool) {
	for start := offset; offset < len(packet); {
		size := int(packet[offset])
		offset += 1 + size
		if size > maxLabel || offset-start > maxName {
			return 0, false
		}
		if size == 0 {
			return offset, true
		}
	}
	return 0, false
}

// skipName returns the end of a name that may end with a pointer, which is not followed.
func skipName(packet []byte, offset int) (int, bool) {
	const pointer = 0xc0
	for start := offset; offset < len(packet) && offset-start < maxName; {
		switch size := int(packet[offset]); {
		case size == 0:
			return offset + 1, true
		case size >= pointer:
			return offset + 2, offset+2 <= len(packet)
		case size > pointer>>2:
			return 0, false
		default:
			offset += 1 + size
		}
	}
	return 0, false
}

// name is the question's, as it is on the wire.
func (q *query) name() []byte { return q.packet[headerSize : q.end-questionTail] }

// question is what a Zone is asked.
func (q *query) question() (dns.Question, error) {
	name, _, err := dns.UnpackDomainName(q.packet, headerSize)
	return dns.Question{Name: name, Qtype: q.qtype, Qclass: q.class}, err
}

// limit is how many bytes the answer may have.
func (q *query) limit(proto protocol) int {
	switch {
	case proto == tcp:
		return maxTCP
	case q.opt:
		return int(min(max(q.size, plainSize), ednsSize))
	}
	return plainSize
}

// appendHeader begins an answer: it repeats ID, opcode and what of the bits and
// the question has to be repeated. It has no records yet.
func (q *query) appendHeader(out []byte, bits uint16, rcode int) []byte {
	const rcodeMask = 0xf
	bits |= bitQR | q.bits&(opcodeMask|bitRD|bitCD) | uint16(rcode&rcodeMask)
	out = append(out, q.packet[0], q.packet[1], byte(bits>>8), byte(bits), 0, byte(min(q.end, 1)), 0, 0, 0, 0, 0, 0)
	if q.end > 0 {
		out = append(out, q.packet[headerSize:q.end]...)
	}
	return out
}

// appendOPT answers the client's OPT record, if there is one, with ours. The
// message begins where out does.
func (q *query) appendOPT(out []byte, rcode int) []byte {
	if !q.opt {
		return out
	}
	out[11]++ // ARCOUNT
	flags := byte(0)
	if q.do {
		flags = bitDO >> 8
	}
	return append(out, 0, 0, byte(dns.TypeOPT), ednsSize>>8, ednsSize&0xff, byte(rcode>>4), 0, flags, 0, 0, 0)
}

// appendError answers with nothing but a code. It is never longer than the question.
func (q *query) appendError(out []byte, bits uint16, rcode int) []byte {
	return q.appendOPT(q.appendHeader(out, bits, rcode), rcode)
}

// appendReply answers with the records and the code of m. What does not fit is
// left out: first what the client can do without, then with the bit that has
// it ask again by TCP (RFC 2181, section 9).
func (q *query) appendReply(out []byte, bits uint16, m *dns.Msg, proto protocol) ([]byte, error) {
	question, err := q.question()
	if err != nil {
		return nil, err
	}
	reply := dns.Msg{Question: []dns.Question{question}, Answer: m.Answer, Ns: m.Ns, Extra: withoutOPT(m.Extra), Compress: true}
	reply.Rcode = m.Rcode
	if q.opt {
		reply.SetEdns0(ednsSize, q.do)
		reply.IsEdns0().Option = reasons(m)
	}
	if m.AuthenticatedData && (q.do || q.bits&bitAD != 0) { // others may not know it (RFC 6840, section 5.8)
		bits |= bitAD
	}
	wire, err := packWithin(&reply, q.limit(proto), out)
	if err != nil {
		return nil, err
	}
	// By TCP there is nothing more to be had, but a part is not to be taken for the whole.
	if reply.Truncated || m.Truncated {
		bits |= bitTC
	}
	// The bits and the question are written by the same code for all answers; the
	// question has the same length, and the client's letters.
	counts := [6]byte(wire[6:headerSize])
	copy(q.appendHeader(wire[:0], bits, m.Rcode)[6:headerSize], counts[:])
	return wire, nil
}

// packWithin packs a message and leaves out what limit does not allow.
func packWithin(m *dns.Msg, limit int, out []byte) ([]byte, error) {
	pack := func() ([]byte, error) { return m.PackBuffer(out[:cap(out)]) }
	// More records cannot be packed whole, nor are they worth the try.
	const most = maxTCP / (2 + recordTail)
	if len(m.Answer)+len(m.Ns)+len(m.Extra) <= most {
		wire, err := pack()
		if err != nil || len(wire) <= limit {
			return wire, err
		}
	}
	opt := m.IsEdns0()
	m.Extra = nil
	if opt != nil {
		m.Extra = []dns.RR{opt}
	}
	if len(m.Answer) > 0 && !slices.ContainsFunc(m.Ns, proves) {
		m.Ns = nil
	}
	m.Truncate(limit)
	return pack()
}

// proves tells whether a record of the authority section is part of the answer: it
// proves it, or says for how long there is nothing at the end of aliases.
func proves(rr dns.RR) bool {
	switch rr.Header().Rrtype {
	case dns.TypeSOA, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeRRSIG:
		return true
	}
	return false
}

// reasons are the options of an answer that say why it is none (RFC 8914).
func reasons(m *dns.Msg) (options []dns.EDNS0) {
	opt := m.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, option := range opt.Option {
		if option.Option() == dns.EDNS0EDE {
			options = append(options, option)
		}
	}
	return options
}

func withoutOPT(records []dns.RR) []dns.RR {
	return slices.DeleteFunc(slices.Clone(records), func(r dns.RR) bool { return r.Header().Rrtype == dns.TypeOPT })
}

// message is the question as others are asked it.
func (q *query) message() (*dns.Msg, error) {
	question, err := q.question()
	if err != nil {
		return nil, err
	}
	m := &dns.Msg{Question: []dns.Question{question}}
	m.Id = binary.BigEndian.Uint16(q.packet)
	m.RecursionDesired, m.CheckingDisabled = q.bits&bitRD != 0, q.bits&bitCD != 0
	m.AuthenticatedData = q.bits&bitAD != 0 // wants to know whether the answer is proved (RFC 6840, section 5.7)
	if q.opt {
		m.SetEdns0(ednsSize, q.do)
	}
	return m, nil
}
