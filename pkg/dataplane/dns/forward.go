package dns

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
)

const (
	// answerTimeout is how long the answer to a question takes at most. It is above
	// what all tries take together.
	answerTimeout = 4500 * time.Millisecond
	// flightLimit bounds the questions that upstreams are asked at a time, each of
	// which costs a socket or two. Those above it fail at once.
	flightLimit = 1000
)

// ForwarderConfig says what is fixed for a Forwarder.
type ForwarderConfig struct {
	// Upstreams are asked in this order; none takes the host's.
	Upstreams []netip.AddrPort
	// Roots are where the host's files may be, best first: "/", or in a container
	// where some of the host's folders are mounted. None is "/".
	Roots []string
	// Own tells whether an address is one of our own listeners, which is never asked. nil is never.
	Own func(netip.AddrPort) bool
	// Log receives what an operator should know.
	Log *slog.Logger
}

// Forwarder asks other servers, and remembers what they said. Make one with
// NewForwarder. Safe for concurrent use.
type Forwarder struct {
	config ForwarderConfig
	host   *hostResolver

	// ctx is what questions are asked in: they outlive the one who asked first,
	// as others may wait for the same answer.
	ctx context.Context
	// stop ends ctx.
	stop    context.CancelFunc
	flights *semaphore.Weighted
	streams *semaphore.Weighted // see upstream

	resolver               atomic.Pointer[resolver]
	hits, misses, failures atomic.Uint64
}

// resolver is a set of upstreams and what they said. Another set is another
// resolver: what one network says of a name need not be what the next one says.
type resolver struct {
	upstreams []*upstream
	cache     *cache
	// asking joins those who want to know the same thing at the same time.
	asking singleflight.Group
}

// NewForwarder returns a forwarder that knows the upstreams of this moment.
func NewForwarder(config ForwarderConfig) *Forwarder {
	f := &Forwarder{config: config, flights: semaphore.NewWeighted(flightLimit), streams: semaphore.NewWeighted(streamLimit)}
	f.ctx, f.stop = context.WithCancel(context.Background())
	f.setUpstreams(config.Upstreams)
	if len(config.Upstreams) == 0 {
		f.host = newHostResolver(config.Roots, config.Log)
		f.refresh()
	}
	return f
}

// Run follows the host's configuration until ctx ends. After that every question
// that the cache does not know fails.
func (f *Forwarder) Run(ctx context.Context) error {
	if f.host != nil {
		f.host.follow(ctx, f.refresh)
	}
	<-ctx.Done()
	f.stop()
	// All of it is to be had when the last question has ended, and never again.
	return f.flights.Acquire(context.WithoutCancel(ctx), flightLimit)
}

// refresh takes over the host's upstreams as they are now.
func (f *Forwarder) refresh() {
	addrs, err := f.host.read()
	if err != nil {
		return
	}
	f.setUpstreams(addrs)
}

// setUpstreams asks these from now on.
func (f *Forwarder) setUpstreams(addrs []netip.AddrPort) {
	before := f.resolver.Load()
	if before != nil && slices.EqualFunc(before.upstreams, addrs, (*upstream).is) {
		return
	}
	next := &resolver{cache: newCache()}
	for _, addr := range addrs {
		next.upstreams = append(next.upstreams, &upstream{addr: addr, streams: f.streams})
	}
	f.resolver.Store(next)
	if before != nil {
		f.config.Log.Info("names are asked for at these servers", "op", "dns", "upstreams", addrs)
	}
}

// Upstreams are those that are asked, in order.
func (f *Forwarder) Upstreams() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, u := range f.resolver.Load().upstreams {
		if !f.own(u.addr) {
			addrs = append(addrs, u.addr)
		}
	}
	return addrs
}

func (f *Forwarder) own(addr netip.AddrPort) bool {
	return f.config.Own != nil && f.config.Own(addr)
}

// Exchange implements Exchanger. The answer is the caller's. It has an OPT record
// only if it has something to say by it (RFC 8914) and the question has one too.
func (f *Forwarder) Exchange(ctx context.Context, question *dns.Msg, whole bool) *dns.Msg {
	if rcode := unfit(question); rcode != dns.RcodeSuccess {
		return new(dns.Msg).SetRcode(question, rcode)
	}
	if known := f.Known(question, whole); known != nil {
		return known
	}
	f.misses.Add(1)
	r, key := f.resolver.Load(), keyOf(question, whole)
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	// The one that asks runs on its own, so that whoever gives up takes nothing
	// from the others who wait.
	said := r.asking.DoChan(key.String(), func() (any, error) { return f.ask(r, key), nil })
	select {
	case result := <-said:
		if said, ok := result.Val.(outcome); ok {
			return said.reply(question)
		}
	case <-ctx.Done():
	}
	return failed(dns.RcodeServerFailure, dns.EDNS0_EDE{}).reply(question)
}

// Known implements Exchanger by the cache.
func (f *Forwarder) Known(question *dns.Msg, whole bool) *dns.Msg {
	if unfit(question) != dns.RcodeSuccess {
		return nil
	}
	known, ok := f.resolver.Load().cache.get(keyOf(question, whole))
	if !ok {
		return nil
	}
	f.hits.Add(1)
	return known.reply(question)
}

// unfit is how a question that cannot be passed on is answered.
func unfit(question *dns.Msg) int {
	switch {
	case question.Opcode != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case question.Response || len(question.Question) != 1:
		return dns.RcodeFormatError
	}
	switch question.Question[0].Qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		// A zone is not one answer, and nothing for a cache.
		return dns.RcodeRefused
	}
	return dns.RcodeSuccess
}

// ask has upstreams answer, and the cache remember it.
func (f *Forwarder) ask(r *resolver, key cacheKey) (said outcome) {
	// What others send is not to end the node's network.
	defer func() {
		if fault := recover(); fault != nil {
			f.config.Log.Error("asking upstreams panicked", "op", "dns", "name", key.name, "fault", fault)
			said = failed(dns.RcodeServerFailure, dns.EDNS0_EDE{})
		}
	}()
	// The flight before this one may have landed since the cache was asked.
	if known, ok := r.cache.get(key); ok {
		return known
	}
	if !f.flights.TryAcquire(1) {
		return failed(dns.RcodeServerFailure, dns.EDNS0_EDE{})
	}
	defer f.flights.Release(1)
	answer, err := askInTurn(f.ctx, key, r.order(f.own), &f.failures)
	switch {
	case errors.Is(err, errNoUpstream):
		return failed(dns.RcodeRefused, dns.EDNS0_EDE{})
	case err != nil:
		f.config.Log.Debug("no upstream answers", "op", "dns", "name", key.name, "err", err)
		return r.cache.fail(key, reasonOf(err))
	}
	return r.cache.put(key, answer)
}

// ForwardStats is what a Forwarder counted.
type ForwardStats struct {
	// Hits and Misses are of the cache, Entries what it holds, Failures tries that an upstream did not answer well.
	Hits, Misses, Failures uint64
	Entries                int
}

// Stats is what was counted since the start.
func (f *Forwarder) Stats() ForwardStats {
	return ForwardStats{
		Hits:     f.hits.Load(),
		Misses:   f.misses.Load(),
		Failures: f.failures.Load(),
		Entries:  f.resolver.Load().cache.len(),
	}
}
