package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// TestPaths checks what becomes of two nodes behind translators of all kinds,
// without a relay and with one.
func TestPaths(t *testing.T) {
	kinds := []natKind{noNAT, fullCone, addrRestricted, portRestricted, symmetricNAT}
	for _, a := range kinds {
		for _, b := range kinds {
			t.Run(string(a)+" and "+string(b), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testPaths(t, a, b) })
			})
		}
	}
}

func testPaths(t *testing.T, a, b natKind) {
	want := HolePunched
	switch {
	case a == noNAT && b == noNAT:
		want = Direct
	case b == symmetricNAT && (a == portRestricted || a == symmetricNAT), a == symmetricNAT && b == portRestricted:
		want = Unreached
	}
	w := newWorld(t)
	one, two := w.behind("a", a, 1), w.behind("b", b, 2)
	w.start()
	took := w.within(40*time.Second, string(want), func() bool { return one.path(two) == want && two.path(one) == want })
	if want == Unreached {
		time.Sleep(5 * time.Minute)
		if one.path(two) != Unreached || two.path(one) != Unreached {
			t.Errorf("path is %s and %s, want %s", one.path(two), two.path(one), Unreached)
		}
		return
	}
	t.Logf("%s after %v", want, took)
	if !one.reaches(two) || !two.reaches(one) {
		t.Error("what is sent through the tunnel does not arrive")
	}
	time.Sleep(10 * time.Minute) // the mappings have to be kept, which nothing else does
	if !two.reaches(one) || !one.reaches(two) {
		t.Error("the path did not stay open")
	}
}

// TestFirstPacket checks that what is sent to a peer before there is a path arrives soon
// after, whichever end sends: WireGuard has just begun a handshake to where nobody
// answers, and begins no second one for 5 s.
func TestFirstPacket(t *testing.T) {
	for sender, name := range []string{"the end that chooses", "the other"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				nodes := []*simNode{w.behind("a", portRestricted, 1), w.behind("b", portRestricted, 2)}
				from, to := nodes[sender], nodes[1-sender]
				w.start()
				time.Sleep(1200 * time.Millisecond) // the other's candidates are about to come
				from.device.send(to.key, "data", 1)
				took := w.within(20*time.Second, "there", func() bool {
					to.device.mu.Lock()
					defer to.device.mu.Unlock()
					return to.device.got[1] > 0
				})
				t.Log(took)
				if took > 3*time.Second {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// TestTopologies checks nodes that are not each behind a translator of its own.
func TestTopologies(t *testing.T) {
	const cgn = "203.0.113.9"
	cases := []struct {
		name  string
		nodes func(w *simWorld) (one, two *simNode)
		want  PathKind
	}{
		{"behind one translator", func(w *simWorld) (*simNode, *simNode) {
			box := newTranslator(portRestricted, w.internet, cgn)
			return w.node("a", box.inner, "192.168.0.2"), w.node("b", box.inner, "192.168.0.3")
		}, Direct},
		{"each behind two translators", func(w *simWorld) (*simNode, *simNode) {
			home := func(name, outer, middle, inner string) *simNode {
				carrier := newTranslator(portRestricted, w.internet, outer)
				return w.node(name, newTranslator(portRestricted, carrier.inner, middle).inner, inner)
			}
			return home("a", "203.0.113.9", "100.64.0.1", "192.168.1.2"), home("b", "203.0.113.10", "100.64.0.1", "192.168.2.2")
		}, HolePunched},
		{"at one carrier that turns packets around", func(w *simWorld) (*simNode, *simNode) {
			carrier := newTranslator(portRestricted, w.internet, cgn)
			carrier.hairpin = true
			return w.node("a", newTranslator(portRestricted, carrier.inner, "100.64.0.1").inner, "192.168.1.2"),
				w.node("b", newTranslator(portRestricted, carrier.inner, "100.64.0.2").inner, "192.168.2.2")
		}, HolePunched},
		{"at one carrier that does not", func(w *simWorld) (*simNode, *simNode) {
			carrier := newTranslator(portRestricted, w.internet, cgn)
			return w.node("a", newTranslator(portRestricted, carrier.inner, "100.64.0.1").inner, "192.168.1.2"),
				w.node("b", newTranslator(portRestricted, carrier.inner, "100.64.0.2").inner, "192.168.2.2")
		}, Unreached},
		{"IPv6 without translators beside IPv4 with them", func(w *simWorld) (*simNode, *simNode) {
			home := func(name, outer, inner, v6 string) *simNode {
				return w.node(name, newTranslator(fullCone, w.internet, outer).inner, inner, v6)
			}
			return home("a", "203.0.113.9", "192.168.1.2", "2001:db8::a"), home("b", "203.0.113.10", "192.168.2.2", "2001:db8::b")
		}, Direct},
		{"more addresses than pairs", func(w *simWorld) (*simNode, *simNode) {
			one, two := w.behind("a", portRestricted, 1), w.behind("b", portRestricted, 2)
			for i := range 14 {
				two.addrs = append(two.addrs, netip.AddrFrom4([4]byte{10, 0, byte(i), 1}))
			}
			return one, two
		}, HolePunched},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one, two := c.nodes(w)
				w.start()
				time.Sleep(30 * time.Second)
				if one.path(two) != c.want || two.path(one) != c.want {
					t.Fatalf("path is %s and %s, want %s", one.path(two), two.path(one), c.want)
				}
				if reached := one.reaches(two) && two.reaches(one); reached != (c.want != Unreached) {
					t.Errorf("reached: %t", reached)
				}
			})
		})
	}
}

// TestRelayFirst checks that nodes that only a relay brings together meet by
// it soon, whoever has the relay, and that the relay is known for what it is.
func TestRelayFirst(t *testing.T) {
	for _, owners := range []string{"a", "b", "ab"} {
		t.Run(owners, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one, two := w.behind("a", symmetricNAT, 1), w.behind("b", portRestricted, 2)
				for _, n := range w.nodes {
					if strings.Contains(owners, n.name) {
						n.allocateAt(newRelayServer(w.internet, map[string]string{"a": "198.51.100.10", "b": "198.51.100.11"}[n.name]))
					}
				}
				w.start()
				w.within(10*time.Second, "relayed", func() bool {
					return one.path(two) == ByRelay && two.path(one) == ByRelay && one.reaches(two) && two.reaches(one)
				})
				uses := len(one.device.uses) + len(two.device.uses)
				time.Sleep(30 * time.Minute)
				if got := len(one.device.uses) + len(two.device.uses); got > uses+1 {
					t.Errorf("the devices were switched %d times more", got-uses)
				}
				if !two.reaches(one) || !one.reaches(two) || one.path(two) != ByRelay {
					t.Error("the path did not last")
				}
			})
		})
	}
}

// TestIdle checks that nodes without translators do nothing for each other.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", noNAT, 1), w.behind("b", noNAT, 2)
		one.config.STUNServers, two.config.STUNServers = nil, nil
		w.start()
		time.Sleep(time.Hour)
		if got := w.internet.sent(); got != 0 {
			t.Errorf("%d STUN packets were sent", got)
		}
		for _, n := range w.nodes {
			if n.device.looks > 0 || len(n.device.uses) > 0 || len(n.news) > 0 {
				t.Errorf("%s: the device was looked at %d times and switched to %v, and there is news: %v", n.name, n.device.looks, n.device.uses, n.news)
			}
			if got := n.path(w.nodes[(slices.Index(w.nodes, n)+1)%2]); got != Direct {
				t.Errorf("path is %s", got)
			}
		}
	})
}

// TestQuiet checks that paths that are open cost no more than they must: a
// check of each end in 15 s where there is a translator, and none where there is
// none, once it is found.
func TestQuiet(t *testing.T) {
	cases := []struct {
		name string
		kind natKind
		most int
	}{
		{"one node behind a translator", portRestricted, 2 * 2 * 4 * 10}, // check and answer, both ends, 4 a minute
		{"no translator, but relays", noNAT, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one, two := w.behind("a", noNAT, 1), w.behind("b", c.kind, 2)
				one.config.STUNServers = nil
				if c.kind == noNAT {
					two.config.STUNServers = nil
					one.allocateAt(newRelayServer(w.internet, "198.51.100.9"))
				}
				w.start()
				w.within(20*time.Second, "reached", func() bool { return one.reaches(two) && two.reaches(one) })
				time.Sleep(time.Minute)
				w.servers[0].set(func() { w.servers[0].count = 0 })
				w.servers[1].set(func() { w.servers[1].count = 0 })
				before := w.internet.sent()
				time.Sleep(10 * time.Minute)
				got := w.internet.sent() - before - 2*w.servers[0].count - 2*w.servers[1].count
				if got > c.most {
					t.Errorf("%d STUN packets in 10 minutes, want at most %d", got, c.most)
				}
			})
		})
	}
}

// TestRelayOfOpenNode checks that the relay of a node that has no translator costs
// those nothing that reach the node without it, and is used if they do not.
func TestRelayOfOpenNode(t *testing.T) {
	for _, owner := range []int{0, 1} {
		for _, blocked := range []bool{false, true} {
			t.Run(fmt.Sprintf("owner %d, blocked %t", owner, blocked), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					nodes := []*simNode{w.behind("a", noNAT, 1), w.behind("b", noNAT, 2)}
					nodes[owner].allocateAt(newRelayServer(w.internet, "198.51.100.9"))
					w.internet.blockWG(blocked)
					w.start()
					time.Sleep(time.Minute)
					if got := nodes[0].agent.Status().Sent + nodes[1].agent.Status().Sent; got > 0 {
						t.Errorf("%d checks", got)
					}
					nodes[0].device.send(nodes[1].key, "data", 1)
					time.Sleep(time.Minute) // first the path is tried that checks pass and WireGuard does not
					if !nodes[0].reaches(nodes[1]) || !nodes[1].reaches(nodes[0]) {
						t.Fatal("no path")
					}
					if !blocked {
						return
					}
					nodes[1-owner].halt() // and another agent finds the path in use
					nodes[1-owner].start()
					time.Sleep(20 * time.Second)
					for i, n := range nodes {
						if got := n.path(nodes[1-i]); got != ByRelay {
							t.Errorf("%s: path is %s", n.name, got)
						}
					}
					time.Sleep(10 * time.Minute)
					if !nodes[1].reaches(nodes[0]) {
						t.Error("the path did not last")
					}
				})
			})
		}
	}
}

// TestWaysToPrivateAddresses checks that a relay is not asked to go to addresses
// in LANs that it is not in.
func TestWaysToPrivateAddresses(t *testing.T) {
	public, private, v6 := netip.MustParseAddrPort("203.0.113.2:40001"), netip.MustParseAddrPort("192.168.2.2:51820"), netip.MustParseAddrPort("[2001:db8::2]:51820")
	for _, c := range []struct {
		name, relayed string
		to            netip.AddrPort
		all           []netip.AddrPort
		want          bool
	}{
		{"the port itself", "", private, []netip.AddrPort{private, public}, true},
		{"a public relay", "198.51.100.9:50001", private, []netip.AddrPort{private, public}, false},
		{"to a public address", "198.51.100.9:50001", public, []netip.AddrPort{private, public}, true},
		{"to the only one of the family", "198.51.100.9:50001", private, []netip.AddrPort{private, v6}, true},
		{"a relay in a LAN", "192.168.9.9:50001", private, []netip.AddrPort{private, public}, true},
		{"another family", "198.51.100.9:50001", v6, []netip.AddrPort{v6}, false},
	} {
		way := wayIn{}
		if c.relayed != "" {
			way.relayed = netip.MustParseAddrPort(c.relayed)
		}
		if got := way.reaches(c.to.Addr(), c.all); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

// TestWrongEndpoint checks that a node without a translator is found by its
// candidates if what the node set says is wrong, once there is something to send.
func TestWrongEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", noNAT, 1), w.behind("b", noNAT, 2)
		w.behind("c", portRestricted, 3) // so that the device is looked at
		w.start()
		for _, n := range w.nodes {
			n.device.set(func() {
				for _, p := range n.device.peers {
					p.Endpoint = netip.MustParseAddrPort("192.0.2.200:51820")
				}
			})
		}
		time.Sleep(5 * time.Minute)
		if got := len(one.device.uses); got > 1 { // for c
			t.Errorf("switched %d times without need", got)
		}
		w.within(30*time.Second, "reached", func() bool { return one.reaches(two) && two.reaches(one) })
	})
}

// TestStaleCandidates checks that a path that works is not given up for what
// a peer says of itself, and that an agent that starts takes it as it is.
func TestStaleCandidates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", portRestricted, 1), w.behind("b", portRestricted, 2)
		w.start()
		w.within(30*time.Second, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
		endpoint, uses := one.device.state(two.key).Endpoint, len(one.device.uses)
		w.mu.Lock()
		w.frozen["b"] = true
		w.candidates["b"] = []Candidate{{Host, netip.MustParseAddrPort("192.0.2.99:51820")}, {Reflexive, netip.MustParseAddrPort("203.0.113.99:4000")}}
		w.mu.Unlock()
		w.distribute(one)
		time.Sleep(time.Minute)
		one.halt()
		one.start()
		time.Sleep(10 * time.Millisecond)
		if got := one.path(two); got != HolePunched {
			t.Errorf("path is %s for an agent that starts", got)
		}
		time.Sleep(time.Minute)
		if got := one.device.state(two.key).Endpoint; got != endpoint || len(one.device.uses) != uses || one.path(two) != HolePunched {
			t.Errorf("the device sends to %v, want %v; it was switched %d times more; path is %s", got, endpoint, len(one.device.uses)-uses, one.path(two))
		}
	})
}

// TestSeenByPeers checks which of the addresses that peers see become candidates.
func TestSeenByPeers(t *testing.T) {
	for _, c := range []struct {
		kind natKind
		want string
	}{{fullCone, "host/192.168.1.2:51820,server_reflexive/203.0.113.1:40001"}, {symmetricNAT, "host/192.168.1.2:51820"}} {
		t.Run(string(c.kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one := w.behind("a", c.kind, 1)
				w.behind("b", noNAT, 2).allocateAt(newRelayServer(w.internet, "198.51.100.8"))
				w.behind("c", noNAT, 3).allocateAt(newRelayServer(w.internet, "198.51.100.9"))
				for _, n := range w.nodes {
					n.config.STUNServers = nil
				}
				w.start()
				time.Sleep(3 * time.Minute)
				if got := FormatCandidates(one.agent.Candidates()); got != c.want {
					t.Errorf("candidates are %s, want %s", got, c.want)
				}
			})
		})
	}
}

// TestManyPeers checks that a node with very many peers that do not answer
// sends no more than it should, and says so.
func TestManyPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one := w.behind("a", fullCone, 1)
		w.start()
		var peers []Peer
		for i := range 1000 {
			key := wgtypes.Key{0: 1, 1: byte(i >> 8), 2: byte(i)}
			peers = append(peers, Peer{Key: key, Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), wgPort)})
			one.device.set(func() { one.device.peer(key) })
		}
		time.Sleep(10 * time.Second)
		before := one.box().inner.sent()
		one.agent.SetPeers(peers)
		time.Sleep(time.Minute)
		const searches, checks = 5, 10 // one after another in a minute, and checks of the one path in each
		if got, most := one.box().inner.sent()-before, searches*maxSearches*checks; got > most || got < 1000 {
			t.Errorf("%d packets in a minute, want at most %d", got, most)
		}
		one.agent.SetPeers(nil)
		time.Sleep(time.Minute)
		if got := one.agent.Status().Peers; len(got) != 0 {
			t.Errorf("%d peers are left", len(got))
		}
	})
}

// TestTick checks that a round of upkeep brings what is new.
func TestTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one := w.behind("a", fullCone, 1)
		w.start()
		time.Sleep(10 * time.Second)
		if got := one.agent.Status().Mapping; got != EndpointIndependent {
			t.Errorf("mapping is %s", got)
		}
		one.box().move("203.0.113.50")
		if err := one.agent.Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := FormatCandidates(one.agent.Candidates()); !strings.Contains(got, "203.0.113.50") {
			t.Errorf("candidates are %s", got)
		}
		blind := errors.New("no such device")
		one.device.set(func() { one.device.blind = blind })
		if err := one.agent.Tick(t.Context()); !errors.Is(err, blind) {
			t.Errorf("tick without a device: %v", err)
		}
		one.halt()
		agent, err := New(one.options())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := agent.Tick(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an agent that does not run ticks: %v", err)
		}
	})
}

// TestBareMapping checks that the mapping that others are told of stays while no
// path keeps it, so that they find it open.
func TestBareMapping(t *testing.T) {
	for name, beside := range map[string]func(w *simWorld, box *simNAT){
		"alone":                       func(*simWorld, *simNAT) {},
		"beside a node that is off":   func(w *simWorld, _ *simNAT) { w.behind("b", noNAT, 2) },
		"beside one in the same LAN":  func(w *simWorld, box *simNAT) { w.node("b", box.inner, "192.168.1.3") },
		"beside one that it talks to": func(w *simWorld, _ *simNAT) { w.behind("b", noNAT, 2) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one := w.behind("a", fullCone, 1)
				box := one.box()
				beside(w, box)
				w.start()
				if strings.HasSuffix(name, "off") {
					w.nodes[1].halt()
				}
				time.Sleep(5 * time.Second)
				mappings := func() uint16 {
					box.mu.Lock()
					defer box.mu.Unlock()
					return box.port
				}
				before := mappings()
				time.Sleep(time.Hour)
				if got := mappings() - before; got != 0 {
					t.Errorf("%d mappings more after an hour", got)
				}
			})
		})
	}
}

// TestLooks checks that looking at a device of many peers takes little of a
// processor's time.
func TestLooks(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		time.Millisecond: lookInterval, 200 * time.Millisecond: 10 * time.Second, time.Second: lookLongest,
	} {
		e := &engine{Agent: &Agent{}, someNatted: true, now: time.Now()}
		e.device.last, e.device.took = e.now, took
		if got := e.nextLook().Sub(e.now); got != want {
			t.Errorf("pause after a look of %v is %v, want %v", took, got, want)
		}
	}
}

// TestStart checks that servers are asked once at the start, though the network is
// watched from then on, and again when it changes.
func TestStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one := w.behind("a", fullCone, 1)
		w.start()
		time.Sleep(time.Millisecond)
		for _, want := range []int{1, 2} {
			one.agent.Changed()
			time.Sleep(10 * time.Second)
			w.servers[0].set(func() {
				if got := w.servers[0].count; got != want {
					t.Errorf("the server was asked %d times, want %d", got, want)
				}
			})
		}
	})
}

// TestNoChurn checks that a mapping that changes all the time, of which others
// can make no use, is not published all the time.
func TestNoChurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one := w.behind("a", symmetricNAT, 1)
		w.start()
		time.Sleep(2 * time.Minute)
		want := one.agent.Candidates()
		for range 10 {
			time.Sleep(time.Minute)
			if diff := cmp.Diff(FormatCandidates(want), FormatCandidates(one.agent.Candidates())); diff != "" {
				t.Fatalf("candidates changed (-want +got):\n%s", diff)
			}
		}
	})
}

// TestSlowServers checks that nothing is done over and over while a refresh
// takes longer than the next one would come.
func TestSlowServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one := w.behind("a", fullCone, 1)
		one.config.RefreshInterval = time.Second
		w.servers[0].silent = true
		w.start()
		time.Sleep(5 * time.Minute)
		w.servers[0].mu.Lock()
		defer w.servers[0].mu.Unlock()
		if got, most := w.servers[0].count, 8*maxRequests; got > most { // a refresh takes 40 s
			t.Errorf("%d requests, want at most %d", got, most)
		}
		if got := FormatCandidates(one.agent.Candidates()); !strings.Contains(got, "203.0.113.1") {
			t.Errorf("candidates are %s", got)
		}
	})
}

// TestSwitchedOff checks that a node that is switched off behind its translator
// changes nothing between others, and that a relay of a node has it not check those
// that it reaches anyway.
func TestSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two, off := w.behind("a", noNAT, 1), w.behind("b", noNAT, 2), w.behind("c", portRestricted, 3)
		w.start()
		w.within(time.Minute, "reached", func() bool { return one.path(off) == HolePunched && two.path(off) == HolePunched })
		off.halt()
		off.mu.Lock()
		off.down = true
		off.mu.Unlock()
		one.reaches(off)
		w.within(2*time.Minute, "lost", func() bool { return one.path(off) == Unreached && one.status(off).Missed })
		if status := one.agent.Status(); status.Translated {
			t.Error("a public node takes itself for translated")
		}
		w.within(10*time.Minute, "not missed any more", func() bool { return one.path(off) == Unreached && !one.status(off).Missed })
		before := one.status(two)
		w.frozen["a"] = true
		one.allocateAt(newRelayServer(w.internet, "198.51.100.9"))
		time.Sleep(10 * time.Minute)
		if after := one.status(two); after != before || after.Path != Direct {
			t.Errorf("a way to the other was looked for: %+v, before %+v", after, before)
		}
	})
}

// TestTranslatorToPrivateAddresses checks that a node behind a translator knows of
// it also where the peer has an address that might be one of its own network.
func TestTranslatorToPrivateAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", portRestricted, 1), w.node("b", w.internet, "10.9.9.2")
		w.start()
		w.within(40*time.Second, "punched, say both", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
		sent := one.agent.Status().Sent
		time.Sleep(10 * time.Minute)
		if got := one.agent.Status().Sent - sent; got < 30 {
			t.Errorf("%d checks in 10 minutes keep the mapping", got)
		}
	})
}
