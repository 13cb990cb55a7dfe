package dns

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

const liarA = "web.example. 60 IN A 198.51.100.66"

// sendRaw sends these bytes.
func sendRaw(wire ...byte) behaviour { return func(q fakeQuestion) { q.send(wire) } }

// lie answers wrongly what is asked, in one respect.
func lie(change func(reply *dns.Msg)) behaviour {
	return changed(func(reply *dns.Msg) {
		reply.Answer = rrs(liarA)
		change(reply)
	})
}

// fromElsewhere answers rightly, but from another address.
func fromElsewhere(q fakeQuestion) {
	reply := q.reply()
	reply.Answer = rrs(liarA)
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)})
	if err != nil {
		panic(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = conn.WriteToUDPAddrPort(q.pack(reply), q.from)
}

// A message that is not the answer to the question is passed over, and the answer
// that comes after it is taken.
func TestUpstreamLies(t *testing.T) {
	noLeaks(t)
	lies := map[string]behaviour{
		"nothing":        sendRaw(),
		"a byte":         sendRaw(0),
		"garbage":        sendRaw(slices.Repeat([]byte{0xc0, 0x0c}, 100)...),
		"wrong id":       lie(func(m *dns.Msg) { m.Id++ }),
		"wrong name":     lie(func(m *dns.Msg) { m.Question[0].Name = "other.example." }),
		"wrong type":     lie(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }),
		"wrong class":    lie(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
		"no question":    lie(func(m *dns.Msg) { m.Question = nil }),
		"more questions": lie(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }),
		"a question":     lie(func(m *dns.Msg) { m.Response = false }),
		"another opcode": lie(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }),
		"from elsewhere": fromElsewhere,
		"broken record": func(q fakeQuestion) {
			reply := q.reply()
			reply.Answer = rrs(liarA)
			wire := q.pack(reply)
			q.send(wire[:len(wire)-2])
		},
		"a hundred": func(q fakeQuestion) {
			for range 100 {
				lie(func(m *dns.Msg) { m.Id = dns.Id()&^1 | (q.msg.Id&1 ^ 1) })(q)
			}
		},
	}
	for name, first := range lies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upstream := newFakeUpstream(t, inOrder(first, tell(webA)))
			f := newTestForwarder(t, upstream)
			wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), "NOERROR", webA)
			if diff := cmp.Diff([]string{"udp"}, upstream.networks()); diff != "" {
				t.Errorf("asked by (-want +got):\n%s", diff)
			}
		})
	}
}

// Some servers change the case of letters.
func TestUpstreamCase(t *testing.T) {
	f := newTestForwarder(t, newFakeUpstream(t, changed(func(m *dns.Msg) {
		m.Question[0].Name, m.Answer = "WEB.EXAMPLE.", rrs(webA)
	})))
	answer := f.Exchange(t.Context(), question("Web.example.", dns.TypeA), true)
	wantTold(t, answer, "NOERROR", webA)
	if got := answer.Question[0].Name; got != "Web.example." {
		t.Errorf("question came back as %s", got)
	}
}

// TestUpstreamTruncatedByUDP has a client that asks by UDP be told to ask by TCP,
// and nothing fetched for it before it does.
func TestUpstreamTruncatedByUDP(t *testing.T) {
	noLeaks(t)
	tests := map[int]struct {
		answer behaviour
		want   []string
	}{
		dns.RcodeSuccess: {tell(webA), []string{"NOERROR", webA}},
		// The proof that there is no such name may be long.
		dns.RcodeNameError: {say(dns.RcodeNameError), []string{"NXDOMAIN"}},
	}
	for rcode, test := range tests {
		t.Run(dns.RcodeToString[rcode], func(t *testing.T) {
			t.Parallel()
			cut := changed(func(m *dns.Msg) { m.Truncated, m.Rcode = true, rcode })
			upstream := newFakeUpstream(t, cut, cut, test.answer)
			f := newTestForwarder(t, upstream)
			question := question("web.example.", dns.TypeA)
			if cut := f.Exchange(t.Context(), question, false); !cut.Truncated || cut.Rcode != rcode || len(cut.Answer) > 0 {
				t.Errorf("by UDP: %s", cut)
			}
			if diff := cmp.Diff([]string{"udp"}, upstream.networks()); diff != "" {
				t.Errorf("asked by (-want +got):\n%s", diff)
			}
			wantTold(t, f.Exchange(t.Context(), question, true), test.want...)
			if diff := cmp.Diff([]string{"udp", "udp", "tcp"}, upstream.networks()); diff != "" {
				t.Errorf("asked by (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUpstreamTruncated(t *testing.T) {
	noLeaks(t)
	cut := changed(func(m *dns.Msg) { m.Truncated = true })
	cutShort := func(q fakeQuestion) {
		reply := q.reply()
		reply.Truncated, reply.Answer = true, rrs(liarA)
		wire := q.pack(reply)
		q.send(wire[:len(wire)-2])
	}
	many := func(n int) (records []string) {
		for i := range n {
			addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			records = append(records, "web.example. 60 IN A "+addr.String())
		}
		return records
	}
	records := func(texts []string) behaviour {
		return changed(func(m *dns.Msg) { m.Answer, m.Compress = rrs(texts...), true })
	}
	// Two are more than 16 KiB, the header with them.
	half := "web.example. 60 IN TXT" + strings.Repeat(` "`+strings.Repeat("x", 255)+`"`, answerBytes/2/256)
	unfolds := strings.Repeat("a.", 100) + " 60 IN NS " + strings.Repeat("a.", 100)
	tests := []struct {
		name string
		plan []behaviour
		want []string
		by   []string
	}{
		{"then whole by TCP", []behaviour{cut, tell(webA)}, []string{"NOERROR", webA}, []string{"udp", "tcp"}},
		{"within a record", []behaviour{cutShort, tell(webA)}, []string{"NOERROR", webA}, []string{"udp", "tcp"}},
		{"then as many records as we take", []behaviour{cut, records(many(answerRecords))}, append([]string{"NOERROR"}, many(answerRecords)...), []string{"udp", "tcp"}},
		{"then too many records", []behaviour{cut, records(many(answerRecords + 1))}, []string{"SERVFAIL"}, []string{"udp", "tcp"}},
		{"then nearly 64 KiB", []behaviour{cut, records(many(4000))}, []string{"SERVFAIL"}, []string{"udp", "tcp"}},
		{"then many bytes", []behaviour{cut, records([]string{half})}, []string{"NOERROR", half}, []string{"udp", "tcp"}},
		{"then names that unfold", []behaviour{cut, records(slices.Repeat([]string{unfolds}, answerRecords))}, []string{"SERVFAIL"}, []string{"udp", "tcp"}},
		{"then too many bytes", []behaviour{cut, records([]string{half, half})}, []string{"SERVFAIL"}, []string{"udp", "tcp"}},
		{"liar by TCP", []behaviour{cut, inOrder(lie(func(m *dns.Msg) { m.Id++ }), tell(webA))}, []string{"NOERROR", webA}, []string{"udp", "tcp"}},
		{"by TCP too", []behaviour{cut}, []string{"SERVFAIL"}, []string{"udp", "tcp", "udp", "tcp"}},
		{"failure by TCP, then whole", []behaviour{cut, say(dns.RcodeServerFailure), tell(webA)}, []string{"NOERROR", webA}, []string{"udp", "tcp", "udp"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			upstream := newFakeUpstream(t, test.plan...)
			f := newTestForwarder(t, upstream)
			wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), test.want...)
			if diff := cmp.Diff(test.by, upstream.networks()); diff != "" {
				t.Errorf("asked by (-want +got):\n%s", diff)
			}
		})
	}
}

// One that is too large is asked for once in a while, and the client told why.
func TestUpstreamTooLarge(t *testing.T) {
	upstream := newFakeUpstream(t, changed(func(m *dns.Msg) { m.Truncated = true }), changed(func(m *dns.Msg) {
		m.Answer = slices.Repeat(rrs(webA), answerRecords+1)
		m.Compress = true
	}))
	f := newTestForwarder(t, upstream, newFakeUpstream(t, tell(webA)))
	for range 2 {
		answer := f.Exchange(t.Context(), question("web.example.", dns.TypeA, withEDNS), true)
		wantTold(t, answer, "SERVFAIL")
		if diff := cmp.Diff([]uint16{dns.ExtendedErrorCodeOther}, extendedErrors(answer)); diff != "" {
			t.Errorf("extended errors (-want +got):\n%s", diff)
		}
	}
	if diff := cmp.Diff([]string{"udp", "tcp"}, upstream.networks()); diff != "" {
		t.Errorf("asked by (-want +got):\n%s", diff)
	}
}

// Not more than these are fetched by TCP at a time, and the others wait.
func TestUpstreamStreamLimit(t *testing.T) {
	noLeaks(t)
	t.Run("", func(t *testing.T) {
		release := make(chan struct{})
		upstream := newFakeUpstream(t, func(q fakeQuestion) {
			if q.network == "udp" {
				changed(func(m *dns.Msg) { m.Truncated = true })(q)
				return
			}
			<-release
			tell(webA)(q)
		})
		f := newTestForwarder(t, upstream)
		const questions = streamLimit + 4
		answers := make([]*dns.Msg, questions)
		var waiting sync.WaitGroup
		for i := range answers {
			waiting.Go(func() {
				answers[i] = f.Exchange(t.Context(), question(strconv.Itoa(i)+".example.", dns.TypeA), true)
			})
		}
		fetched := func() int { return len(upstream.networks()) - questions }
		waitFor(t, func() bool { return fetched() >= streamLimit })
		if f.streams.TryAcquire(1) || fetched() > streamLimit {
			t.Error("more can be fetched at a time")
		}
		close(release)
		waiting.Wait()
		for _, answer := range answers {
			wantTold(t, answer, "NOERROR", webA)
		}
	})
}

func TestUpstreamTries(t *testing.T) {
	noLeaks(t)
	tests := []struct {
		name          string
		first, second []behaviour // second is nil if there is none
		want          []string
		asked         [2]int
	}{
		{"lost once", []behaviour{lose, tell(webA)}, nil, []string{"NOERROR", webA}, [2]int{2, 0}},
		{"lost, then the next one", []behaviour{lose}, []behaviour{tell(webA)}, []string{"NOERROR", webA}, [2]int{1, 1}},
		{"failure, then the next one", []behaviour{say(dns.RcodeServerFailure)}, []behaviour{tell(webA)}, []string{"NOERROR", webA}, [2]int{1, 1}},
		{"refused, then the next one", []behaviour{say(dns.RcodeRefused)}, []behaviour{tell(webA)}, []string{"NOERROR", webA}, [2]int{1, 1}},
		{"no such name is an answer", []behaviour{say(dns.RcodeNameError)}, []behaviour{tell(webA)}, []string{"NXDOMAIN"}, [2]int{1, 0}},
		{"both lose", []behaviour{lose}, []behaviour{lose}, []string{"SERVFAIL"}, [2]int{1, 1}},
		{"both lie", []behaviour{lie(func(m *dns.Msg) { m.Id++ })}, []behaviour{sendRaw(1, 2, 3)}, []string{"SERVFAIL"}, [2]int{1, 1}},
		{"never more than two tries", []behaviour{say(dns.RcodeServerFailure)}, nil, []string{"SERVFAIL"}, [2]int{2, 0}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			upstreams := []*fakeUpstream{newFakeUpstream(t, test.first...)}
			if test.second != nil {
				upstreams = append(upstreams, newFakeUpstream(t, test.second...))
			}
			f := newTestForwarder(t, upstreams...)
			wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), test.want...)
			var asked [2]int
			for i, upstream := range upstreams {
				asked[i] = len(upstream.questions())
			}
			if diff := cmp.Diff(test.asked, asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
}

// The first question finds the one that is there, also if it is the last.
func TestUpstreamTriesOfThree(t *testing.T) {
	noLeaks(t)
	tests := []struct {
		name          string
		first, second behaviour
		rest          []behaviour // of those after them
		want          []string
		asked         []int
	}{
		{"two lose", lose, lose, []behaviour{tell(webA)}, []string{"NOERROR", webA}, []int{1, 1, 1}},
		{"one loses, one fails", lose, say(dns.RcodeServerFailure), []behaviour{tell(webA)}, []string{"NOERROR", webA}, []int{1, 1, 1}},
		{"all lose", lose, lose, []behaviour{lose}, []string{"SERVFAIL"}, []int{1, 1, 1}},
		{"a fourth is not asked", lose, lose, []behaviour{lose, tell(webA)}, []string{"SERVFAIL"}, []int{1, 1, 1, 0}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var upstreams []*fakeUpstream
			for _, do := range append([]behaviour{test.first, test.second}, test.rest...) {
				upstreams = append(upstreams, newFakeUpstream(t, do))
			}
			wantTold(t, newTestForwarder(t, upstreams...).Exchange(t.Context(), question("web.example.", dns.TypeA), true), test.want...)
			var asked []int
			for _, upstream := range upstreams {
				asked = append(asked, len(upstream.questions()))
			}
			if diff := cmp.Diff(test.asked, asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
}

// What was given up is not taken for the answer to what was asked after it.
func TestUpstreamLate(t *testing.T) {
	first := make(chan fakeQuestion, 1)
	upstream := newFakeUpstream(t, func(q fakeQuestion) { first <- q }, func(q fakeQuestion) {
		late := <-first
		lie(func(*dns.Msg) {})(late)
		q.send(late.pack(late.reply())) // to the new port, with the old identifier
		tell(webA)(q)
	})
	f := newTestForwarder(t, upstream)
	wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), "NOERROR", webA)
}

// Each try has an identifier and a port of its own, so that it takes guessing both
// to answer in the upstream's place.
func TestUpstreamUnguessable(t *testing.T) {
	upstream := newFakeUpstream(t, say(dns.RcodeServerFailure))
	f := newTestForwarder(t, upstream)
	const questions = 10
	for i := range questions {
		f.Exchange(t.Context(), question(string(rune('a'+i))+".example.", dns.TypeA), true)
	}
	ids, ports := map[uint16]bool{}, map[uint16]bool{}
	for _, q := range upstream.questions() {
		ids[q.msg.Id], ports[q.from.Port()] = true, true
	}
	// Of 20 values out of tens of thousands some may be the same by chance.
	if len(ids) < 2*questions-2 || len(ports) < 2*questions-2 {
		t.Errorf("%d identifiers, %d ports", len(ids), len(ports))
	}
}

// One that is not there is asked after the others for a while. A name that it has
// no answer to, or one by TCP that it does not give, does not mean so.
func TestUpstreamAway(t *testing.T) {
	answer, cut := tell(webA), changed(func(m *dns.Msg) { m.Truncated = true })
	tests := []struct {
		name  string
		first []behaviour
		asks  int
		want  int // how many of them, and of one more, the first one is asked
	}{
		{"silent once", []behaviour{lose, answer}, 1, 2},
		{"silent twice", []behaviour{lose, lose, answer}, 2, 3},
		{"silent three times", []behaviour{lose}, 3, 3},
		{"an answer between", []behaviour{lose, lose, answer, lose, lose, answer}, 5, 6},
		{"a failure between", []behaviour{lose, lose, say(dns.RcodeServerFailure), lose, lose, answer}, 5, 6},
		{"silent by TCP", []behaviour{cut, lose, cut, lose, cut, lose, answer}, 3, 7},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			first, other := newFakeUpstream(t, test.first...), newFakeUpstream(t, answer)
			f := newTestForwarder(t, first, other)
			ask := func(i int) {
				name := strconv.Itoa(i) + ".example."
				wantTold(t, f.Exchange(t.Context(), question(name, dns.TypeA), true), "NOERROR", webA)
			}
			for i := range test.asks + 1 {
				ask(i)
			}
			if got := len(first.questions()); got != test.want {
				t.Errorf("asked the first one %d times, want %d", got, test.want)
			}
			if diff := cmp.Diff([]string{first.addr.String(), other.addr.String()}, stringsOf(f.Upstreams())); diff != "" {
				t.Errorf("upstreams (-want +got):\n%s", diff)
			}
			f.resolver.Load().upstreams[0].away.Add(-int64(avoidFor))
			ask(test.asks + 1)
			if got := len(first.questions()); got != test.want+1 {
				t.Errorf("asked the first one %d times after its time", got)
			}
		})
	}
}

// A port at which nobody listens is known at once.
func TestUpstreamNobodyListens(t *testing.T) {
	listener, packets := listenBoth(t)
	nobody := &fakeUpstream{addr: netip.MustParseAddrPort(packets.LocalAddr().String())}
	_, _ = packets.Close(), listener.Close()
	f := newTestForwarder(t, nobody)
	answer := f.Exchange(t.Context(), question("web.example.", dns.TypeA, withEDNS), true)
	wantTold(t, answer, "SERVFAIL")
	if diff := cmp.Diff([]uint16{dns.ExtendedErrorCodeNoReachableAuthority}, extendedErrors(answer)); diff != "" {
		t.Errorf("extended errors (-want +got):\n%s", diff)
	}
	if answer := f.Exchange(t.Context(), question("web.example.", dns.TypeA), true); answer.IsEdns0() != nil {
		t.Errorf("EDNS for a client without it: %v", answer)
	}
	if got := f.Stats(); got.Failures != tries || got.Hits != 1 {
		t.Errorf("stats %+v", got)
	}
	if f.resolver.Load().upstreams[0].away.Load() == 0 {
		t.Error("it is asked before others")
	}
}

// A client is told whether there was nobody, or nobody with an answer, also when
// it is told again.
func TestUpstreamReasons(t *testing.T) {
	cut := changed(func(m *dns.Msg) { m.Truncated = true })
	tests := []struct {
		name string
		plan []behaviour
		want uint16
	}{
		{"silent", []behaviour{lose}, dns.ExtendedErrorCodeNoReachableAuthority},
		{"failure", []behaviour{say(dns.RcodeServerFailure)}, dns.ExtendedErrorCodeNetworkError},
		{"failure, then silent", []behaviour{say(dns.RcodeServerFailure), lose}, dns.ExtendedErrorCodeNetworkError},
		{"refused", []behaviour{say(dns.RcodeRefused)}, dns.ExtendedErrorCodeNetworkError},
		{"silent by TCP", []behaviour{cut, lose, cut, lose}, dns.ExtendedErrorCodeNetworkError},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newTestForwarder(t, newFakeUpstream(t, test.plan...))
			for range 2 {
				answer := f.Exchange(t.Context(), question("web.example.", dns.TypeA, withEDNS), true)
				wantTold(t, answer, "SERVFAIL")
				if diff := cmp.Diff([]uint16{test.want}, extendedErrors(answer)); diff != "" {
					t.Errorf("extended errors (-want +got):\n%s", diff)
				}
			}
			if got := f.Stats(); got.Hits != 1 {
				t.Errorf("stats %+v", got)
			}
		})
	}
}

// One that does not know EDNS is asked without.
func TestUpstreamWithoutEDNS(t *testing.T) {
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented} {
		t.Run(dns.RcodeToString[rcode], func(t *testing.T) {
			old := newFakeUpstream(t, func(q fakeQuestion) {
				if q.msg.IsEdns0() != nil {
					say(rcode)(q)
					return
				}
				tell(webA)(q)
			})
			other := newFakeUpstream(t, tell(liarA))
			f := newTestForwarder(t, old, other)
			wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA, withEDNS), true), "NOERROR", webA)
			if asked := other.questions(); len(asked) > 0 {
				t.Errorf("the other one was asked too")
			}
		})
	}
}

func TestUpstreamIPv6(t *testing.T) {
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Skip("no IPv6 here:", err)
	}
	defer func() { _ = conn.Close() }()
	fake := &fakeUpstream{addr: netip.MustParseAddrPort(conn.LocalAddr().String()), plan: []behaviour{tell(webA)}}
	fake.wg.Go(func() { fake.servePackets(conn) })
	f := newTestForwarder(t, fake)
	wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), "NOERROR", webA)
}

func stringsOf(addrs []netip.AddrPort) []string {
	var texts []string
	for _, addr := range addrs {
		texts = append(texts, addr.String())
	}
	return texts
}

// FuzzUpstreamAnswer has an upstream send anything.
func FuzzUpstreamAnswer(f *testing.F) {
	query := keyOf(question("web.example.", dns.TypeA), true).query(true)
	query.Id = 4711
	seed := func(change func(*dns.Msg)) {
		reply := new(dns.Msg).SetReply(query)
		change(reply)
		wire, err := reply.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
		f.Add(wire[:len(wire)-1])
	}
	seed(func(m *dns.Msg) { m.Answer = rrs(webA) })
	seed(func(m *dns.Msg) { m.Answer, m.Compress = rrs(webA, webA), true })
	seed(func(m *dns.Msg) { m.Rcode, m.Ns = dns.RcodeNameError, rrs(soaText) })
	seed(func(m *dns.Msg) { m.Rcode, m.Question = dns.RcodeRefused, nil })
	seed(func(m *dns.Msg) { m.Truncated = true })
	seed(func(m *dns.Msg) { m.SetEdns0(4096, true) })
	seed(func(m *dns.Msg) { m.SetEdns0(4096, true); m.Answer = m.Extra })
	seed(func(m *dns.Msg) {
		m.Answer = rrs("web.example. 4294967295 IN TXT \"a\" \"b\"", "web.example. 0 IN HTTPS 1 . alpn=h2", "web.example. 90000 IN CNAME web.example.")
	})
	f.Fuzz(func(t *testing.T, wire []byte) {
		answer, err := accept(query, wire)
		if err != nil || answer.Truncated || passable(answer, query) != nil {
			return
		}
		c, question := newCache(), question("WEB.example.", dns.TypeA, withEDNS)
		key := keyOf(question, true)
		said := c.put(key, answer)
		if known, ok := c.get(key); ok {
			said = known
		}
		reply := said.reply(question)
		if reply.Id != question.Id || reply.Authoritative || !reply.Response || reply.Question[0] != question.Question[0] {
			t.Errorf("reply %v", reply)
		}
		for _, rr := range slices.Concat(reply.Answer, reply.Ns, reply.Extra) {
			if rr.Header().Ttl > uint32(positiveLimit.Seconds()) || rr.Header().Rrtype == dns.TypeOPT {
				t.Errorf("record %v", rr)
			}
		}
		if _, err := reply.Pack(); err != nil {
			t.Errorf("reply cannot be sent: %v", err)
		}
	})
}
