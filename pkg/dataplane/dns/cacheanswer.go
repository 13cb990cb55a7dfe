package dns

import (
	"math"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// prepare makes what an upstream said fit to be told to others, and returns for
// how many seconds, 0 if only now.
func prepare(key cacheKey, answer *dns.Msg) uint32 {
	for _, section := range []*[]dns.RR{&answer.Answer, &answer.Ns, &answer.Extra} {
		*section = slices.DeleteFunc(*section, betweenServers)
	}
	ttl, proved := uint32(math.MaxUint32), false
	for _, section := range [][]dns.RR{answer.Answer, answer.Ns, answer.Extra} {
		for _, rr := range section {
			header := rr.Header()
			header.Ttl = boundTTL(header.Ttl, positiveLimit)
			if soa, ok := rr.(*dns.SOA); ok && negative(key, answer) {
				// RFC 2308, section 5. Only this makes a negative answer one to keep.
				header.Ttl = min(header.Ttl, boundTTL(soa.Minttl, negativeLimit))
				proved = true
			}
			ttl = min(ttl, header.Ttl)
		}
	}
	if negative(key, answer) && !proved || ttl == math.MaxUint32 {
		return 0
	}
	return ttl
}

// betweenServers tells whether a record is about the exchange of two servers, and
// so nothing to tell others.
func betweenServers(rr dns.RR) bool {
	switch rr.Header().Rrtype {
	case dns.TypeOPT, dns.TypeTSIG, dns.TypeSIG:
		return true
	}
	return false
}

// boundTTL reads a TTL as RFC 2181, section 8, wants it.
func boundTTL(ttl uint32, limit time.Duration) uint32 {
	if ttl > math.MaxInt32 {
		return 0
	}
	return min(ttl, uint32(limit/time.Second))
}

// negative tells whether an answer says that there is no such thing: no such name,
// or nothing of this type, be it at the end of aliases.
func negative(key cacheKey, answer *dns.Msg) bool {
	return answer.Rcode == dns.RcodeNameError || !slices.ContainsFunc(answer.Answer, func(rr dns.RR) bool {
		return rr.Header().Rrtype == key.qtype || key.qtype == dns.TypeANY
	})
}

// outcome is what is to be told about a question.
type outcome struct {
	msg *dns.Msg // is shared and so never changed
	// age is how long ago it was said.
	age time.Duration
	// stale means that it should have been asked for again, but nobody answers.
	stale bool
	// why is the reason of a failure (RFC 8914), empty if there is nothing to say.
	why dns.EDNS0_EDE
}

// failed is an outcome without records.
func failed(rcode int, why dns.EDNS0_EDE) outcome {
	return outcome{msg: &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: rcode, RecursionAvailable: rcode != dns.RcodeRefused}}, why: why}
}

// reply is the outcome as the answer to one of those who asked.
func (o outcome) reply(question *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(question)
	opt := question.IsEdns0()
	reply.Rcode = o.msg.Rcode
	reply.RecursionAvailable = o.msg.RecursionAvailable
	reply.Truncated = o.msg.Truncated
	// Whoever does not ask for this may not know it (RFC 6840, section 5.8).
	reply.AuthenticatedData = o.msg.AuthenticatedData && (question.AuthenticatedData || opt != nil && opt.Do())
	reply.Compress = true
	reply.Answer = o.records(o.msg.Answer)
	reply.Ns = o.records(o.msg.Ns)
	reply.Extra = o.records(o.msg.Extra)
	if why := o.reason(); why != (dns.EDNS0_EDE{}) && opt != nil {
		reply.SetEdns0(ednsSize, opt.Do())
		said := reply.IsEdns0()
		said.Option = append(said.Option, &why)
	}
	return reply
}

// records are copies that say for how long they may be kept from now on.
func (o outcome) records(from []dns.RR) []dns.RR {
	if len(from) == 0 {
		return nil
	}
	records := make([]dns.RR, len(from))
	for i, rr := range from {
		records[i] = dns.Copy(rr)
		header := records[i].Header()
		switch {
		case o.stale:
			header.Ttl = staleTTL
		default:
			header.Ttl -= min(header.Ttl, uint32(o.age/time.Second))
		}
	}
	return records
}

// reason says more than the response code.
func (o outcome) reason() dns.EDNS0_EDE {
	switch {
	case o.stale && o.msg.Rcode == dns.RcodeNameError:
		return dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeStaleNXDOMAINAnswer}
	case o.stale:
		return dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeStaleAnswer}
	}
	return o.why
}
