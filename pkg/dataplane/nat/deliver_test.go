package nat

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// stranger's packets for a node: what somebody without a key of the cluster's
// can make, or has overheard.
func hostile(n *simNode) map[string][]byte {
	pair := NewPair([]byte("a secret of nobody's"), wgtypes.Key{9}, n.key)
	valid := pair.Request(NewTransactionID())
	answer, err := Parse(valid)
	if err != nil {
		panic(err)
	}
	forged := own(n) // has the names, but not the key
	forged.own, forged.peer, forged.key = forged.peer, forged.own, pair.key
	return map[string][]byte{
		"check in a peer's name":   forged.Request(NewTransactionID()),
		"check of a stranger":      valid,
		"answer of a stranger":     pair.Answer(answer, netip.MustParseAddrPort("192.0.2.1:1")),
		"request for a server":     ServerRequest(NewTransactionID()),
		"our own check, sent back": own(n).Request(NewTransactionID()),
		"cut":                      valid[:40],
		"oversized":                append(slices.Clone(valid), make([]byte, maxPacket)...),
		"nothing":                  {},
	}
}

// own makes what a node itself sends to the first other node.
func own(n *simNode) Pair {
	for _, other := range n.world.nodes {
		if other != n {
			secret, _ := n.shared(other.key)
			return NewPair(secret, n.key, other.key)
		}
	}
	return Pair{}
}

// TestHostilePackets checks that packets that no peer can have made are refused
// and get no answer, and that those that one has made lead nowhere else.
func TestHostilePackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", noNAT, 1), w.behind("b", fullCone, 2)
		w.start()
		w.within(30*time.Second, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
		attacker := netip.MustParseAddrPort("192.0.2.66:6666")
		heard := &simEar{}
		w.internet.attach(attacker.Addr(), heard)
		for name, packet := range hostile(one) {
			before := one.agent.Status()
			one.agent.Deliver(one, attacker, packet)
			time.Sleep(time.Second)
			after := one.agent.Status()
			if refused := after.Refused + after.Dropped - before.Refused - before.Dropped; refused != 1 {
				t.Errorf("%s: %d packets refused", name, refused)
			}
			if got := heard.packets.Swap(0); got != 0 {
				t.Errorf("%s: %d packets sent to the attacker", name, got)
			}
		}
		captured := own(two).Request(NewCheckID(time.Now()))
		one.agent.Deliver(one, one.status(two).Remote, captured)
		time.Sleep(time.Second)
		before := one.agent.Status().Refused
		for range 5 {
			one.agent.Deliver(one, attacker, captured)
			time.Sleep(time.Minute)
		}
		if got := heard.packets.Load(); got != 0 {
			t.Errorf("%d packets for 5 copies of a check", got)
		}
		if got := one.agent.Status().Refused - before; got != 5 {
			t.Errorf("%d copies of a check refused", got)
		}
		if one.path(two) != HolePunched || one.device.state(two.key).Endpoint.Addr() == attacker.Addr() || !one.reaches(two) {
			t.Errorf("path is %s, and the device sends to %v", one.path(two), one.device.state(two.key).Endpoint)
		}
	})
}

// simEar hears what is sent to it.
type simEar struct{ packets atomic.Int64 }

func (e *simEar) receive(netip.AddrPort, netip.AddrPort, simPacket) { e.packets.Add(1) }

// TestFlood checks that a flood costs bounded work, and neither the peers' keys
// again and again nor the path of anybody.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", noNAT, 1), w.behind("b", portRestricted, 2)
		for i := range 20 {
			w.behind("z", noNAT, 100+i)
		}
		var shared atomic.Int64
		one.count = &shared
		w.start()
		stranger := NewPair([]byte("a secret of nobody's"), wgtypes.Key{9}, one.key).Request(NewTransactionID())
		ctx, cancel := context.WithCancel(t.Context())
		var flood sync.WaitGroup
		defer flood.Wait()
		defer cancel()
		agent := one.agent
		flood.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				for j := range 100 {
					agent.Deliver(one, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(j % 4)}), uint16(i)), stranger)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
		w.within(time.Minute, "reached", func() bool { return one.reaches(two) && two.reaches(one) })
		status := one.agent.Status()
		if status.Dropped == 0 || status.Refused == 0 {
			t.Errorf("dropped %d, refused %d", status.Dropped, status.Refused)
		}
		if got := shared.Load(); got > int64(len(w.nodes)) {
			t.Errorf("%d secrets made for %d peers", got, len(w.nodes)-1)
		}
	})
}

// TestAdmit checks how many packets of a source are heard.
func TestAdmit(t *testing.T) {
	cases := []struct {
		name  string
		from  func(i int) netip.Addr
		count int
		want  int
	}{
		{"one address", func(int) netip.Addr { return netip.AddrFrom4([4]byte{1}) }, 1000, sourceRate},
		{"one network of IPv6", func(i int) netip.Addr { return netip.AddrFrom16([16]byte{0: 0x20, 15: byte(i), 14: byte(i >> 8)}) }, 1000, sourceRate},
		{"many addresses", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{1, 2, byte(i >> 8), byte(i)}) }, 10000, maxSources},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newInbox()
			now := time.Unix(1000, 0)
			for range 2 {
				got := 0
				for i := range c.count {
					if b.admit(c.from(i), now) {
						got++
					}
				}
				if got != c.want {
					t.Errorf("%d of %d admitted, want %d", got, c.count, c.want)
				}
				now = now.Add(time.Second)
			}
		})
	}
}

// FuzzDeliver gives an engine any packet: it must neither panic, nor answer what
// no peer has signed.
func FuzzDeliver(f *testing.F) {
	w := &simWorld{internet: newNetwork()}
	one, two := w.node("a", w.internet, "203.0.113.1"), w.node("b", w.internet, "203.0.113.2")
	for _, packet := range hostile(one) {
		f.Add(packet)
	}
	f.Add(own(two).Request(TransactionID{1}))
	f.Fuzz(func(t *testing.T, packet []byte) {
		way := &simSink{}
		o := one.options()
		o.Direct = way
		agent, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		e := newEngine(agent)
		e.now = time.Now()
		e.setPeers([]Peer{{Key: two.key, Node: "b"}})
		e.receive(inbound{way: way, from: netip.MustParseAddrPort("203.0.113.2:51820"), packet: packet})
		m, err := Parse(packet)
		signed := err == nil && m.Class == ClassRequest && m.Verify(own(one)) == nil
		if answered := way.sent > 0; answered != signed {
			t.Errorf("answered: %t, signed: %t", answered, signed)
		}
	})
}

// simSink is a way that leads nowhere.
type simSink struct {
	sent int
	last []byte
}

func (s *simSink) Send(packet []byte, _ netip.AddrPort) error {
	s.sent++
	s.last = packet
	return nil
}

func (s *simSink) Endpoint(to netip.AddrPort) (netip.AddrPort, error) { return to, nil }

func (s *simSink) Remote(endpoint netip.AddrPort) (netip.AddrPort, bool) { return endpoint, true }

// TestAnswers checks which answers to a check prove a path.
func TestAnswers(t *testing.T) {
	cases := []struct {
		name   string
		answer func(right Pair, asked Message) []byte
		from   string
		want   bool
	}{
		{"right", func(right Pair, asked Message) []byte {
			return right.Answer(asked, netip.MustParseAddrPort("192.0.2.1:1"))
		}, "203.0.113.2:51820", true},
		{"from elsewhere", func(right Pair, asked Message) []byte {
			return right.Answer(asked, netip.MustParseAddrPort("192.0.2.1:1"))
		}, "203.0.113.2:51821", false},
		{"by somebody who saw the check", func(right Pair, asked Message) []byte {
			right.key = NewPair([]byte("another"), wgtypes.Key{}, wgtypes.Key{}).key
			return right.Answer(asked, netip.MustParseAddrPort("192.0.2.1:1"))
		}, "203.0.113.2:51820", false},
		{"to another check", func(right Pair, asked Message) []byte {
			asked.ID = NewCheckID(time.Now())
			return right.Answer(asked, netip.MustParseAddrPort("192.0.2.1:1"))
		}, "203.0.113.2:51820", false},
		{"the check itself", func(_ Pair, asked Message) []byte { return asked.raw.Raw }, "203.0.113.2:51820", false},
	}
	w := &simWorld{internet: newNetwork()}
	one, two := w.node("a", w.internet, "203.0.113.1"), w.node("b", w.internet, "203.0.113.2")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			way := &simSink{}
			o := one.options()
			o.Direct = way
			agent, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			e := newEngine(agent)
			e.now = time.Now()
			e.setPeers([]Peer{{Key: two.key, Node: "b"}})
			p := e.peers[two.key]
			if err := e.pairWith(p); err != nil {
				t.Fatal(err)
			}
			x := path{way, netip.MustParseAddrPort("203.0.113.2:51820")}
			e.setSearch(p, &search{ends: e.now.Add(time.Hour), tries: []*try{{path: x}}})
			e.check(p, x)
			asked, err := Parse(way.last)
			if err != nil {
				t.Fatal(err)
			}
			e.receive(inbound{way: way, from: netip.MustParseAddrPort(c.from), packet: c.answer(own(two), asked)})
			if got := !p.search.tries[0].proved.IsZero(); got != c.want {
				t.Errorf("proved: %t", got)
			}
		})
	}
}

// TestOverlay checks that no address inside the overlay is taken for one of a
// node: not a peer's candidate, not where a check of its own comes from, and not
// what servers see this node come from.
func TestOverlay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", portRestricted, 1), w.behind("b", portRestricted, 2)
		inside := netip.MustParseAddrPort("10.42.7.1:51820")
		o := one.options()
		o.Overlay = func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")} }
		o.Direct = &simSink{}
		agent, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		e := newEngine(agent)
		e.now = time.Now()
		e.take(wishes{peers: &[]Peer{{Key: two.key, Candidates: []Candidate{{Host, inside}, {Reflexive, two.endpoint()}}}}})
		p := e.peers[two.key]
		if got := p.remotes(); slices.Contains(got, inside) || !slices.Contains(got, two.endpoint()) {
			t.Errorf("the peer is looked for at %v", got)
		}
		check := own(two).Request(NewCheckID(time.Now()))
		e.receive(inbound{way: o.Direct, from: inside, packet: check})
		if got := p.remotes(); slices.Contains(got, inside) || p.invited || e.refused.Load() != 1 {
			t.Errorf("after a check the peer is looked for at %v, %d refused", got, e.refused.Load())
		}
		e.reflexive[0] = Reflection{Addrs: []netip.AddrPort{inside}}
		e.seen = []netip.AddrPort{inside}
		if got := e.candidates(); len(got) > 0 {
			t.Errorf("candidates %v", got)
		}
	})
}

// TestCandidatesOfSomebodyElse checks that a node which publishes addresses of
// somebody else's, and others each second, does not have its peers flood that.
func TestCandidatesOfSomebodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, liar := w.behind("a", fullCone, 1), w.behind("b", fullCone, 2)
		w.start()
		liar.halt()
		victim := netip.MustParseAddr("192.0.2.66")
		heard := &simEar{}
		w.internet.attach(victim, heard)
		port := uint16(1)
		for range 600 {
			peer := Peer{Key: liar.key, Node: "b", Endpoint: netip.AddrPortFrom(victim, port)}
			for range MaxCandidates {
				port++
				peer.Candidates = append(peer.Candidates, Candidate{Reflexive, netip.AddrPortFrom(victim, port)})
			}
			one.agent.SetPeers([]Peer{peer})
			time.Sleep(time.Second)
		}
		const minutes, search = 10, 60
		if got := heard.packets.Load(); got == 0 || got > (minutes+hastes)*search {
			t.Errorf("%d packets to the victim in %d minutes", got, minutes)
		}
	})
}
