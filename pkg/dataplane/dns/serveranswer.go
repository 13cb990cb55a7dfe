package dns

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// arrival is a packet and how it came.
type arrival struct {
	packet []byte
	proto  protocol
	client netip.Addr // without zone
	at     time.Time
	count  *counters
}

// forwarding is a question that others have to answer.
type forwarding struct {
	arrival
	query query
}

// serves tells whether a client's questions are answered now. At the address of a
// link those of that link are clients as well: they send from addresses of the link.
func (s *Server) serves(client netip.Addr, at *socket, now time.Time, count *counters) bool {
	ofLink := at.index != 0 && client.Is6() && client.IsLinkLocalUnicast()
	if !ofLink && !slices.ContainsFunc(*s.clients.Load(), func(p netip.Prefix) bool { return p.Contains(client) }) {
		count.drop(dropClient)
		return false
	}
	if !s.limits.take(client, now) {
		count.drop(dropRate)
		return false
	}
	return true
}

// clientOf is an address as prefixes and limits know it.
func clientOf(addr netip.Addr) netip.Addr {
	return addr.Unmap().WithZone("")
}

// answer answers a packet in use.out, unless nothing may be answered or others have
// to be asked first. A panic of the zone or of a library costs this packet alone.
func (s *Server) answer(a arrival, use *scratch) (reply []byte, others *forwarding) {
	var q query
	var rcode int
	out := use.out[:0]
	defer func() {
		if fault := recover(); fault != nil {
			reply, others = s.panicked(a, &q, out, fault), nil
		}
	}()
	q, rcode = readQuery(a.packet)
	switch rcode {
	case noAnswer:
		a.count.drop(dropMalformed)
		return nil, nil
	case dns.RcodeSuccess:
	default:
		return s.fail(a, &q, out, rcode), nil
	}
	if reply := s.answerAddresses(&q, use, a.proto); reply != nil {
		a.count.answered(a.proto, q.qtype, dns.RcodeSuccess, false, time.Since(a.at))
		return reply, nil
	}
	question, err := q.question()
	if err != nil {
		return s.fail(a, &q, out, dns.RcodeFormatError), nil
	}
	found, ours := s.lookUp(question)
	switch {
	case ours:
	case s.config.Forward == nil:
		return s.fail(a, &q, out, dns.RcodeRefused), nil
	case q.qtype == dns.TypeANY:
		found = Reply{Answer: []dns.RR{anyAnswer(question.Name)}}
	default:
		return nil, &forwarding{arrival: a, query: q}
	}
	bits := s.recursion()
	if found.Authoritative {
		bits |= bitAA
	}
	m := dns.Msg{Answer: found.Answer, Ns: found.Ns}
	m.Rcode = found.Rcode
	reply, err = q.appendReply(out, bits, &m, a.proto)
	if err != nil {
		s.config.Log.Warn("an answer of the zone cannot be written", "name", question.Name, "err", err)
		return s.fail(a, &q, out, dns.RcodeServerFailure), nil
	}
	a.count.answered(a.proto, q.qtype, found.Rcode, false, time.Since(a.at))
	return reply, nil
}

// anyTTL is what RFC 8482, section 4.2, calls long; ours change sooner.
const anyTTL = 5

// anyAnswer is all that is told to who asks for everything (RFC 8482).
func anyAnswer(name string) dns.RR {
	return &dns.HINFO{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeHINFO, Class: dns.ClassINET, Ttl: anyTTL}, Cpu: "RFC8482"}
}

// lookUp asks the zone. Whoever wants everything is told whether there is the
// name, and no more (RFC 8482).
func (s *Server) lookUp(question dns.Question) (Reply, bool) {
	if question.Qtype != dns.TypeANY {
		return s.zone.Answer(question)
	}
	question.Qtype = dns.TypeHINFO // which the zone never has
	found, ours := s.zone.Answer(question)
	if ours && found.Rcode == dns.RcodeSuccess && len(found.Answer) == 0 {
		found.Answer, found.Ns = []dns.RR{anyAnswer(question.Name)}, nil
	}
	return found, ours
}

// recursion is the bit that tells whether others are asked.
func (s *Server) recursion() uint16 {
	if s.config.Forward == nil {
		return 0
	}
	return bitRA
}

// fail answers with an error alone.
func (s *Server) fail(a arrival, q *query, out []byte, rcode int) []byte {
	a.count.answered(a.proto, q.qtype, rcode, false, time.Since(a.at))
	return q.appendError(out, s.recursion(), rcode)
}

// panicked answers what could not be answered otherwise.
func (s *Server) panicked(a arrival, q *query, out []byte, fault any) []byte {
	a.count.drop(dropPanic)
	s.config.Log.Error("answering a question panicked", "client", a.client, "fault", fault)
	if q.packet == nil { // it may be no question at all
		return nil
	}
	return s.fail(a, q, out, dns.RcodeServerFailure)
}

// forward has others answer, in a goroutine that counts as work, and sends what
// they say. What is known needs no place among those who wait, so that a client
// whose places wait for a dead upstream still gets it. If too many wait already, it
// sends at once that there is no answer.
func (s *Server) forward(ctx context.Context, f *forwarding, work interface{ Go(func()) }, send func([]byte)) {
	if reply := s.known(f); reply != nil {
		send(reply)
		return
	}
	if !s.forwards.enter(f.client) {
		send(s.fail(f.arrival, &f.query, nil, dns.RcodeServerFailure))
		return
	}
	f.packet = slices.Clone(f.packet) // the next one comes into the same buffer
	f.query.packet = f.packet
	work.Go(func() {
		defer s.forwards.leave(f.client)
		send(s.exchange(ctx, f))
	})
}

// known is the answer that nobody has to be asked for, nil if there is none.
func (s *Server) known(f *forwarding) []byte {
	return s.relay(f, func(question *dns.Msg) *dns.Msg { return s.config.Forward.Known(question, f.proto == tcp) })
}

// exchange is the answer of others.
func (s *Server) exchange(ctx context.Context, f *forwarding) []byte {
	return s.relay(f, func(question *dns.Msg) *dns.Msg {
		if answer := s.config.Forward.Exchange(ctx, question, f.proto == tcp); answer != nil {
			return answer
		}
		return &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}}
	})
}

// relay writes what somebody else answers, nothing if that is nil.
func (s *Server) relay(f *forwarding, ask func(question *dns.Msg) *dns.Msg) (reply []byte) {
	defer func() {
		if fault := recover(); fault != nil {
			reply = s.panicked(f.arrival, &f.query, nil, fault)
		}
	}()
	question, err := f.query.message()
	if err != nil {
		return s.fail(f.arrival, &f.query, nil, dns.RcodeFormatError)
	}
	answer := ask(question)
	if answer == nil {
		return nil
	}
	rcode := answer.Rcode
	reply, err = f.query.appendReply(nil, s.recursion(), answer, f.proto)
	if err != nil { // records that cannot be written, or a code that needs EDNS
		rcode = dns.RcodeServerFailure
		reply = f.query.appendError(nil, s.recursion(), rcode)
	}
	f.count.answered(f.proto, f.query.qtype, rcode, true, time.Since(f.at))
	return reply
}
