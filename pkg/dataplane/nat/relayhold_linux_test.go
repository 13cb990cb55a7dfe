package nat

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun/v4"
)

var (
	heldRemote  = netip.MustParseAddrPort("192.0.2.7:50001")
	otherRemote = netip.MustParseAddrPort("192.0.2.8:50001")
)

// holdTest is a client whose packets come from the test instead of a relay.
type holdTest struct {
	t      *testing.T
	client *RelayClient
	device *net.UDPConn
	stun   chan netip.AddrPort
}

func newHoldTest(t *testing.T) *holdTest {
	t.Helper()
	noLeaks(t)
	device, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = device.Close() })
	h := &holdTest{t: t, device: device, stun: make(chan netip.AddrPort, 16)}
	h.client, err = NewRelayClient(RelayClientConfig{
		UDP: "192.0.2.1:3478", Username: "u", Credential: "c", WireGuardPort: relayAddrPort(device.LocalAddr()).Port(),
		Deliver: func(_ Way, from netip.AddrPort, _ []byte) { h.stun <- from },
		Up:      func(netip.AddrPort) {}, Down: func(error) {}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.client.setRunning(true)
	t.Cleanup(h.stop)
	for _, addr := range []netip.AddrPort{heldRemote, otherRemote} {
		if _, err := h.client.Endpoint(addr); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *holdTest) stop() {
	h.client.setRunning(false)
	h.client.wg.Wait()
}

// come has packets with numbers arrive from a remote.
func (h *holdTest) come(from netip.AddrPort, first, last int) {
	for i := first; i <= last; i++ {
		h.client.arrivedFrom(from, fmt.Appendf(nil, "%s %d", from, i))
	}
}

// gets checks what comes next to the device.
func (h *holdTest) gets(from netip.AddrPort, first, last int) {
	h.t.Helper()
	for i := first; i <= last; i++ {
		if diff := cmp.Diff(fmt.Sprintf("%s %d", from, i), readOne(h.t, h.device)); diff != "" {
			h.t.Fatalf("packet for the device (-want +got):\n%s", diff)
		}
	}
}

// holds tells whether packets are held back.
func (h *holdTest) holds() bool { return h.hold() != nil }

func (h *holdTest) hold() *relayHold {
	h.client.mu.RLock()
	defer h.client.mu.RUnlock()
	return h.client.remotes[heldRemote].hold.Load()
}

// isEmpty checks that nothing is accounted for any more.
func (h *holdTest) isEmpty() {
	h.t.Helper()
	if h.holds() || h.client.held.Load() != 0 {
		h.t.Errorf("holding: %v, %d bytes", h.holds(), h.client.held.Load())
	}
}

// TestHold checks that what comes from a remote waits, and nothing else does.
func TestHold(t *testing.T) {
	h := newHoldTest(t)
	h.come(heldRemote, 1, 3)
	h.client.Hold(netip.AddrPortFrom(netip.AddrFrom16(heldRemote.Addr().As16()), heldRemote.Port()), time.Minute)
	first := h.hold()
	h.come(heldRemote, 4, 50)
	h.client.Hold(heldRemote, time.Minute)
	h.come(otherRemote, 1, 3)
	h.client.arrivedFrom(heldRemote, stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw)
	if from := <-h.stun; from != heldRemote {
		t.Errorf("STUN came from %s", from)
	}
	h.gets(heldRemote, 1, 3)
	h.gets(otherRemote, 1, 3)
	if h.hold() != first {
		t.Fatal("another hold took the place of the first")
	}
	first.end()
	h.come(heldRemote, 51, 53)
	h.gets(heldRemote, 4, 53)
	h.isEmpty()
}

func TestHoldEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(h *holdTest)
	}{
		{"in time", func(h *holdTest) { h.client.Hold(heldRemote, 20*time.Millisecond) }},
		{"in a second at the latest", func(h *holdTest) { h.client.Hold(heldRemote, time.Hour) }},
		{"with its client", func(h *holdTest) {
			h.client.Hold(heldRemote, time.Hour)
			h.come(heldRemote, 1, 5)
			h.stop()
		}},
		{"with its remote", func(h *holdTest) {
			h.client.Hold(heldRemote, time.Hour)
			h.come(heldRemote, 1, 5)
			h.client.dropIdle(0)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHoldTest(t)
			began := time.Now()
			test.end(h)
			h.client.mu.RLock()
			open := h.client.remotes[heldRemote] != nil
			h.client.mu.RUnlock()
			if open {
				h.come(heldRemote, 1, 5)
			}
			h.gets(heldRemote, 1, 5)
			if took := time.Since(began); took > relayPatience/2 {
				t.Errorf("held for %s", took)
			}
			if h.client.held.Load() != 0 {
				t.Errorf("%d bytes are still held", h.client.held.Load())
			}
		})
	}
}

// TestHoldIsBounded checks that what there is no room for ends a hold, and that
// all goes on in order.
func TestHoldIsBounded(t *testing.T) {
	t.Run("packets", func(t *testing.T) {
		h := newHoldTest(t)
		h.client.Hold(heldRemote, time.Hour)
		hold := h.hold()
		hold.timer.Stop()
		h.come(heldRemote, 1, relayHoldPackets)
		if hold.mu.Lock(); len(hold.packets) != relayHoldPackets {
			t.Errorf("%d packets are held", len(hold.packets))
		}
		hold.mu.Unlock()
		h.come(heldRemote, relayHoldPackets+1, relayHoldPackets+1)
		h.gets(heldRemote, 1, 10) // the test's device has no room for all
		h.isEmpty()
	})
	t.Run("bytes", func(t *testing.T) {
		h := newHoldTest(t)
		h.client.Hold(heldRemote, time.Hour)
		h.hold().timer.Stop()
		h.come(heldRemote, 1, 3)
		before := h.client.held.Load()
		h.client.held.Add(relayHoldBytes - before) // of other remotes
		h.come(heldRemote, 4, 6)
		h.gets(heldRemote, 1, 6)
		h.client.held.Add(before - relayHoldBytes)
		h.isEmpty()
	})
}

// TestHoldOfNobody has nothing to hold.
func TestHoldOfNobody(t *testing.T) {
	h := newHoldTest(t)
	stranger := netip.MustParseAddrPort("192.0.2.9:50001")
	h.client.Hold(stranger, time.Hour)
	h.client.Hold(heldRemote, 0)
	if _, known := h.client.remotes[stranger]; known || h.holds() {
		t.Errorf("a hold of nobody: remote %v, hold %v", known, h.holds())
	}
	h.come(heldRemote, 1, 1)
	h.gets(heldRemote, 1, 1)
}

// TestHoldIsConcurrent has packets of one remote come by two sessions while it is
// held again and again: each session's arrive, and in order.
func TestHoldIsConcurrent(t *testing.T) {
	const rounds, burst = 60, 20 // for which the test's device has room
	h := newHoldTest(t)
	h.client.mu.RLock()
	remote := h.client.remotes[heldRemote]
	h.client.mu.RUnlock()
	next := map[byte]int{}
	for round := range rounds {
		var senders sync.WaitGroup
		for _, session := range []byte("ab") {
			senders.Go(func() {
				for i := range burst {
					h.client.arrived(remote, fmt.Appendf(nil, "%c%d", session, round*burst+i))
				}
			})
		}
		senders.Go(func() {
			for range 4 {
				h.client.Hold(heldRemote, 50*time.Microsecond)
			}
		})
		for range 2 * burst {
			got := readOne(t, h.device)
			if want := fmt.Sprintf("%c%d", got[0], next[got[0]]); got != want {
				t.Fatalf("got packet %s, want %s", got, want)
			}
			next[got[0]]++
		}
		senders.Wait()
	}
}

// TestNoHoldCostsNothing is about all the time in which a path is not changed.
func TestNoHoldCostsNothing(t *testing.T) {
	h := newHoldTest(t)
	h.client.mu.RLock()
	remote := h.client.remotes[heldRemote]
	h.client.mu.RUnlock()
	packet := make([]byte, 1200)
	if got := testing.AllocsPerRun(100, func() { h.client.arrived(remote, packet) }); got > 0 {
		t.Errorf("%.0f allocations for a packet", got)
	}
}
