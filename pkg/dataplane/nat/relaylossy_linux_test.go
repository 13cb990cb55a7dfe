package nat

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"
)

// lossyFront passes packets on to the relay, but for what it is to lose.
type lossyFront struct {
	addr netip.AddrPort

	mu   sync.Mutex // guards all below
	lose func(packet []byte) bool
	from map[netip.AddrPort]bool // clients' addresses
}

func startLossyFront(t *testing.T) *lossyFront {
	t.Helper()
	relayAddresses(t)
	front := listenAt(t, netip.AddrPortFrom(relayStranger, 0))
	back, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(relayExternal, relayTestUDP)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = back.Close() })
	f := &lossyFront{addr: relayAddrPort(front.LocalAddr()), from: make(map[netip.AddrPort]bool)}
	var client netip.AddrPort
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, from, err := front.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			f.mu.Lock()
			lost := f.lose != nil && f.lose(buffer[:n])
			client = from
			f.from[from] = true
			f.mu.Unlock()
			if !lost {
				_, _ = back.Write(buffer[:n])
			}
		}
	}()
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, err := back.Read(buffer)
			if err != nil {
				return
			}
			f.mu.Lock()
			to := client
			f.mu.Unlock()
			_, _ = front.WriteToUDPAddrPort(buffer[:n], to)
		}
	}()
	return f
}

// set says what to lose from now on.
func (f *lossyFront) set(lose func(packet []byte) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lose = lose
}

func (f *lossyFront) clients() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.from)
}

// loseRefreshes loses so many requests for a longer life, however often each is
// sent, and tells when another one is let through.
func loseRefreshes(most int) (lose func([]byte) bool, through <-chan struct{}) {
	lost, passed := make(map[string]bool), make(chan struct{}, 1)
	return func(packet []byte) bool {
		if !isSTUNPacket(packet) || stunType(packet) != turnRefresh {
			return false
		}
		id := string(packet[8:stunHeader])
		if len(lost) < most || lost[id] {
			lost[id] = true
			return true
		}
		select {
		case passed <- struct{}{}:
		default:
		}
		return false
	}, passed
}

// startBehindLosses starts a relay with a client behind a front, which has its
// place and asks for it again all the time.
func startBehindLosses(t *testing.T) (*relayTest, *lossyFront, *testPeer) {
	t.Helper()
	node := newTestNode(t)
	front := startLossyFront(t)
	relay := startRelayFor(t, newTestNode(t), time.Hour, nil, RelayPeer{Key: node.public})
	a := relay.startPeer(t, node, func(c *RelayClientConfig) { c.UDP = front.addr.String() },
		func(c *RelayClient) { c.answer, c.refresh = 300*time.Millisecond, 50*time.Millisecond })
	a.awaitUp(t)
	return relay, front, a
}

// TestRelayClientOutlastsLosses: requests without an answer cost the allocation
// only if there are several in a row.
func TestRelayClientOutlastsLosses(t *testing.T) {
	_, front, a := startBehindLosses(t)
	for range 3 {
		lose, through := loseRefreshes(relayUnanswered - 1)
		front.set(lose)
		select {
		case <-through:
		case err := <-a.down:
			t.Fatalf("given up: %v", err)
		case <-time.After(relayPatience):
			t.Fatal("no request for a longer life")
		}
	}
	front.set(func([]byte) bool { return true })
	a.awaitDown(t)
}

// awaitDown waits until there is no relayed address.
func (p *testPeer) awaitDown(t *testing.T) {
	t.Helper()
	select {
	case err := <-p.down:
		t.Logf("down: %v", err)
	case <-time.After(relayPatience):
		t.Fatal("nobody says that the relay is gone")
	}
}

// TestRelayClientSaysWhy: a relay that is silent did not refuse anything.
func TestRelayClientSaysWhy(t *testing.T) {
	front := startLossyFront(t) // nobody is behind it
	a := (&relayTest{node: newTestNode(t)}).startPeer(t, newTestNode(t), func(c *RelayClientConfig) { c.UDP = front.addr.String() },
		func(c *RelayClient) { c.answer = 300 * time.Millisecond })
	want := fmt.Sprintf("allocate at relay %s by udp: relay does not answer: context deadline exceeded", front.addr)
	select {
	case err := <-a.down:
		if err.Error() != want {
			t.Errorf("down says %q, not %q", err, want)
		}
	case <-time.After(relayPatience):
		t.Fatal("nobody says that there is no relay")
	}
}

// TestRelayClientSaysThatTheConnectionEnded has a listener that is no relay.
func TestRelayClientSaysThatTheConnectionEnded(t *testing.T) {
	relayAddresses(t)
	listener, err := net.Listen("tcp", netip.AddrPortFrom(relayExternal, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	a := (&relayTest{node: newTestNode(t)}).startPeer(t, newTestNode(t),
		func(c *RelayClientConfig) { c.UDP, c.TCP = "", listener.Addr().String() }, nil)
	select {
	case err := <-a.down:
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("down says %v", err)
		}
	case <-time.After(relayPatience):
		t.Fatal("nobody says that there is no relay")
	}
}

// TestRelayClientComesBackFromItsPort: what a client could not give back takes
// none of its places.
func TestRelayClientComesBackFromItsPort(t *testing.T) {
	relay, front, a := startBehindLosses(t)
	for range relayDefaultPerNode + 1 {
		front.set(func([]byte) bool { return true })
		a.awaitDown(t)
		front.set(nil)
		a.awaitUp(t)
		for deadline := time.Now().Add(relayPatience); relay.server.stats.Sessions.Load() != 1; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) { // the client knows of its place before it is counted
				t.Fatalf("%d allocations of one client", relay.server.stats.Sessions.Load())
			}
		}
	}
	if got := front.clients(); got != 1 {
		t.Errorf("a client came from %d ports", got)
	}
	if got := relay.server.stats.Full.Load(); got != 0 {
		t.Errorf("refused %d times for lack of room", got)
	}
}
