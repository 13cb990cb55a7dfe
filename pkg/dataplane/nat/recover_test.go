package nat

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// relayed is two nodes that only a relay brings together.
func relayed(t *testing.T) (w *simWorld, relay *simRelay, one, two *simNode, way *simWay) {
	w = newWorld(t)
	one, two = w.behind("a", symmetricNAT, 1), w.behind("b", symmetricNAT, 2)
	relay = newRelayServer(w.internet, "198.51.100.9")
	way = two.allocateAt(relay)
	w.start()
	w.within(40*time.Second, "relayed", func() bool { return one.path(two) == ByRelay && two.path(one) == ByRelay })
	return w, relay, one, two, way
}

// flow sends from each of two nodes to the other until it is stopped, which
// returns how much did not arrive.
func (w *simWorld) flow(one, two *simNode) (stop func() (lost int)) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan int)
	go func() {
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		sent := 0
		for ctx.Err() == nil {
			sent++
			one.device.send(two.key, "data", sent)
			two.device.send(one.key, "data", sent)
			<-ticker.C
		}
		<-time.After(time.Second)
		lost := 0
		for i := range sent {
			for _, n := range []*simNode{one, two} {
				n.device.set(func() {
					if n.device.got[i+1] == 0 {
						lost++
					}
				})
			}
		}
		done <- lost
	}()
	return func() int {
		cancel()
		return <-done
	}
}

// TestRecover checks that traffic flows again, and in bounded time, after
// something went wrong.
func TestRecover(t *testing.T) {
	type lab struct {
		*simWorld
		one, two *simNode
		relay    *simRelay
		way      *simWay
	}
	punched := func(a, b natKind) func(*testing.T) lab {
		return func(t *testing.T) lab {
			w := newWorld(t)
			one, two := w.behind("a", a, 1), w.behind("b", b, 2)
			w.start()
			w.within(40*time.Second, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
			return lab{simWorld: w, one: one, two: two}
		}
	}
	relays := func(t *testing.T) lab {
		w, relay, one, two, way := relayed(t)
		return lab{w, one, two, relay, way}
	}
	restart := func(nodes ...*simNode) {
		for _, n := range nodes {
			n.halt()
		}
		for _, n := range nodes {
			n.start()
		}
	}
	cases := []struct {
		name   string
		lab    func(*testing.T) lab
		broken func(lab)
		limit  time.Duration
		want   PathKind
	}{
		{"the relay is gone and there is another", relays, func(l lab) {
			l.two.loseRelay(l.way)
			l.one.allocateAt(l.relay)
		}, 10 * time.Second, ByRelay},
		{"the relay died without a word, and another was there all the time", func(t *testing.T) lab {
			l := relays(t)
			l.one.allocateAt(newRelayServer(l.internet, "198.51.100.10"))
			time.Sleep(10 * time.Second)
			return l
		}, func(l lab) { l.relay.release(l.way) }, 40 * time.Second, ByRelay},
		{"the mappings of one end are forgotten", punched(portRestricted, portRestricted), func(l lab) { l.one.box().forget() }, 40 * time.Second, HolePunched},
		{"the mappings of both ends are forgotten", punched(portRestricted, addrRestricted), func(l lab) {
			l.one.box().forget()
			l.two.box().forget()
		}, 40 * time.Second, HolePunched},
		{"the public address of the end that chooses changes", punched(portRestricted, portRestricted), func(l lab) { l.one.box().move("203.0.113.77") }, 100 * time.Second, HolePunched},
		{"the public address of the other end changes", punched(portRestricted, portRestricted), func(l lab) { l.two.box().move("203.0.113.77") }, 100 * time.Second, HolePunched},
		{"the public address changes, and the node notices", punched(portRestricted, portRestricted), func(l lab) {
			l.two.box().move("203.0.113.77")
			l.two.agent.Changed()
		}, 20 * time.Second, HolePunched},
		{"the address behind a symmetric translator changes", punched(symmetricNAT, noNAT), func(l lab) { l.one.box().move("203.0.113.77") }, 40 * time.Second, HolePunched},
		{"an agent restarts", punched(portRestricted, fullCone), func(l lab) { restart(l.one) }, 10 * time.Second, HolePunched},
		{"an agent and its device restart", punched(portRestricted, portRestricted), func(l lab) {
			l.one.halt()
			l.one.reset()
			l.one.start()
		}, 20 * time.Second, HolePunched},
		{"both restart at once", punched(portRestricted, portRestricted), func(l lab) {
			for _, n := range l.nodes {
				n.halt()
				n.reset()
			}
			restart(l.nodes...)
		}, 20 * time.Second, HolePunched},
		{"both restart at once, by relay", relays, func(l lab) {
			for _, n := range l.nodes {
				n.halt()
				n.reset()
			}
			restart(l.nodes...)
		}, 20 * time.Second, ByRelay},
		{"both are away for an hour", punched(portRestricted, portRestricted), func(l lab) {
			for _, n := range l.nodes {
				n.halt()
			}
			time.Sleep(time.Hour)
			restart(l.nodes...)
		}, 30 * time.Second, HolePunched},
		{"the internet was down for an hour", punched(portRestricted, portRestricted), func(l lab) {
			l.internet.setDown(true)
			time.Sleep(time.Hour)
			l.internet.setDown(false)
		}, 5 * time.Minute, HolePunched},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := c.lab(t)
				c.broken(l)
				took := l.within(c.limit, "reached again", func() bool {
					return l.one.reaches(l.two) && l.two.reaches(l.one) && l.one.path(l.two) == c.want && l.two.path(l.one) == c.want
				})
				t.Logf("%s after %v", c.want, took)
				time.Sleep(3 * time.Minute)
				if !l.one.reaches(l.two) || !l.two.reaches(l.one) || l.one.path(l.two) != c.want || l.two.path(l.one) != c.want {
					t.Errorf("it did not last: %s and %s", l.one.path(l.two), l.two.path(l.one))
				}
			})
		})
	}
}

// TestLyingServers checks that servers that are wrong, slow or send old answers
// again cost time, and not the path.
func TestLyingServers(t *testing.T) {
	lie := netip.MustParseAddrPort("192.0.2.66:6666")
	cases := []struct {
		name  string
		set   func(first, second *simServer)
		limit time.Duration
	}{
		{"one lies", func(first, _ *simServer) { first.lie = lie }, 40 * time.Second},
		{"both lie", func(first, second *simServer) { first.lie, second.lie = lie, lie }, 0},
		{"both are late", func(first, second *simServer) { first.late, second.late = 3*time.Second, 9*time.Second }, 40 * time.Second},
		{"both are silent at first", func(first, second *simServer) { first.silent, second.silent = true, true }, 0},
		{"both send old answers again", func(first, second *simServer) { first.keep, second.keep = true, true }, 40 * time.Second},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one, two := w.behind("a", portRestricted, 1), w.behind("b", portRestricted, 2)
				c.set(w.servers[0], w.servers[1])
				w.start()
				reached := func() bool {
					return one.path(two) == HolePunched && two.path(one) == HolePunched && one.reaches(two)
				}
				if c.limit == 0 { // until they behave
					time.Sleep(5 * time.Minute)
					for _, s := range w.servers {
						s.set(func() { s.lie, s.silent = netip.AddrPort{}, false })
					}
					c.limit = 2 * time.Minute
				}
				t.Log(w.within(c.limit, "reached", reached))
				w.servers[0].set(func() { w.servers[0].lie = lie })
				w.servers[1].set(func() { w.servers[1].lie = lie })
				time.Sleep(10 * time.Minute)
				if !reached() {
					t.Error("lies of servers ended a path that worked")
				}
			})
		})
	}
}

// questions asks another node from time to time until it is stopped, which returns
// how many had no answer.
func (w *simWorld) questions(from, to *simNode, pause time.Duration) (stop func() (lost int)) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan int, 1)
	go func() {
		ticker := time.NewTicker(pause)
		defer ticker.Stop()
		sent := 0
		for ctx.Err() == nil {
			sent++
			from.device.send(to.key, "echo", sent)
			<-ticker.C
		}
		<-time.After(time.Second)
		lost := 0
		from.device.set(func() {
			for i := range sent {
				if from.device.got[i+1] == 0 {
					lost++
				}
			}
		})
		done <- lost
	}()
	return func() int {
		cancel()
		return <-done
	}
}

// TestUpgrade checks that a relayed path makes room for a better one at the first
// try, without the loss of a packet, and that the relay carries nothing any more.
func TestUpgrade(t *testing.T) {
	type flow func(w *simWorld, one, two *simNode) (stop func() int)
	asks := func(pause time.Duration, other bool) flow {
		return func(w *simWorld, one, two *simNode) func() int {
			if other {
				one, two = two, one
			}
			return w.questions(one, two, pause)
		}
	}
	dense := 3 * time.Millisecond
	if testing.Short() { // which is for slow machines; more than a packet is under way all the same
		dense *= 4
	}
	for _, owner := range []string{"the end that chooses", "the other end"} {
		for name, begin := range map[string]flow{
			"both send":        (*simWorld).flow,
			"one asks densely": asks(dense, false), "the other asks densely": asks(dense, true),
			"one asks": asks(37*time.Millisecond, false), "the other asks": asks(37*time.Millisecond, true),
			"one asks slowly": asks(251*time.Millisecond, false), "the other asks slowly": asks(251*time.Millisecond, true),
		} {
			t.Run("relay of "+owner+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					one, two := w.behind("a", symmetricNAT, 1), w.behind("b", symmetricNAT, 2)
					relay := newRelayServer(w.internet, "198.51.100.9")
					if owner == "the other end" {
						two.allocateAt(relay)
					} else {
						one.allocateAt(relay)
					}
					w.start()
					w.within(40*time.Second, "relayed", func() bool { return one.path(two) == ByRelay && two.path(one) == ByRelay })
					stop := begin(w, one, two)
					time.Sleep(time.Minute)
					before := one.switches() + two.switches()
					one.box().become(fullCone)
					two.box().become(fullCone)
					w.within(3*time.Minute, "hole-punched", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
					time.Sleep(10 * time.Second)
					if lost := stop(); lost > 0 {
						t.Errorf("lost %d packets", lost)
					}
					if one.path(two) != HolePunched || two.path(one) != HolePunched {
						t.Errorf("path is %s and %s", one.path(two), two.path(one))
					}
					if tries := one.switches() + two.switches() - before; tries != 1 {
						t.Errorf("the devices were switched %d times", tries)
					}
				})
			})
		}
	}
}

// switches is how often the device was switched.
func (n *simNode) switches() int {
	n.device.mu.Lock()
	defer n.device.mu.Unlock()
	return len(n.device.uses)
}

// TestFailedTrial checks that the device goes back to an endpoint that works
// if a better one that was proved carries nothing of WireGuard's.
func TestFailedTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, two, one, _ := relayed(t) // the one has the relay and so chooses
		w.internet.blockWG(true)        // but not by the relay
		one.box().become(fullCone)
		two.box().become(fullCone)
		time.Sleep(15 * time.Minute)
		one.device.mu.Lock()
		uses := slices.Clone(one.device.uses)
		one.device.mu.Unlock()
		tries := 0
		for _, u := range uses {
			if u.Addr() == two.box().addr {
				tries++
			}
		}
		if last := uses[len(uses)-1]; !last.Addr().IsLoopback() {
			t.Errorf("the device was not switched back: %v", uses)
		}
		for _, news := range one.news {
			if news.Path == Unreached && news.Was != Direct {
				t.Errorf("the path was lost meanwhile: %v", one.news)
			}
		}
		if tries == 0 || tries > 2 {
			t.Errorf("the better path was tried %d times: %v", tries, uses)
		}
		if endpoint := one.device.state(two.key).Endpoint; !endpoint.Addr().IsLoopback() {
			t.Errorf("the device sends to %v", endpoint)
		}
		if !one.reaches(two) || !two.reaches(one) || one.path(two) != ByRelay || two.path(one) != ByRelay {
			t.Errorf("path is %s and %s", one.path(two), two.path(one))
		}
	})
}

// TestSilence checks that a path by which checks come and go, but nothing of
// WireGuard's, is left for one that works.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", portRestricted, 1), w.behind("b", portRestricted, 2)
		two.allocateAt(newRelayServer(w.internet, "198.51.100.9"))
		w.start()
		w.within(30*time.Second, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
		time.Sleep(time.Minute)
		w.internet.blockWG(true)
		w.within(time.Minute, "reached by relay", func() bool {
			return one.reaches(two) && two.reaches(one) && one.path(two) == ByRelay && two.path(one) == ByRelay
		})
	})
}

// TestNewAddress checks that a node that moves behind its translator is
// reached again as soon as its next check has told it so, without a packet to send.
func TestNewAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", symmetricNAT, 1), w.behind("b", noNAT, 2)
		w.start()
		w.within(30*time.Second, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
		time.Sleep(time.Minute)
		uses := len(two.device.uses)
		one.box().move("203.0.113.77")
		time.Sleep(keepInterval + time.Second)
		if !two.reaches(one) || len(two.device.uses) != uses {
			t.Errorf("the peer's device sends to %v and was switched to %v", two.device.state(one.key).Endpoint, two.device.uses[uses:])
		}
	})
}

// TestBetterWay checks that a path that has to be kept open is left for one
// that has not, when that turns up.
func TestBetterWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", portRestricted, 1), w.behind("b", noNAT, 2)
		w.start()
		w.within(30*time.Second, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
		time.Sleep(5 * time.Minute)
		for i, n := range w.nodes {
			addr := netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i + 1)})
			w.internet.attach(addr, n)
			n.addrs = append(n.addrs, addr)
			n.agent.Changed()
		}
		w.within(20*time.Second, "direct", func() bool { return one.path(two) == Direct && two.path(one) == Direct })
	})
}

// TestInvited checks that a node that knows of no translator answers a search, and
// does its part to keep the path.
func TestInvited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", portRestricted, 1), w.behind("b", noNAT, 2)
		w.frozen["a"] = true // as if its candidates never came
		w.start()
		w.within(30*time.Second, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
	})
}

// TestFollower checks that the end that does not choose helps itself if the
// other sees no reason to.
func TestFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", portRestricted, 1), w.behind("b", portRestricted, 2)
		w.start()
		w.within(30*time.Second, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
		two.halt()
		two.reset()
		two.start()
		w.within(headStart+5*time.Second, "reached", func() bool { return two.reaches(one) })
	})
}

// TestAgentAway checks that a path that carries something is not given up
// because the peer's agent is away, for an update say.
func TestAgentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", portRestricted, 1), w.behind("b", portRestricted, 2)
		w.start()
		w.within(30*time.Second, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
		news := len(one.news)
		stop := w.flow(one, two)
		two.halt()
		time.Sleep(2 * time.Minute)
		if lost := stop(); lost > 0 || len(one.news) != news || one.path(two) != HolePunched {
			t.Errorf("lost %d packets, path is %s, news: %v", lost, one.path(two), one.news[news:])
		}
	})
}

// TestDeviceFails checks that a device that cannot be switched is tried again.
func TestDeviceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", portRestricted, 1), w.behind("b", portRestricted, 2)
		one.device.fail, two.device.fail = true, true
		w.start()
		time.Sleep(5 * time.Minute)
		if one.path(two) != Unreached || len(one.device.uses) == 0 {
			t.Errorf("path is %s after %d times", one.path(two), len(one.device.uses))
		}
		for _, n := range w.nodes {
			n.device.set(func() { n.device.fail = false })
		}
		w.within(5*time.Minute, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
	})
}

// TestPeerTakesAnotherPath checks that a node which tries a path while another
// one carries what the peer sends takes that one if it has none that works, and goes on
// trying if it has.
func TestPeerTakesAnotherPath(t *testing.T) {
	tried, heard, former := netip.MustParseAddrPort("203.0.113.2:1"), netip.MustParseAddrPort("203.0.113.2:2"), netip.MustParseAddrPort("203.0.113.2:3")
	for _, c := range []struct {
		name   string
		former netip.AddrPort
		taken  bool
	}{{"none works", netip.AddrPort{}, true}, {"another works", former, false}} {
		t.Run(c.name, func(t *testing.T) {
			w := &simWorld{internet: newNetwork()}
			one, two := w.node("a", w.internet, "203.0.113.1"), w.node("b", w.internet, "203.0.113.2")
			if slices.Compare(one.key[:], two.key[:]) > 0 {
				one, two = two, one // which chooses
			}
			o := one.options()
			o.Direct = &simSink{}
			agent, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			e := newEngine(agent)
			e.now = time.Unix(1000, 0)
			e.setPeers([]Peer{{Key: two.key}})
			p := e.peers[two.key]
			p.trial = &trial{path: path{o.Direct, tried}, endpoint: tried, former: c.former, ends: e.now.Add(time.Second), applied: true, switched: e.now}
			p.state = PeerState{Key: two.key, Endpoint: heard, RxBytes: 148}
			e.judgeTrial(p)
			if taken := p.inUse != nil && p.inUse.remote == heard && p.trial == nil; taken != c.taken {
				t.Errorf("taken: %t, the path in use is %v", taken, p.inUse)
			}
		})
	}
}

// TestLoss checks that a path is found, and kept, where a tenth of the packets
// is lost.
func TestLoss(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.internet.loss = rand.New(rand.NewPCG(seed, 0))
			one, two := w.behind("a", portRestricted, 1), w.behind("b", addrRestricted, 2)
			w.start()
			w.within(time.Minute, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
			time.Sleep(time.Hour)
			w.within(10*time.Second, "still reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
			if got := len(one.news) + len(two.news); got > 30 {
				t.Errorf("the paths changed %d times", got)
			}
		})
	}
}

// TestPause checks that a path over which nothing was sent for minutes still
// carries what either end sends, at once.
func TestPause(t *testing.T) {
	for _, sender := range []string{"a", "b"} {
		for _, kind := range []PathKind{HolePunched, ByRelay} {
			t.Run(string(kind)+" from "+sender, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var one, two *simNode
					if kind == ByRelay {
						_, _, one, two, _ = relayed(t)
					} else {
						w := newWorld(t)
						one, two = w.behind("a", portRestricted, 1), w.behind("b", portRestricted, 2)
						w.start()
						w.within(30*time.Second, "reached", func() bool { return one.path(two) == kind && two.path(one) == kind })
					}
					if one.name != sender {
						one, two = two, one
					}
					for range 3 {
						time.Sleep(5 * time.Minute)
						if !one.reaches(two) {
							t.Errorf("after a pause nothing arrives, the path is %s to %v", one.path(two), one.device.state(two.key).Endpoint)
						}
					}
				})
			})
		}
	}
}

// TestDeviceIsChanged checks that a path is taken again from which somebody
// else has led the device away.
func TestDeviceIsChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.behind("a", portRestricted, 1), w.behind("b", portRestricted, 2)
		w.start()
		w.within(30*time.Second, "reached", func() bool { return one.path(two) == HolePunched && two.path(one) == HolePunched })
		time.Sleep(2 * lookInterval)
		for _, n := range []*simNode{one, two} {
			other := map[*simNode]*simNode{one: two, two: one}[n]
			at := n.device.state(other.key).Endpoint
			n.device.set(func() { n.device.peer(other.key).Endpoint = other.endpoint() })
			w.within(2*lookInterval, "pointed back", func() bool { return n.device.state(other.key).Endpoint == at })
		}
	})
}

// TestManyMoves checks that many peers are switched in one go, and that a device that
// takes too long says nothing against their paths.
func TestManyMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one := w.behind("A", fullCone, 1)
		one.device.slow = time.Second
		w.start()
		e := newEngine(one.agent)
		e.now = time.Now()
		var peers []Peer
		for i := range 500 {
			peers = append(peers, Peer{Key: wgtypes.Key{0: 'z', 1: byte(i >> 8), 2: byte(i)}})
		}
		e.setPeers(peers)
		moves := map[wgtypes.Key]netip.AddrPort{}
		for i, p := range peers {
			moves[p.Key] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 1, byte(i >> 8), byte(i)}), wgPort)
		}
		began := time.Now()
		r := e.round(t.Context(), moves, nil, nil)
		if took := time.Since(began); r.stuck != nil || took > 2*one.device.slow {
			t.Errorf("500 peers took %v: %v", took, r.stuck)
		}
		one.device.slow = time.Minute
		p := e.peers[peers[0].Key]
		x := path{one, moves[p.Key]}
		p.inUse = &use{path: path{one, netip.MustParseAddrPort("203.0.113.9:1")}}
		p.trial = &trial{path: x, round: 7}
		r = e.round(t.Context(), moves, nil, nil)
		r.round = 7
		e.switched(r)
		if r.stuck == nil || p.trial != nil || len(p.shunned) > 0 {
			t.Errorf("a device that hangs: %v, trial %v, shunned %v", r.stuck, p.trial, p.shunned)
		}
	})
}
