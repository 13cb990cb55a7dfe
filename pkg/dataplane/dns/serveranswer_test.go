package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func TestWhatIsAnswered(t *testing.T) {
	change := func(m *dns.Msg, f func(*dns.Msg)) *dns.Msg { f(m); return m }
	long := func(name string) *dns.Msg { return ednsQuestion(question(name, dns.TypeA), 4096, false) }
	tests := []struct {
		name      string
		ask       *dns.Msg
		tcp       bool
		rcode     int
		answer    []string // sorted; nil is none
		authority bool     // AA
		ns        int
	}{
		{name: "addresses", ask: question("web.overlay.local.", dns.TypeA), authority: true,
			answer: []string{"web.overlay.local. 5 IN A 10.1.0.1", "web.overlay.local. 5 IN A 10.1.0.2"}},
		{name: "addresses by TCP", ask: question("web.overlay.local.", dns.TypeA), tcp: true, authority: true,
			answer: []string{"web.overlay.local. 5 IN A 10.1.0.1", "web.overlay.local. 5 IN A 10.1.0.2"}},
		{name: "IPv6", ask: question("web.overlay.local.", dns.TypeAAAA), authority: true, answer: []string{"web.overlay.local. 5 IN AAAA fd00::1"}},
		{name: "the question's letters", ask: question("wEb.OVERLAY.local.", dns.TypeAAAA), authority: true, answer: []string{"wEb.OVERLAY.local. 5 IN AAAA fd00::1"}},
		{name: "PTR", ask: question("1.0.1.10.in-addr.arpa.", dns.TypePTR), authority: true, answer: []string{"1.0.1.10.in-addr.arpa. 5 IN PTR web.overlay.local."}},
		{name: "no such name", ask: question("nobody.overlay.local.", dns.TypeA), rcode: dns.RcodeNameError, authority: true, ns: 1},
		{name: "no such records", ask: question("four.overlay.local.", dns.TypeAAAA), authority: true, ns: 1},
		{name: "everything", ask: question("web.overlay.local.", dns.TypeANY), authority: true, answer: []string{`web.overlay.local. 5 IN HINFO "RFC8482" ""`}},
		{name: "everything of nobody", ask: question("nobody.overlay.local.", dns.TypeANY), rcode: dns.RcodeNameError, authority: true, ns: 1},
		{name: "everything of others", ask: question("example.com.", dns.TypeANY), answer: []string{`example.com. 5 IN HINFO "RFC8482" ""`}},
		{name: "others", ask: question("example.com.", dns.TypeA), answer: []string{"example.com. 60 IN A 192.0.2.1"}},
		{name: "transfer", ask: question("overlay.local.", dns.TypeAXFR), tcp: true, rcode: dns.RcodeRefused},
		{name: "incremental transfer", ask: new(dns.Msg).SetIxfr("overlay.local.", 1, "ns.", "mb."), rcode: dns.RcodeRefused},
		{name: "another class", ask: change(question("web.overlay.local.", dns.TypeA), func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), rcode: dns.RcodeRefused},
		{name: "notify", ask: new(dns.Msg).SetNotify("overlay.local."), rcode: dns.RcodeNotImplemented},
		{name: "update", ask: new(dns.Msg).SetUpdate("overlay.local."), rcode: dns.RcodeNotImplemented},
		{name: "a later EDNS", ask: change(long("web.overlay.local."), func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }), rcode: dns.RcodeBadVers},
		{name: "two questions", ask: change(question("web.overlay.local.", dns.TypeA), func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), rcode: dns.RcodeFormatError},
		{name: "no question", ask: new(dns.Msg), rcode: dns.RcodeFormatError},
		{name: "two OPT", ask: change(long("web.overlay.local."), func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }), rcode: dns.RcodeFormatError},
		{name: "a zone that panics", ask: question("panic.overlay.local.", dns.TypeA), rcode: dns.RcodeServerFailure},
	}
	s := newTestServer(ServerConfig{Forward: exchangerFunc(answerElsewhere)}, testZone())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			proto := udp
			if test.tcp {
				proto = tcp
			}
			packet := wire(t, test.ask)
			got := replyTo(s, proto, packet)
			m := new(dns.Msg)
			if err := m.Unpack(got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.answer, sorted(m.Answer)); diff != "" || m.Rcode != test.rcode || m.Authoritative != test.authority || len(m.Ns) != test.ns {
				t.Errorf("got\n%s\n(-want +got)\n%s", m, diff)
			}
			if !m.Response || !m.RecursionAvailable || m.Id != test.ask.Id || m.Truncated || m.RecursionDesired != test.ask.RecursionDesired {
				t.Errorf("got header %s", &m.MsgHdr)
			}
			if len(m.Answer)+len(m.Ns) == 0 && len(got) > len(packet) {
				t.Errorf("an error of %d bytes for %d", len(got), len(packet))
			}
		})
	}
}

// TestPanicsAreAnswered has the zone and the forwarder panic: each question is
// answered, and its stream is idle afterwards.
func TestPanicsAreAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := func(context.Context, *dns.Msg) *dns.Msg { panic("broken") }
		s := newTestServer(ServerConfig{Forward: exchangerFunc(broken)}, testZone())
		conn, _ := serveTestStream(t, s, "10.0.0.1")
		for _, name := range []string{"panic.overlay.local.", "example.com."} {
			_, _ = conn.Write(framed(wire(t, question(name, dns.TypeA))))
			if got := nextAnswer(t, conn); got.Rcode != dns.RcodeServerFailure {
				t.Errorf("%s: got %v", name, got)
			}
		}
		synctest.Wait()
		if working := questionsOf(s); working != 0 {
			t.Errorf("the stream waits for %d answers", working)
		}
		if dropped := s.Stats().Dropped; dropped["panic"] != 2 || dropped["malformed"] != 0 {
			t.Errorf("counted %v", dropped)
		}
	})
}

func TestNobodyElseIsAskedWithoutForwarder(t *testing.T) {
	s := newTestServer(ServerConfig{}, testZone())
	for name, want := range map[string]int{"example.com.": dns.RcodeRefused, "web.overlay.local.": dns.RcodeSuccess} {
		m := new(dns.Msg)
		if err := m.Unpack(replyTo(s, udp, wire(t, question(name, dns.TypeA)))); err != nil || m.Rcode != want || m.RecursionAvailable {
			t.Errorf("%s: got %v, want rcode %d without RA (%v)", name, m, want, err)
		}
	}
}

func TestSizeOfAnswers(t *testing.T) {
	mx := func(_ context.Context, question *dns.Msg) *dns.Msg { // a fine answer, and much that a client can do without
		m := answerElsewhere(nil, question) //nolint:staticcheck // it takes none
		for range 40 {
			m.Ns = append(m.Ns, mustRR("example.com. 60 IN NS a-name-server-of-somebody.example.net."))
			m.Extra = append(m.Extra, mustRR("a-name-server-of-somebody.example.net. 60 IN A 192.0.2.7"))
		}
		return m
	}
	tests := []struct {
		name      string
		ask       *dns.Msg
		proto     protocol
		most      int
		truncated bool
		answers   int // at least
	}{
		{"small", question("web.overlay.local.", dns.TypeA), udp, 512, false, 2},
		{"512 without EDNS", question("many.overlay.local.", dns.TypeA), udp, 512, true, 20},
		{"512 for a smaller EDNS", ednsQuestion(question("many.overlay.local.", dns.TypeA), 100, false), udp, 512, true, 20},
		{"what the client takes", ednsQuestion(question("many.overlay.local.", dns.TypeA), 700, false), udp, 700, true, 30},
		{"whole with EDNS", ednsQuestion(question("many.overlay.local.", dns.TypeA), 1232, false), udp, 1232, false, 60},
		{"1232 at most", ednsQuestion(question("crowd.overlay.local.", dns.TypeA), 65535, true), udp, 1232, true, 60},
		{"whole by TCP", question("crowd.overlay.local.", dns.TypeA), tcp, 65535, false, 200},
		{"whole by TCP with a small EDNS", ednsQuestion(question("crowd.overlay.local.", dns.TypeA), 512, false), tcp, 65535, false, 200},
		{"what a client can do without", question("example.com.", dns.TypeA), udp, 512, false, 1},
	}
	s := newTestServer(ServerConfig{Forward: exchangerFunc(mx)}, testZone())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := replyTo(s, test.proto, wire(t, test.ask))
			m := new(dns.Msg)
			if err := m.Unpack(got); err != nil {
				t.Fatal(err)
			}
			if len(got) > test.most || m.Truncated != test.truncated || len(m.Answer) < test.answers {
				t.Errorf("got %d bytes, truncated %v, %d answers", len(got), m.Truncated, len(m.Answer))
			}
			asked, opt := test.ask.IsEdns0(), m.IsEdns0()
			if (asked == nil) != (opt == nil) {
				t.Fatalf("asked with OPT %v, answered with %v", asked, opt)
			}
			if opt != nil && (opt.UDPSize() != ednsSize || opt.Do() != asked.Do() || opt.Version() != 0) {
				t.Errorf("got %v", opt)
			}
		})
	}
}

// TestAuthorityThatMatters has answers whose authority section does not fit. Name
// servers a client can do without, but not the proof of what it asked, or the SOA
// that says for how long there is nothing.
func TestAuthorityThatMatters(t *testing.T) {
	long := strings.Repeat("x", 60) + "." + strings.Repeat("y", 60) + ".example.com."
	tests := []struct {
		name, record string
		truncated    bool
	}{
		{"name servers", "example.com. 60 IN NS %060d.example.com.", false},
		{"SOA", "example%d.com. 60 IN SOA ns." + long + " admin.example.com. 1 2 3 4 300", true},
		{"NSEC", "n%d.example.com. 60 IN NSEC " + long + " A RRSIG NSEC", true},
		{"NSEC3", "n%d.example.com. 60 IN NSEC3 1 1 12 aabbccdd 2t7b4g4vsa5smi47k61mv5bv1a22bojr A RRSIG", true},
		{"RRSIG", "n%d.example.com. 60 IN RRSIG A 5 3 60 20300101000000 20200101000000 1 example.com. " + strings.Repeat("A", 172), true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newTestServer(ServerConfig{Forward: exchangerFunc(func(ctx context.Context, question *dns.Msg) *dns.Msg {
				m := answerElsewhere(ctx, question)
				for i := range 40 {
					m.Ns = append(m.Ns, mustRR(fmt.Sprintf(test.record, i)))
				}
				return m
			})}, testZone())
			for proto, truncated := range map[protocol]bool{udp: test.truncated, tcp: false} {
				m := new(dns.Msg)
				if err := m.Unpack(replyTo(s, proto, wire(t, ednsQuestion(question("example.com.", dns.TypeA), 1232, true)))); err != nil {
					t.Fatal(err)
				}
				if m.Truncated != truncated || len(m.Answer) != 1 || m.IsEdns0() == nil || (proto == tcp) != (len(m.Ns) == 40) {
					t.Errorf("by %v: %d answers, %d of authority, truncated %v", proto, len(m.Answer), len(m.Ns), m.Truncated)
				}
			}
		})
	}
}

func TestMoreThanTCPTakes(t *testing.T) {
	s := newTestServer(ServerConfig{}, newFakeZone(addresses("crowd.overlay.local.", 9000)...))
	got := replyTo(s, tcp, wire(t, question("crowd.overlay.local.", dns.TypeA)))
	m := new(dns.Msg)
	if err := m.Unpack(got); err != nil || !m.Truncated || len(m.Answer) < 4000 || len(got) > maxTCP {
		t.Errorf("got %d bytes with %d answers, truncated %v: %v", len(got), len(m.Answer), m.Truncated, err)
	}
}

func TestWhatOthersSay(t *testing.T) {
	answer := func(change func(*dns.Msg)) exchangerFunc {
		return func(ctx context.Context, question *dns.Msg) *dns.Msg {
			m := answerElsewhere(ctx, question)
			change(m)
			return m
		}
	}
	tests := []struct {
		name  string
		by    exchangerFunc
		rcode int
		want  string // in the answer's text
	}{
		{"their OPT is not ours", answer(func(m *dns.Msg) { m.SetEdns0(4000, true) }), dns.RcodeSuccess, "192.0.2.1"},
		{"no answer", func(context.Context, *dns.Msg) *dns.Msg { return nil }, dns.RcodeServerFailure, ""},
		{"a panic", func(context.Context, *dns.Msg) *dns.Msg { panic("broken") }, dns.RcodeServerFailure, ""},
		{"an extended code", answer(func(m *dns.Msg) { m.Answer, m.Rcode = nil, dns.RcodeBadCookie }), dns.RcodeServerFailure, ""},
		{"what cannot be written", answer(func(m *dns.Msg) {
			m.Answer = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeNS, Class: 1}, Ns: strings.Repeat("x", 70) + "."}}
		}), dns.RcodeServerFailure, ""},
		{"no such name", answer(func(m *dns.Msg) { m.Answer, m.Rcode = nil, dns.RcodeNameError }), dns.RcodeNameError, ""},
		{"another question", answer(func(m *dns.Msg) { m.Question[0].Name = "evil.example." }), dns.RcodeSuccess, "192.0.2.1"},
		{"their bits", answer(func(m *dns.Msg) { m.Authoritative, m.AuthenticatedData = true, true }), dns.RcodeSuccess, "192.0.2.1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newTestServer(ServerConfig{Forward: test.by}, testZone())
			asked := question("eXample.com.", dns.TypeA)
			got := replyTo(s, udp, wire(t, asked))
			m := new(dns.Msg)
			if err := m.Unpack(got); err != nil {
				t.Fatal(err)
			}
			if m.Rcode != test.rcode || !strings.Contains(m.String(), test.want) || m.IsEdns0() != nil || m.Authoritative || m.AuthenticatedData ||
				!slices.Equal(m.Question, asked.Question) {
				t.Errorf("got %s", m)
			}
		})
	}
}

// TestKnownAnswersNeedNoPlace has all places of a client wait.
func TestKnownAnswersNeedNoPlace(t *testing.T) {
	upstream := newFakeUpstream(t, tell("known.example. 60 IN A 192.0.2.1"))
	s := newTestServer(ServerConfig{Forward: newTestForwarder(t, upstream)}, testZone())
	known, unknown := wire(t, question("known.example.", dns.TypeA)), wire(t, question("unknown.example.", dns.TypeA))
	client := netip.MustParseAddr("10.0.0.9")
	replyTo(s, udp, known)
	for s.forwards.enter(client) { // until there is none
	}
	for _, test := range []struct {
		packet []byte
		want   int
	}{{known, dns.RcodeSuccess}, {unknown, dns.RcodeServerFailure}} {
		_, others := s.answer(arrival{packet: test.packet, client: client, at: time.Now(), count: &s.counters[0]}, new(scratch))
		m := new(dns.Msg)
		s.forward(t.Context(), others, nil, func(reply []byte) { // nil starts no goroutine
			if err := m.Unpack(reply); err != nil {
				t.Error(err)
			}
		})
		if m.Rcode != test.want || !m.Response {
			t.Errorf("got %s, want code %d", m, test.want)
		}
	}
	if got := len(upstream.questions()); got != 1 {
		t.Errorf("upstream was asked %d times", got)
	}
}

// TestWhatElseOthersSay is for clients that ask for it: whether it was proved, and
// why there is no answer.
func TestWhatElseOthersSay(t *testing.T) {
	forward := exchangerFunc(func(ctx context.Context, question *dns.Msg) *dns.Msg {
		m := answerElsewhere(ctx, question)
		m.AuthenticatedData = question.AuthenticatedData
		m.SetEdns0(4000, true)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Cookie: "0123456789abcdef"}, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeStaleAnswer}}
		return m
	})
	asked := ednsQuestion(question("example.com.", dns.TypeA), 1232, false)
	asked.AuthenticatedData = true
	m := new(dns.Msg)
	if err := m.Unpack(replyTo(newTestServer(ServerConfig{Forward: forward}, testZone()), udp, wire(t, asked))); err != nil {
		t.Fatal(err)
	}
	if !m.AuthenticatedData {
		t.Error("it is not said that the answer was proved")
	}
	if options := m.IsEdns0().Option; len(options) != 1 || options[0].Option() != dns.EDNS0EDE {
		t.Errorf("options %v, want the extended error alone", options)
	}
}

func TestAddressesAreAnsweredWithoutAllocation(t *testing.T) {
	zone := oneAddress{}
	s := newTestServer(ServerConfig{}, zone)
	packet, use := wire(t, ednsQuestion(question("WEB.overlay.local.", dns.TypeA), 1232, true)), new(scratch)
	a := arrival{packet: packet, count: &s.counters[0]}
	allocations := testing.AllocsPerRun(100, func() {
		if reply, _ := s.answer(a, use); len(reply) == 0 {
			t.Error("no answer")
		}
	})
	if allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}

// BenchmarkPacket is a question for addresses, answered both ways.
func BenchmarkPacket(b *testing.B) {
	zone := clientsZone(b)
	packet := wire(b, ednsQuestion(question("web.overlay.local.", dns.TypeA), 1232, false))
	for name, ways := range map[string]authority{"fast": zone, "general": withoutLookup{zone}} {
		b.Run(name, func(b *testing.B) {
			s, use := newTestServer(ServerConfig{}, ways), new(scratch)
			a := arrival{packet: packet, at: time.Now(), count: &s.counters[0]}
			b.ReportAllocs()
			for b.Loop() {
				s.answer(a, use)
			}
		})
	}
}
