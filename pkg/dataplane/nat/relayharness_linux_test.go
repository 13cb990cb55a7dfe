package nat

import (
	"context"
	"crypto/ecdh"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// relayTestLifetime is that of allocations which are not refreshed.
const relayTestLifetime = 2 * time.Second

// relayPatience is how long a test waits for what should happen soon.
const relayPatience = 30 * time.Second

// Addresses of the lab's own namespace: the relay's, an inner one of the relay's
// node, a node's, and one that is no node's.
var (
	relayExternal  = netip.MustParseAddr("192.0.2.1")
	relayExternal6 = netip.MustParseAddr("2001:db8::1")
	relayInner     = netip.MustParseAddr("10.9.0.5")
	relayPeerAddr  = netip.MustParseAddr("198.51.100.7")
	relayStranger  = netip.MustParseAddr("198.51.100.66")
	relayTestUDP   = uint16(3478)
	relayTestTCP   = uint16(3479)
	relayTestTLS   = uint16(5349)
	relayTestLocal = []netip.Prefix{netip.PrefixFrom(relayExternal, 24), netip.PrefixFrom(relayInner, 24)}
)

// relayAddresses gives them to the loopback interface, once for all tests.
func relayAddresses(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []netip.Addr{relayExternal, relayExternal6, relayInner, relayPeerAddr, relayStranger} {
		a, err := netlink.ParseAddr(netip.PrefixFrom(addr, addr.BitLen()).String())
		if err != nil {
			t.Fatal(err)
		}
		if addr.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(lo, a); err != nil {
			t.Fatal(err)
		}
	}
}

// testNode is a node's key, and its half of the secrets.
type testNode struct{ private, public wgtypes.Key }

func newTestNode(t testing.TB) testNode {
	t.Helper()
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return testNode{private: private, public: private.PublicKey()}
}

func (n testNode) shared(peer wgtypes.Key) ([]byte, error) {
	mine, err := ecdh.X25519().NewPrivateKey(n.private[:])
	if err != nil {
		return nil, err
	}
	theirs, err := ecdh.X25519().NewPublicKey(peer[:])
	if err != nil {
		return nil, err
	}
	return mine.ECDH(theirs)
}

// relayTest is a relay with nodes.
type relayTest struct {
	node   testNode
	server *RelayServer
	stop   func()
}

// startRelay runs a relay at the lab's addresses.
func startRelay(t testing.TB, node testNode, adjust func(*RelayConfig), peers ...RelayPeer) *relayTest {
	t.Helper()
	return startRelayFor(t, node, relayTestLifetime, adjust, peers...)
}

// startRelayFor is startRelay with another lifetime of allocations, and of
// connections without one.
func startRelayFor(t testing.TB, node testNode, lifetime time.Duration, adjust func(*RelayConfig), peers ...RelayPeer) *relayTest {
	t.Helper()
	relayAddresses(t)
	seed := make([]byte, 32)
	certificate, err := NewRelayCertificate(seed)
	if err != nil {
		t.Fatal(err)
	}
	cfg := RelayConfig{
		External: []netip.Addr{relayExternal}, ListenPort: relayTestUDP, TCPPort: relayTestTCP, TLSPort: relayTestTLS,
		Certificate: &certificate, Shared: node.shared, Bandwidth: 1 << 30,
		Local: func() ([]netip.Prefix, error) { return relayTestLocal, nil },
		Log:   slog.New(slog.DiscardHandler),
	}
	if adjust != nil {
		adjust(&cfg)
	}
	server, err := NewRelayServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server.hello, server.lifetime = lifetime, lifetime
	server.SetPeers(peers)
	stop := runRelay(t, server.Run)
	waitUntil(t, "relay listens", func() bool {
		conn, err := net.Dial("tcp", netip.AddrPortFrom(relayExternal, relayTestTCP).String())
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
	return &relayTest{node: node, server: server, stop: stop}
}

// runRelay runs something until the test ends or the returned func is called.
func runRelay(t testing.TB, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stopped := false
	stop = func() {
		t.Helper()
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(relayPatience):
			t.Error("does not end with its context")
		}
	}
	t.Cleanup(stop)
	return stop
}

// waitUntil polls a condition.
func waitUntil(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(relayPatience)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// noLeaks checks at the test's end that no goroutine is left.
func noLeaks(t *testing.T) {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := goleak.Find(ignore); err != nil {
			t.Error(err)
		}
	})
}

// testPeer is a node with a relay's client and a socket in place of WireGuard.
type testPeer struct {
	testNode
	client  *RelayClient
	device  *net.UDPConn
	up      chan netip.AddrPort
	down    chan error
	stun    chan testSTUN
	stop    func()
	relayed netip.AddrPort
}

type testSTUN struct {
	from   netip.AddrPort
	packet string
}

// startPeer runs a client of the relay by some of its transports.
func (r *relayTest) startPeer(t testing.TB, node testNode, adjust func(*RelayClientConfig), times func(*RelayClient)) *testPeer {
	t.Helper()
	device, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	_ = device.SetReadBuffer(1 << 20)
	t.Cleanup(func() { _ = device.Close() })
	p := &testPeer{
		testNode: node, device: device,
		up: make(chan netip.AddrPort, 16), down: make(chan error, 64), stun: make(chan testSTUN, 64),
	}
	cfg := RelayClientConfig{
		UDP:   netip.AddrPortFrom(relayExternal, relayTestUDP).String(),
		Relay: r.node.public, Self: node.public, Shared: node.shared,
		WireGuardPort: relayAddrPort(device.LocalAddr()).Port(),
		Deliver: func(_ Way, from netip.AddrPort, packet []byte) {
			select {
			case p.stun <- testSTUN{from, string(packet)}:
			default:
			}
		},
		Up:   func(addr netip.AddrPort) { p.up <- addr },
		Down: func(err error) { p.down <- err },
		Log:  slog.New(slog.DiscardHandler),
	}
	if adjust != nil {
		adjust(&cfg)
	}
	if p.client, err = NewRelayClient(cfg); err != nil {
		t.Fatal(err)
	}
	p.client.refresh = relayTestLifetime / 8
	if times != nil {
		times(p.client)
	}
	p.stop = runRelay(t, p.client.Run)
	return p
}

// awaitUp waits for a relayed address.
func (p *testPeer) awaitUp(t testing.TB) {
	t.Helper()
	deadline := time.After(relayPatience)
	for {
		select {
		case p.relayed = <-p.up:
			return
		case err := <-p.down:
			t.Logf("down: %v", err)
		case <-deadline:
			t.Fatal("no relayed address")
		}
	}
}

// sendVia sends from the device by the relay to an address.
func (p *testPeer) sendVia(t testing.TB, to netip.AddrPort, payload string) {
	t.Helper()
	endpoint, err := p.client.Endpoint(to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.device.WriteToUDPAddrPort(wireGuard(payload), endpoint); err != nil {
		t.Fatal(err)
	}
}

// receive returns the next packet for the device and from whom it is, or "" if
// there is none in time.
func (p *testPeer) receive(t testing.TB, wait time.Duration) (string, netip.AddrPort) {
	t.Helper()
	buffer := make([]byte, 2048)
	_ = p.device.SetReadDeadline(time.Now().Add(wait))
	n, from, err := p.device.ReadFromUDPAddrPort(buffer)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "", netip.AddrPort{}
	}
	if err != nil {
		t.Fatal(err)
	}
	remote, _ := p.client.Remote(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	return textOf(buffer[:n]), remote
}

// exchange sends from one to the other until it arrives, as WireGuard would.
func exchange(t testing.TB, from, to *testPeer, payload string) {
	t.Helper()
	waitUntil(t, payload+" arrives", func() bool {
		// Both ends of a path send, or it is closed.
		if _, err := to.client.Endpoint(from.relayed); err != nil {
			t.Fatal(err)
		}
		from.sendVia(t, to.relayed, payload)
		for {
			got, who := to.receive(t, 100*time.Millisecond)
			if got == "" {
				return false
			}
			if got == payload {
				if who != from.relayed {
					t.Fatalf("%s came from %s, not %s", payload, who, from.relayed)
				}
				return true
			}
		}
	})
}

func contains(s, part string) bool { return strings.Contains(s, part) }
