package wireguard

import (
	"bytes"
	"context"

	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// inbox is an OnSTUN that keeps what it is given.
type inbox struct {
	mu       sync.Mutex // guards the rest
	messages []received
	wrong    []string
}

type received struct {
	at     netip.Addr
	from   netip.AddrPort
	packet []byte
}

func (b *inbox) put(at netip.Addr, from netip.AddrPort, packet []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !isSTUN(packet) {
		b.wrong = append(b.wrong, fmt.Sprintf("%x from %v", packet, from))
		return
	}
	b.messages = append(b.messages, received{at, from, bytes.Clone(packet)})
}

// lastTo is which of this node's addresses the last message came to.
func (b *inbox) lastTo() netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.messages[len(b.messages)-1].at
}

// find returns nil if packet came from there.
func (b *inbox) find(packet []byte, from netip.AddrPort) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var others []netip.AddrPort
	for _, m := range b.messages {
		if !bytes.Equal(m.packet, packet) {
			continue
		}
		if m.from == from {
			return nil
		}
		others = append(others, m.from)
	}
	return fmt.Errorf("among %d messages, came from %v", len(b.messages), others)
}

// check fails the test if anything else than STUN came, WireGuard's messages in
// the first place.
func (b *inbox) check(t testing.TB) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.wrong) > 0 {
		t.Errorf("OnSTUN was given %d packets that are not STUN, the first %s", len(b.wrong), b.wrong[0])
	}
}

// stunNode is a node whose device takes STUN.
type stunNode struct {
	*testNode
	inbox *inbox
}

func newSTUNNode(t testing.TB, fabric *netlab.Fabric, backend Backend, n int) *stunNode {
	node := &stunNode{testNode: newTestNode(t, fabric, backend, n), inbox: &inbox{}}
	node.config.OnSTUN = node.inbox.put
	t.Cleanup(func() { node.inbox.check(t) })
	return node
}

// open has the device hear STUN, too.
func (n *stunNode) open(t testing.TB) *Device {
	t.Helper()
	device := n.testNode.open(t)
	n.hear(t, true)
	return device
}

func (n *stunNode) hear(t testing.TB, hear bool) {
	t.Helper()
	if err := n.device.HearSTUN(t.Context(), hear); err != nil {
		t.Fatal(err)
	}
}

// stunPair is as pair, with devices that take STUN.
func stunPair(t testing.TB, backend Backend) (fabric *netlab.Fabric, a, b *stunNode) {
	t.Helper()
	fabric = netlab.TestFabric(t, "fabric")
	a, b = newSTUNNode(t, fabric, backend, 1), newSTUNNode(t, fabric, backend, 2)
	for _, n := range []*stunNode{a, b} {
		n.open(t)
		run(t, n.device)
	}
	setPeers(t, a.testNode, b.peer())
	setPeers(t, b.testNode, a.peer())
	return fabric, a, b
}

// at is the node's UDP port on the underlay as others see it.
func (n *stunNode) at(t testing.TB, family int) netip.AddrPort {
	t.Helper()
	status, err := n.device.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(n.underlays()[family], uint16(status.ListenPort))
}

// exchange sends packet until it has come from the port that the sender's device
// has now.
func exchange(t testing.TB, from, to *stunNode, family int, packet []byte) {
	t.Helper()
	source, target := from.at(t, family), to.at(t, family)
	eventually(t, fmt.Sprintf("STUN from %v to %v", source, target), func() error {
		if err := from.device.SendSTUN(packet, netip.Addr{}, target); err != nil {
			return err
		}
		return to.inbox.find(packet, source)
	})
}

// exchangeAll sends both ways on both families, each packet another.
func exchangeAll(t testing.TB, a, b *stunNode, round uint32) {
	t.Helper()
	for fam := range 2 {
		exchange(t, a, b, fam, stunMessage(round<<8|uint32(fam), 24))
		exchange(t, b, a, fam, stunMessage(round<<8|0x80|uint32(fam), 0))
	}
}

// traffic pings through the tunnel until the function it returns is called, which
// wants that nothing was lost.
func traffic(t *testing.T, from *testNode, to netip.Addr) (stop func()) {
	t.Helper()
	ping(t, from, to)
	flow := startFlow(t, from, to, 20*time.Millisecond)
	flow.answered(t, 1)
	return func() {
		t.Helper()
		flow.answered(t, 10)
		if sent, gap := flow.stop(t); gap > 0 {
			t.Errorf("of %d packets in the tunnel, %d were lost in a row", sent, gap)
		}
	}
}

// STUN goes both ways on both families while the tunnel carries traffic, and
// neither sees anything of the other.
func TestSTUNBesideTraffic(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		_, a, b := stunPair(t, backend)
		stop := traffic(t, a.testNode, b.addr(0))
		for round := range uint32(10) {
			exchangeAll(t, a, b, round)
		}
		stop()
	})
}

// Whatever happens to the device, STUN goes by the port that it has then: that
// of its configuration, or the one that the system chose this time.
func TestSTUNAfterRebuild(t *testing.T) {
	for _, c := range []struct {
		name string
		port int
		harm func(t *testing.T, n *testNode)
		only Backend
	}{
		{"link deleted", 51821, func(t *testing.T, n *testNode) { n.ip(t, "link", "del", n.config.Name) }, ""},
		{"link with any port deleted", 0, func(t *testing.T, n *testNode) { n.ip(t, "link", "del", n.config.Name) }, ""},
		{"link down", 0, func(t *testing.T, n *testNode) { n.ip(t, "link", "set", n.config.Name, "down") }, ""},
		{"port changed", 51821, func(t *testing.T, n *testNode) { setPort(t, n, 40000) }, ""},
		{"any port changed", 0, func(t *testing.T, n *testNode) { setPort(t, n, 40000) }, ""},
		{"wireguard-go ended", 0, func(t *testing.T, n *testNode) { endWireguardGo(t, n.device) }, Userspace},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, backend Backend) {
				if c.only != "" && c.only != backend {
					return
				}
				checkLeaks(t)
				fabric := netlab.TestFabric(t, "fabric")
				a, b := newSTUNNode(t, fabric, backend, 1), newSTUNNode(t, fabric, backend, 2)
				a.config.ListenPort = c.port
				for _, n := range []*stunNode{a, b} {
					n.open(t)
					run(t, n.device)
				}
				setPeers(t, a.testNode, b.peer())
				exchangeAll(t, a, b, 1)
				c.harm(t, a.testNode)
				eventually(t, "device stands again", func() error {
					if link := a.link(t); link == nil || !isUp(link) {
						return fmt.Errorf("link %v", link)
					}
					a.device.compareSoon(t.Context()) // it would come by itself within half a minute
					if err := a.device.Ready(); err != nil {
						return err
					}
					return settledPort(a.testNode, c.port)
				})
				exchangeAll(t, a, b, 2)
			})
		})
	}
}

// setPort changes the device's port as `wg set` does.
func setPort(t *testing.T, n *testNode, port int) {
	t.Helper()
	err := n.ns.Do(func() error {
		client, err := wgctrl.New()
		if err != nil {
			return err
		}
		return errors.Join(client.ConfigureDevice(n.config.Name, wgtypes.Config{ListenPort: &port}), client.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// settledPort returns nil once the device has the port that it was told.
func settledPort(n *testNode, want int) error {
	have, err := n.tryWgDevice()
	if err != nil {
		return err
	}
	if have.ListenPort == 0 || want != 0 && have.ListenPort != want {
		return fmt.Errorf("UDP port %d", have.ListenPort)
	}
	return nil
}

// A server is no node: it sees the device's port and a checksum that its kernel
// finds right, and what it sends, however wrong, ends nothing.
func TestSTUNWithAServer(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		fabric, a, b := stunPair(t, backend)
		stop := traffic(t, a.testNode, b.addr(1))
		server, err := fabric.Host("server", netip.MustParsePrefix("192.0.2.9/24"), netip.MustParsePrefix("2001:db8::9/64"))
		if err != nil {
			t.Fatal(err)
		}
		for fam, addr := range []string{"192.0.2.9:3478", "[2001:db8::9]:3478"} {
			conn := listenIn(t, server, netip.MustParseAddrPort(addr))
			for i, size := range []int{0, 548, 1400, maxSTUN - stunHeader} { // the last in fragments
				request, answer := stunMessage(uint32(i), size), stunMessage(0x100|uint32(i), size)
				eventually(t, fmt.Sprintf("the server is asked with %d bytes", size), func() error { return asked(a, conn, netip.MustParseAddrPort(addr), request, a.at(t, fam)) })
				for name, packet := range nearlySTUN() {
					if _, err := conn.WriteToUDPAddrPort(packet, a.at(t, fam)); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
				}
				eventually(t, "the answer comes", func() error {
					if _, err := conn.WriteToUDPAddrPort(answer, a.at(t, fam)); err != nil {
						return err
					}
					return a.inbox.find(answer, netip.MustParseAddrPort(addr))
				})
			}
		}
		stop()
		exchangeAll(t, a, b, 1)
	})
}

// asked sends request to conn, which is at an address, and returns nil if it came
// from there.
func asked(n *stunNode, conn *net.UDPConn, at netip.AddrPort, request []byte, from netip.AddrPort) error {
	if err := n.device.SendSTUN(request, netip.Addr{}, at); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	size, source, err := conn.ReadFromUDPAddrPort(buf)
	if err != nil {
		return err
	}
	if plainAddrPort(source) != from || !bytes.Equal(buf[:size], request) {
		return fmt.Errorf("%d bytes came from %v, want %d from %v", size, source, len(request), from)
	}
	return nil
}

// What answers from within OnSTUN, as checks are, waits for nothing, also while
// the device closes.
func TestSTUNAnswersInOnSTUN(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		fabric := netlab.TestFabric(t, "fabric")
		a, b := newSTUNNode(t, fabric, backend, 1), newSTUNNode(t, fabric, backend, 2)
		var answering atomic.Pointer[Device]
		b.config.OnSTUN = func(at netip.Addr, from netip.AddrPort, packet []byte) {
			b.inbox.put(at, from, packet)
			if d := answering.Load(); d != nil {
				_ = d.SendSTUN(with(packet, 0, 1), netip.Addr{}, from)
			}
		}
		a.open(t)
		answering.Store(b.open(t))
		for fam := range 2 {
			request := stunMessage(uint32(fam), 0)
			eventually(t, "an answer", func() error {
				if err := a.device.SendSTUN(request, netip.Addr{}, b.at(t, fam)); err != nil {
					return err
				}
				return a.inbox.find(with(request, 0, 1), b.at(t, fam))
			})
		}
		target := b.at(t, 0)
		var running sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		running.Go(func() {
			for i := uint32(0); ctx.Err() == nil; i++ {
				_ = a.device.SendSTUN(stunMessage(i, 0), netip.Addr{}, target)
			}
		})
		if err := b.device.Close(); err != nil {
			t.Error(err)
		}
		if err := b.device.SendSTUN(stunMessage(1, 0), netip.Addr{}, target); !errors.Is(err, ErrClosed) {
			t.Errorf("a closed device sends: %v", err)
		}
		if err := a.device.Close(); err != nil { // while it sends
			t.Error(err)
		}
		cancel()
		running.Wait()
	})
}

// A node with several addresses answers from the one that was asked.
func TestSTUNAnswersFromWhereItWasAsked(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		fabric := netlab.TestFabric(t, "fabric")
		a, b := newSTUNNode(t, fabric, backend, 1), newSTUNNode(t, fabric, backend, 2)
		second := []string{"192.0.2.102", "2001:db8::102"}
		b.ip(t, "address", "add", second[0]+"/24", "dev", "eth0")
		b.ip(t, "address", "add", second[1]+"/64", "dev", "eth0", "nodad")
		var answering atomic.Pointer[Device]
		b.config.OnSTUN = func(at netip.Addr, from netip.AddrPort, packet []byte) {
			if d := answering.Load(); d != nil {
				_ = d.SendSTUN(with(packet, 0, 1), at, from)
			}
		}
		a.open(t)
		answering.Store(b.open(t))
		for fam := range 2 {
			for i, addr := range []netip.Addr{b.underlays()[fam], netip.MustParseAddr(second[fam])} {
				asked := netip.AddrPortFrom(addr, b.port)
				request := stunMessage(uint32(2*fam+i), 0)
				eventually(t, fmt.Sprintf("an answer of %v", asked), func() error {
					if err := a.device.SendSTUN(request, netip.Addr{}, asked); err != nil {
						return err
					}
					return a.inbox.find(with(request, 0, 1), asked)
				})
			}
		}
		if err := a.device.SendSTUN(stunMessage(9, 0), b.underlays()[1], netip.MustParseAddrPort("192.0.2.2:1")); err == nil {
			t.Error("sent to IPv4 from IPv6")
		}
	})
}

// Without OnSTUN a device opens nothing for STUN, and what is no STUN message is
// not sent by any.
func TestSTUNIsRefused(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		fabric := netlab.TestFabric(t, "fabric")
		without, node := newTestNode(t, fabric, backend, 1), newSTUNNode(t, fabric, backend, 2)
		without.open(t)
		node.open(t)
		to := netip.MustParseAddrPort("192.0.2.9:3478")
		if err := without.device.SendSTUN(stunMessage(1, 0), netip.Addr{}, to); !errors.Is(err, errNoSTUN) {
			t.Errorf("without OnSTUN: %v", err)
		}
		if sockets := rawSockets(t, without); sockets != 0 {
			t.Errorf("%d raw sockets without OnSTUN", sockets)
		}
		if err := without.device.HearSTUN(t.Context(), true); err != nil {
			t.Errorf("hear without OnSTUN: %v", err)
		}
		for name, packet := range nearlySTUN() {
			if err := node.device.SendSTUN(packet, netip.Addr{}, to); !errors.Is(err, errNotSTUN) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, to := range []netip.AddrPort{{}, netip.AddrPortFrom(to.Addr(), 0)} {
			if err := node.device.SendSTUN(stunMessage(1, 0), netip.Addr{}, to); err == nil {
				t.Errorf("sent to %v", to)
			}
		}
		if err := node.device.SendSTUN(stunMessage(1, 0), netip.Addr{}, netip.MustParseAddrPort("203.0.113.1:3478")); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("without a route: %v", err)
		}
		mapped := netip.AddrPortFrom(netip.MustParseAddr("::ffff:192.0.2.1"), 1000)
		if err := node.device.SendSTUN(stunMessage(1, 0), netip.Addr{}, mapped); err != nil {
			t.Errorf("to IPv4 as IPv6: %v", err)
		}
	})
}

// A kernel device has sockets for STUN only while it is told to hear.
func TestSTUNIsHeardOnlyIfWanted(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		fabric := netlab.TestFabric(t, "fabric")
		n := newSTUNNode(t, fabric, backend, 1)
		n.testNode.open(t)
		to := netip.MustParseAddrPort("192.0.2.9:3478")
		for _, hear := range []bool{false, true, true, false, false, true} {
			n.hear(t, hear)
			setPeers(t, n.testNode) // compares everything, as Run does
			sockets, err := 0, errDeaf
			if backend == Kernel && hear {
				sockets = 2
			}
			if backend == Userspace || hear {
				err = nil
			}
			if got := rawSockets(t, n.testNode); got != sockets {
				t.Errorf("hear %v: %d raw sockets, want %d", hear, got, sockets)
			}
			if got := n.device.SendSTUN(stunMessage(1, 0), netip.Addr{}, to); !errors.Is(got, err) {
				t.Errorf("hear %v: %v, want %v", hear, got, err)
			}
		}
	})
}

// rawSockets counts those for UDP in the node's namespace.
func rawSockets(t *testing.T, n *testNode) int {
	t.Helper()
	out, err := n.ns.Command(t.Context(), "cat", "/proc/net/raw", "/proc/net/raw6").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	count := 0
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasSuffix(fields[1], ":0011") {
			count++
		}
	}
	return count
}

func TestIsWireGuard(t *testing.T) {
	for name, test := range map[string]struct {
		packet []byte
		want   bool
	}{
		"keepalive":  {append([]byte{4, 0, 0, 0}, make([]byte, 28)...), true},
		"initiation": {append([]byte{1, 0, 0, 0}, make([]byte, 144)...), true},
		"type 5":     {append([]byte{5, 0, 0, 0}, make([]byte, 28)...), false},
		"type 0":     {make([]byte, 32), false},
		"reserved":   {append([]byte{4, 0, 1, 0}, make([]byte, 28)...), false},
		"short":      {append([]byte{4, 0, 0, 0}, make([]byte, 27)...), false},
		"empty":      {nil, false},
		"STUN":       {stunMessage(1, 32), false},
	} {
		if got := isWireGuard(test.packet); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
