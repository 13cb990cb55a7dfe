package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/semaphore"
)

const (
	// tries is how often a question is asked at least, each time at the next upstream,
	// and mostTries how often if there are as many upstreams.
	tries     = 2
	mostTries = 3
	// triesTimeout is for all of them. Each has the same part of it, by TCP too if it
	// comes to that.
	triesTimeout = 4 * time.Second
	// avoidFor is how long an upstream that was not there is asked after the others.
	avoidFor = 10 * time.Second
	// awayAfter is how many questions in a row go without answer before an upstream is
	// taken to be away. One or two may be about names that it looks for in vain.
	awayAfter = 3
	// udpBuffer takes more than ednsSize from those that do not care.
	udpBuffer = 4096
	// answerBytes and answerRecords bound what is taken of an upstream. Whoever owns a
	// name can have it say 64 KiB, with names that unfold to many times that, and ask
	// for them again and again: every answer costs what its records do.
	answerBytes   = 16 << 10
	answerRecords = 500
	// streamLimit bounds the answers that are fetched by TCP at a time.
	streamLimit = 8
)

var (
	errNoUpstream = errors.New("no upstream")
	errSilent     = errors.New("none is there")
	errForeign    = errors.New("not the answer to this question")
	errTooLarge   = errors.New("answer is too large")
	// errNoEDNS means that an upstream does not know EDNS (RFC 6891, section 7).
	errNoEDNS = errors.New("answers that it does not know EDNS")
)

// upstream is a server that is asked.
type upstream struct {
	addr netip.AddrPort
	// streams has a place for each answer that is fetched by TCP, from any of them.
	streams *semaphore.Weighted
	// away is when it last was not there, in nanoseconds since 1970.
	away atomic.Int64
	// silent is how many questions have gone without answer since the last one that had one.
	silent atomic.Int32
}

func (u *upstream) is(addr netip.AddrPort) bool { return u.addr == addr }

// order is whom to ask in turn: those that were not there lately come last, and
// our own listeners are left out.
func (r *resolver) order(own func(netip.AddrPort) bool) []*upstream {
	var there, away []*upstream
	for _, u := range r.upstreams {
		switch {
		case own(u.addr):
		case time.Since(time.Unix(0, u.away.Load())) < avoidFor:
			away = append(away, u)
		default:
			there = append(there, u)
		}
	}
	return append(there, away...)
}

// askInTurn asks until there is an answer that may be passed on, NOERROR or
// NXDOMAIN. The error is errSilent too if nobody said anything.
func askInTurn(ctx context.Context, key cacheKey, order []*upstream, failures *atomic.Uint64) (*dns.Msg, error) {
	if len(order) == 0 {
		return nil, errNoUpstream
	}
	faults, silent := error(nil), true
	count := max(tries, min(len(order), mostTries))
	for next, try := 0, 0; try < count; try++ {
		u := order[next%len(order)]
		answer, err := u.ask(ctx, triesTimeout/time.Duration(count), key.query(!errors.Is(faults, errNoEDNS)), key.whole)
		if err == nil {
			return answer, nil
		}
		failures.Add(1)
		silent = silent && answer == nil
		faults = errors.Join(faults, fmt.Errorf("ask %v: %w", u.addr, err))
		// The next one has no other.
		if errors.Is(err, errTooLarge) {
			break
		}
		// One that does not know EDNS gets the next try too, without.
		if !errors.Is(err, errNoEDNS) {
			next++
		}
	}
	if silent {
		faults = errors.Join(faults, errSilent)
	}
	return nil, faults
}

// reasonOf is what a client is told of an error of askInTurn.
func reasonOf(err error) dns.EDNS0_EDE {
	switch {
	case errors.Is(err, errTooLarge):
		return dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeOther, ExtraText: "answer too large"}
	case errors.Is(err, errSilent):
		return dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNoReachableAuthority}
	}
	return dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNetworkError}
}

// ask tries once. What does not fit into UDP comes without records unless the whole
// is wanted. With an error there is an answer too if one came, of whatever kind.
func (u *upstream) ask(ctx context.Context, timeout time.Duration, query *dns.Msg, whole bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := exchange(ctx, "udp", u.addr, query)
	if err != nil {
		u.missed(err)
		return nil, err
	}
	u.silent.Store(0)
	u.away.Store(0)
	switch {
	case answer.Truncated && whole:
		all, err := u.fetch(ctx, query)
		if err != nil {
			return answer, fmt.Errorf("by TCP: %w", err)
		}
		answer = all
	case answer.Truncated && (answer.Rcode == dns.RcodeSuccess || answer.Rcode == dns.RcodeNameError):
		answer.Answer, answer.Ns, answer.Extra = nil, nil, nil
		return answer, nil
	}
	return answer, passable(answer, query)
}

// missed notes that there was no answer. That nobody listens, or that there is no
// way to it, is known at once.
func (u *upstream) missed(err error) {
	if silent := u.silent.Add(1); silent >= awayAfter || !errors.Is(err, os.ErrDeadlineExceeded) {
		u.away.Store(time.Now().UnixNano())
	}
}

// fetch asks by TCP when there is a place.
func (u *upstream) fetch(ctx context.Context, query *dns.Msg) (*dns.Msg, error) {
	if err := u.streams.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for one of %d places: %w", streamLimit, err)
	}
	defer u.streams.Release(1)
	return exchange(ctx, "tcp", u.addr, query)
}

// passable tells whether an answer is one to pass on.
func passable(answer, query *dns.Msg) error {
	switch rcode := answer.Rcode; {
	case answer.Truncated:
		return errors.New("answer is cut off")
	case rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError:
		return nil
	case (rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented) && query.IsEdns0() != nil && answer.IsEdns0() == nil:
		return errNoEDNS
	default:
		return fmt.Errorf("answers %s", rcodeText(rcode))
	}
}

func rcodeText(rcode int) string {
	if text, ok := dns.RcodeToString[rcode]; ok {
		return text
	}
	return fmt.Sprint("response code ", rcode)
}

// exchange sends a question from a port of its own, and waits for the answer to it
// until ctx ends. Whatever else comes is passed over: it may be what somebody
// sends who wants to be taken for the server.
func exchange(ctx context.Context, network string, addr netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	// A connected socket has the kernel drop what other addresses send.
	inner, err := new(net.Dialer).DialContext(ctx, network, addr.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = inner.Close() }() // nothing was promised to be sent
	defer context.AfterFunc(ctx, func() { _ = inner.SetDeadline(time.Unix(1, 0)) })()
	conn := &dns.Conn{Conn: inner, UDPSize: udpBuffer}
	if err := conn.WriteMsg(query); err != nil {
		return nil, err
	}
	for {
		wire, err := conn.ReadMsgHeader(nil)
		if errors.Is(err, dns.ErrShortRead) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if answer, err := accept(query, wire); err == nil || errors.Is(err, errTooLarge) {
			return answer, err
		}
	}
}

// accept returns what wire holds if it is an answer to query. One that is
// truncated need not be whole, and one that is too large is not read.
func accept(query *dns.Msg, wire []byte) (*dns.Msg, error) {
	if tooLarge(wire) {
		if binary.BigEndian.Uint16(wire) != query.Id {
			return nil, errForeign
		}
		return nil, errTooLarge
	}
	answer := new(dns.Msg)
	err := answer.Unpack(wire)
	switch {
	case !answer.Response || answer.Id != query.Id || answer.Opcode != query.Opcode:
		return nil, errForeign
	case err == nil && len(answer.Question) == 0 && passable(answer, query) != nil:
		// Servers that refuse, or do not understand, may leave the question out.
		return answer, nil
	case len(answer.Question) != 1 || !sameQuestion(answer.Question[0], query.Question[0]):
		return nil, errForeign
	case err != nil && !answer.Truncated:
		return nil, fmt.Errorf("read answer: %w", err)
	case answer.Len() > maxTCP: // with all names unfolded
		return nil, errTooLarge
	}
	return answer, nil
}

// tooLarge tells whether a message has more than we take, by its length and what
// its header says.
func tooLarge(wire []byte) bool {
	if len(wire) < headerSize {
		return false
	}
	records := 0
	for at := 6; at < headerSize; at += 2 {
		records += int(binary.BigEndian.Uint16(wire[at:]))
	}
	return len(wire) > answerBytes || records > answerRecords
}

// sameQuestion leaves the case of letters open, which some servers change.
func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
