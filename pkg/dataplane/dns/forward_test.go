package dns

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

const (
	webA    = "web.example. 60 IN A 192.0.2.1"
	soaText = "example. 600 IN SOA ns.example. admin.example. 1 2 3 4 300"
)

// noLeaks checks at the end of a test that it left no goroutine.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// newTestForwarder returns one that asks these, and runs as long as the test.
func newTestForwarder(t testing.TB, upstreams ...*fakeUpstream) *Forwarder {
	t.Helper()
	config := ForwarderConfig{Roots: []string{t.TempDir()}, Log: slog.New(slog.DiscardHandler)}
	for _, upstream := range upstreams {
		config.Upstreams = append(config.Upstreams, upstream.addr)
	}
	return runForwarder(t, config)
}

func runForwarder(t testing.TB, config ForwarderConfig) *Forwarder {
	t.Helper()
	f := NewForwarder(config)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return f
}

func withEDNS(question *dns.Msg) { question.SetEdns0(4096, false) }
func withDO(question *dns.Msg)   { question.SetEdns0(4096, true) }

// texts are an answer's records in a form to compare.
func texts(records []dns.RR) []string {
	var lines []string
	for _, rr := range records {
		lines = append(lines, strings.Join(strings.Fields(rr.String()), " "))
	}
	return lines
}

// told is what tests compare of an answer.
func told(answer *dns.Msg) []string {
	return append([]string{dns.RcodeToString[answer.Rcode]}, texts(append(slices.Clone(answer.Answer), answer.Ns...))...)
}

func wantTold(t *testing.T, answer *dns.Msg, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, told(answer)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

// extendedErrors are those of an answer.
func extendedErrors(answer *dns.Msg) []uint16 {
	var codes []uint16
	if opt := answer.IsEdns0(); opt != nil {
		for _, option := range opt.Option {
			if said, ok := option.(*dns.EDNS0_EDE); ok {
				codes = append(codes, said.InfoCode)
			}
		}
	}
	return codes
}

func TestForwardPassesOn(t *testing.T) {
	noLeaks(t)
	tests := []struct {
		name     string
		upstream behaviour
		want     []string
	}{
		{"answer", tell(webA), []string{"NOERROR", webA}},
		{"aliases", tell("web.example. 60 IN CNAME a.example.", "a.example. 60 IN A 192.0.2.1"),
			[]string{"NOERROR", "web.example. 60 IN CNAME a.example.", "a.example. 60 IN A 192.0.2.1"}},
		{"no such name", changed(func(m *dns.Msg) { m.Rcode, m.Ns = dns.RcodeNameError, rrs(soaText) }),
			[]string{"NXDOMAIN", strings.Replace(soaText, "600", "300", 1)}},
		{"no such name without SOA", say(dns.RcodeNameError), []string{"NXDOMAIN"}},
		{"nothing of this type", changed(func(m *dns.Msg) { m.Ns = rrs(soaText) }),
			[]string{"NOERROR", strings.Replace(soaText, "600", "300", 1)}},
		{"refused", say(dns.RcodeRefused), []string{"SERVFAIL"}},
		{"failure", say(dns.RcodeServerFailure), []string{"SERVFAIL"}},
		{"header alone that refuses", func(q fakeQuestion) {
			reply := q.reply()
			reply.Question, reply.Rcode = nil, dns.RcodeRefused
			q.send(q.pack(reply))
		}, []string{"SERVFAIL"}},
		{"unknown code", say(dns.RcodeBadCookie & 15), []string{"SERVFAIL"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newTestForwarder(t, newFakeUpstream(t, test.upstream))
			question := question("web.example.", dns.TypeA)
			asked := question.String()
			wantTold(t, f.Exchange(t.Context(), question, true), test.want...)
			if diff := cmp.Diff(asked, question.String()); diff != "" {
				t.Errorf("question was changed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestForwardUnfit(t *testing.T) {
	tests := []struct {
		name     string
		question *dns.Msg
		want     int
	}{
		{"update", new(dns.Msg).SetUpdate("example."), dns.RcodeNotImplemented},
		{"notify", new(dns.Msg).SetNotify("example."), dns.RcodeNotImplemented},
		{"no question", new(dns.Msg), dns.RcodeFormatError},
		{"two questions", question("a.", dns.TypeA, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"an answer", question("a.", dns.TypeA, func(m *dns.Msg) { m.Response = true }), dns.RcodeFormatError},
		{"zone transfer", question("a.", dns.TypeAXFR), dns.RcodeRefused},
		{"part of one", question("a.", dns.TypeIXFR), dns.RcodeRefused},
	}
	upstream := newFakeUpstream(t, tell(webA))
	f := newTestForwarder(t, upstream)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := f.Exchange(t.Context(), test.question, true); got.Rcode != test.want || !got.Response || got.Id != test.question.Id {
				t.Errorf("got %v", got)
			}
		})
	}
	if asked := upstream.questions(); len(asked) != 0 {
		t.Errorf("upstream was asked %v", asked)
	}
}

// The flags of a question mean the same to the upstream, and those of an answer
// the same to the client.
func TestForwardFlags(t *testing.T) {
	upstream := newFakeUpstream(t, changed(func(m *dns.Msg) {
		m.Authoritative, m.AuthenticatedData, m.Answer = true, true, rrs(webA)
		m.SetEdns0(4096, true)
	}))
	f := newTestForwarder(t, upstream)
	tests := []struct {
		name       string
		question   *dns.Msg
		do, cd, rd bool
		proved     bool
	}{
		{"plain", question("Web.Example.", dns.TypeA), false, false, true, false},
		{"EDNS", question("wEb.example.", dns.TypeA, withEDNS), false, false, true, false},
		{"DO", question("web.example.", dns.TypeA, withDO), true, false, true, true},
		{"CD", question("web.example.", dns.TypeA, func(m *dns.Msg) { m.CheckingDisabled = true }), false, true, true, false},
		{"AD", question("web.example.", dns.TypeA, func(m *dns.Msg) { m.AuthenticatedData = true }), false, false, true, true},
		{"no RD", question("web.example.", dns.TypeA, func(m *dns.Msg) { m.RecursionDesired = false }), false, false, false, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			answer := f.Exchange(t.Context(), test.question, true)
			wantTold(t, answer, "NOERROR", webA)
			want := dns.MsgHdr{
				Id: test.question.Id, Response: true, RecursionDesired: test.rd, RecursionAvailable: true,
				CheckingDisabled: test.cd, AuthenticatedData: test.proved,
			}
			if diff := cmp.Diff(want, answer.MsgHdr); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.question.Question, answer.Question); diff != "" {
				t.Errorf("question (-want +got):\n%s", diff)
			}
			if len(answer.Extra) > 0 {
				t.Errorf("additional records %v", answer.Extra)
			}
		})
	}
	// EDNS and AD alone make no other question.
	asked := upstream.questions()
	for i, want := range []struct{ do, cd, rd bool }{{false, false, true}, {true, false, true}, {false, true, true}, {false, false, false}} {
		if i >= len(asked) {
			t.Fatalf("asked %d questions", len(asked))
		}
		q := asked[i].msg
		opt := q.IsEdns0()
		if opt == nil || opt.UDPSize() != 1232 || opt.Do() != want.do || q.CheckingDisabled != want.cd || q.RecursionDesired != want.rd {
			t.Errorf("question %d: want %+v, got %v", i, want, q)
		}
	}
	if len(asked) != 4 {
		t.Errorf("asked %d questions", len(asked))
	}
}

func TestForwardNoUpstream(t *testing.T) {
	noLeaks(t)
	own := newFakeUpstream(t, tell(webA))
	tests := []struct {
		name   string
		config ForwarderConfig
	}{
		{"no resolv.conf", ForwarderConfig{}},
		{"our own listener alone", ForwarderConfig{
			Upstreams: []netip.AddrPort{own.addr},
			Own:       func(addr netip.AddrPort) bool { return addr == own.addr },
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.config.Roots, test.config.Log = []string{t.TempDir()}, slog.New(slog.DiscardHandler)
			f := runForwarder(t, test.config)
			wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), "REFUSED")
			if got := f.Upstreams(); len(got) != 0 {
				t.Errorf("upstreams %v", got)
			}
			if got := f.Stats(); got.Entries != 0 {
				t.Errorf("refusals are remembered: %+v", got)
			}
		})
	}
	if asked := own.questions(); len(asked) != 0 {
		t.Errorf("own listener was asked %v", asked)
	}
}

// Nothing that happens upstream keeps a client waiting for longer than this.
func TestForwardAnswerTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewForwarder(ForwarderConfig{Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}, Log: slog.New(slog.DiscardHandler)})
		question, hung := question("web.example.", dns.TypeA), make(chan struct{})
		stuck := f.resolver.Load().asking.DoChan(keyOf(question, true).String(), func() (any, error) { <-hung; return nil, nil })
		start := time.Now()
		wantTold(t, f.Exchange(t.Context(), question, true), "SERVFAIL")
		if took := time.Since(start); took != answerTimeout {
			t.Errorf("took %v", took)
		}
		close(hung)
		<-stuck
	})
	if triesTimeout >= answerTimeout {
		t.Error("tries take longer than an answer may")
	}
}

func TestForwardSameQuestionOnce(t *testing.T) {
	noLeaks(t)
	t.Run("", func(t *testing.T) {
		release := make(chan struct{})
		upstream := newFakeUpstream(t, func(q fakeQuestion) { <-release; tell(webA)(q) })
		f := newTestForwarder(t, upstream)

		// The first to ask gives up.
		hasty, giveUp := context.WithCancel(t.Context())
		gaveUp := make(chan *dns.Msg, 1)
		go func() { gaveUp <- f.Exchange(hasty, question("web.example.", dns.TypeA), true) }()
		waitFor(t, func() bool { return len(upstream.questions()) == 1 })

		var others sync.WaitGroup
		answers := make([]*dns.Msg, 50)
		for i := range answers {
			others.Go(func() { answers[i] = f.Exchange(t.Context(), question("WEB.example.", dns.TypeA), true) })
		}
		waitFor(t, func() bool { return f.Stats().Misses == 51 })
		giveUp()
		wantTold(t, <-gaveUp, "SERVFAIL")
		close(release)
		others.Wait()
		for _, answer := range answers {
			wantTold(t, answer, "NOERROR", webA)
		}
		if asked := upstream.questions(); len(asked) != 1 {
			t.Errorf("asked %d times", len(asked))
		}
	})
}

// A question that comes back to us by an upstream is not asked again.
func TestForwardLoop(t *testing.T) {
	noLeaks(t)
	tests := map[string]func(*dns.Msg){
		"as it is":     func(*dns.Msg) {},
		"without EDNS": func(m *dns.Msg) { m.Extra = nil },
		"with proof":   withDO,
	}
	for name, edit := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var known atomic.Pointer[Forwarder]
			upstream := newFakeUpstream(t, func(q fakeQuestion) {
				question := q.msg.Copy()
				question.Extra = nil
				edit(question)
				answer := known.Load().Exchange(context.WithoutCancel(t.Context()), question, true)
				answer.Id = q.msg.Id
				q.send(q.pack(answer))
			})
			f := newTestForwarder(t, upstream)
			known.Store(f)
			wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), "SERVFAIL")
			waitFor(t, func() bool { return f.flights.TryAcquire(flightLimit) }) // all have landed
			f.flights.Release(flightLimit)
			if asked := len(upstream.questions()); asked > 2*tries {
				t.Errorf("asked %d times", asked)
			}
		})
	}
}

// A flood of questions does not take all sockets.
func TestForwardFlightLimit(t *testing.T) {
	upstream := newFakeUpstream(t, tell(webA))
	f := newTestForwarder(t, upstream)
	f.flights.TryAcquire(flightLimit)
	wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), "SERVFAIL")
	f.flights.Release(flightLimit)
	wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), "NOERROR", webA)
}

// A fault in asking costs the question alone.
func TestForwardPanic(t *testing.T) {
	log := new(logLines)
	f := runForwarder(t, ForwarderConfig{
		Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")},
		Own:       func(netip.AddrPort) bool { panic("own broke") },
		Log:       slog.New(slog.NewTextHandler(log, nil)),
	})
	wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), "SERVFAIL")
	if log.count("own broke") != 1 {
		t.Error("nothing was logged")
	}
}

func TestForwardRunEnds(t *testing.T) {
	noLeaks(t)
	t.Run("", func(t *testing.T) {
		upstream := newFakeUpstream(t, lose)
		f := NewForwarder(ForwarderConfig{Upstreams: []netip.AddrPort{upstream.addr}, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		ended, answered := make(chan error), make(chan *dns.Msg, 1)
		go func() { ended <- f.Run(ctx) }()
		go func() { answered <- f.Exchange(t.Context(), question("web.example.", dns.TypeA), true) }()
		waitFor(t, func() bool { return len(upstream.questions()) == 1 })
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		wantTold(t, <-answered, "SERVFAIL")
		wantTold(t, f.Exchange(t.Context(), question("other.example.", dns.TypeA), true), "SERVFAIL")
		if asked := len(upstream.questions()); asked != 1 {
			t.Errorf("asked %d times, so nobody stopped it", asked)
		}
	})
}

// What another set of upstreams said is forgotten, even if it says it only later.
func TestForwardForgetsFormerUpstreams(t *testing.T) {
	release := make(chan struct{})
	before := newFakeUpstream(t, tell("kept.example. 60 IN A 192.0.2.1"), func(q fakeQuestion) {
		<-release
		tell("slow.example. 60 IN A 192.0.2.1")(q)
	})
	after := newFakeUpstream(t, tell("kept.example. 60 IN A 192.0.2.2"), tell("slow.example. 60 IN A 192.0.2.2"))
	f := newTestForwarder(t, before)
	kept, slow := question("kept.example.", dns.TypeA), question("slow.example.", dns.TypeA)
	wantTold(t, f.Exchange(t.Context(), kept, true), "NOERROR", "kept.example. 60 IN A 192.0.2.1")
	late := make(chan *dns.Msg, 1)
	go func() { late <- f.Exchange(t.Context(), slow, true) }()
	waitFor(t, func() bool { return len(before.questions()) == 2 })

	f.setUpstreams([]netip.AddrPort{after.addr})
	wantTold(t, f.Exchange(t.Context(), kept, true), "NOERROR", "kept.example. 60 IN A 192.0.2.2")
	close(release)
	wantTold(t, <-late, "NOERROR", "slow.example. 60 IN A 192.0.2.1")
	wantTold(t, f.Exchange(t.Context(), slow, true), "NOERROR", "slow.example. 60 IN A 192.0.2.2")
}

func TestForwardStats(t *testing.T) {
	f := newTestForwarder(t, newFakeUpstream(t, say(dns.RcodeServerFailure), tell(webA)))
	for range 3 {
		wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), "NOERROR", webA)
	}
	if diff := cmp.Diff(ForwardStats{Hits: 2, Misses: 1, Failures: 1, Entries: 1}, f.Stats()); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
}

// waitFor waits until a condition holds.
func waitFor(t testing.TB, holds func() bool) {
	t.Helper()
	eventually(t, func() error {
		if holds() {
			return nil
		}
		return errors.New("waited in vain")
	})
}

// BenchmarkForwardHit is the way of a question whose answer is known.
func BenchmarkForwardHit(b *testing.B) {
	f := newTestForwarder(b, newFakeUpstream(b, tell(webA, "web.example. 60 IN A 192.0.2.2")))
	question := question("web.example.", dns.TypeA, withEDNS)
	f.Exchange(b.Context(), question, true)
	b.ReportAllocs()
	for b.Loop() {
		if answer := f.Exchange(b.Context(), question, true); len(answer.Answer) != 2 {
			b.Fatal(answer)
		}
	}
}
