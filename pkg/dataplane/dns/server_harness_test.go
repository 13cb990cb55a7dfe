package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// patience is how long a test waits for what must come, in a slow virtual
// machine too.
const patience = time.Minute

// fakeZone is an authority for overlay.local that tests say the answers of.
type fakeZone struct {
	records map[string][]dns.RR // by name in lower case
	turn    atomic.Uint32
}

func newFakeZone(records ...string) *fakeZone {
	z := &fakeZone{records: map[string][]dns.RR{}}
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		name := rr.Header().Name
		z.records[name] = append(z.records[name], rr)
	}
	return z
}

const fakeSOA = "overlay.local. 5 IN SOA ns.overlay.local. hostmaster.overlay.local. 1 3600 600 86400 5"

// Answer implements authority.
func (z *fakeZone) Answer(question dns.Question) (Reply, bool) {
	name := strings.ToLower(question.Name)
	if !dns.IsSubDomain("overlay.local.", name) && !dns.IsSubDomain("10.in-addr.arpa.", name) {
		return Reply{}, false
	}
	if strings.HasPrefix(name, "panic.") {
		panic("the zone broke")
	}
	reply := Reply{Authoritative: true}
	soa, _ := dns.NewRR(fakeSOA)
	all, known := z.records[name]
	for _, rr := range all {
		if rr.Header().Rrtype == question.Qtype {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	switch {
	case !known:
		reply.Rcode, reply.Ns = dns.RcodeNameError, []dns.RR{soa}
	case len(reply.Answer) == 0:
		reply.Ns = []dns.RR{soa}
	default:
		by := int(z.turn.Add(1)) % len(reply.Answer)
		reply.Answer = append(reply.Answer[by:], reply.Answer[:by]...)
	}
	return reply, true
}

// Lookup implements authority by Answer.
func (z *fakeZone) Lookup(name []byte, ipv6 bool, into []netip.Addr) (addrs []netip.Addr, ttl uint32, found bool) {
	text, _, err := dns.UnpackDomainName(name, 0)
	if err != nil {
		return into, 0, false
	}
	question := dns.Question{Name: text, Qtype: dns.TypeA, Qclass: dns.ClassINET}
	if ipv6 {
		question.Qtype = dns.TypeAAAA
	}
	if strings.HasPrefix(text, "panic.") {
		return into, 0, false
	}
	reply, ours := z.Answer(question)
	if !ours || len(reply.Answer) == 0 || len(reply.Answer) > cap(into)-len(into) {
		return into, 0, false
	}
	for _, rr := range reply.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			into = append(into, netip.AddrFrom4([4]byte(rr.A.To4())))
		case *dns.AAAA:
			into = append(into, netip.AddrFrom16([16]byte(rr.AAAA.To16())))
		}
	}
	return into, reply.Answer[0].Header().Ttl, true
}

// exchangerFunc is an Exchanger.
type exchangerFunc func(ctx context.Context, question *dns.Msg) *dns.Msg

func (f exchangerFunc) Exchange(ctx context.Context, question *dns.Msg, _ bool) *dns.Msg {
	return f(ctx, question)
}

// Known implements Exchanger.
func (exchangerFunc) Known(*dns.Msg, bool) *dns.Msg { return nil }

// answerElsewhere answers 192.0.2.1 to everything.
func answerElsewhere(_ context.Context, question *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(question)
	m.Answer = []dns.RR{mustRR(question.Question[0].Name + " 60 IN A 192.0.2.1")}
	return m
}

func mustRR(text string) dns.RR {
	rr, err := dns.NewRR(text)
	if err != nil {
		panic(err)
	}
	return rr
}

// addresses are so many A records of a name, the last at 10.9.n.n.
func addresses(name string, n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("%s 5 IN A 10.9.%d.%d", name, i/250, i%250+1))
	}
	return all
}

// testZone has what the tests ask for.
func testZone() *fakeZone {
	return newFakeZone(slices.Concat([]string{
		fakeSOA,
		"web.overlay.local. 5 IN A 10.1.0.1",
		"web.overlay.local. 5 IN A 10.1.0.2",
		"web.overlay.local. 5 IN AAAA fd00::1",
		"four.overlay.local. 5 IN A 10.1.0.4",
		"1.0.1.10.in-addr.arpa. 5 IN PTR web.overlay.local.",
	}, addresses("many.overlay.local.", 60), addresses("crowd.overlay.local.", 200))...)
}

// newTestServer returns a server of a zone for clients of the loopback, and of the tests' own networks.
func newTestServer(config ServerConfig, zone authority) *Server {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	s := NewServer(config)
	s.zone = zone
	s.SetClients([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")})
	return s
}

// run has a server listen, waits until it does, and returns a function that ends it, as the test's end does.
func run(t testing.TB, s *Server, addrs ...netip.AddrPort) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	s.SetAddresses(addrs)
	eventually(t, func() error {
		for _, l := range s.Listeners() {
			if l.Fault != nil {
				return l.Fault
			}
		}
		return nil
	})
	return stop
}

// eventually waits until there is no error.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-tick.C:
		}
	}
}

// freePort is an address whose port nobody has, by UDP and TCP.
func freePort(t testing.TB, ip string) netip.AddrPort {
	t.Helper()
	for range 100 {
		listener, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Fatal(err)
		}
		addr := listener.Addr().(*net.TCPAddr).AddrPort()
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		_ = listener.Close()
		if err == nil {
			_ = conn.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return netip.AddrPort{}
}

// askServer asks a server by miekg/dns.
func askServer(t testing.TB, network string, server netip.AddrPort, m *dns.Msg) *dns.Msg {
	t.Helper()
	client := dns.Client{Net: network, Timeout: patience, UDPSize: dns.MaxMsgSize}
	reply, _, err := client.Exchange(m, server.String())
	if err != nil {
		t.Fatalf("ask %s for %s: %v", server, m.Question[0].Name, err)
	}
	return reply
}

// question is one as a stub resolver asks it.
func question(name string, qtype uint16, edit ...func(*dns.Msg)) *dns.Msg {
	m := new(dns.Msg).SetQuestion(name, qtype)
	for _, each := range edit {
		each(m)
	}
	return m
}

func ednsQuestion(m *dns.Msg, size uint16, do bool) *dns.Msg { return m.SetEdns0(size, do) }

func wire(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// framed is a message as TCP carries it.
func framed(message []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
}

// replyTo has a server answer a packet without a socket, forwarding included.
func replyTo(s *Server, proto protocol, packet []byte) []byte {
	a := arrival{packet: packet, proto: proto, client: netip.MustParseAddr("10.0.0.9"), at: time.Now(), count: &s.counters[0]}
	reply, others := s.answer(a, new(scratch))
	if others != nil {
		return s.exchange(context.Background(), others)
	}
	return reply
}

// sorted is records as text, in order.
func sorted(records []dns.RR) []string {
	var all []string
	for _, rr := range records {
		all = append(all, strings.Join(strings.Fields(rr.String()), " "))
	}
	slices.Sort(all)
	return all
}

// oneAddress has the same for all names.
type oneAddress struct{}

func (oneAddress) Answer(dns.Question) (Reply, bool) { return Reply{}, false }

func (oneAddress) Lookup(_ []byte, _ bool, into []netip.Addr) (addrs []netip.Addr, ttl uint32, found bool) {
	return append(into, netip.AddrFrom4([4]byte{10, 0, 0, 1})), 5, true
}

// clientsZone is a real one, with what the tests with real clients ask for.
func clientsZone(t testing.TB) *Zone {
	t.Helper()
	zone, err := NewZone(ZoneConfig{Name: "overlay.local", NegativeTTL: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	addrs := func(texts ...string) (all []netip.Addr) {
		for _, text := range texts {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}
	var crowd []netip.Addr
	for i := range 200 {
		crowd = append(crowd, netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}))
	}
	err = zone.Set("test", "all",
		Entry{Name: "web", Addrs: addrs("10.1.0.1", "10.1.0.2", "fd00::1"), TTL: 5 * time.Second, Reverse: true},
		Entry{Name: "turn", Addrs: addrs("10.1.1.1", "10.1.1.2", "10.1.1.3"), TTL: 5 * time.Second},
		Entry{Name: "crowd", Addrs: crowd, TTL: 5 * time.Second},
		Entry{Name: "web.example.", Addrs: addrs("10.1.0.3"), TTL: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	zone.SetServers(addrs("10.1.0.254", "fd00::254"))
	zone.SetReverse([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")})
	return zone
}
