package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// otherWay is a way that keeps what it is to send.
type otherWay struct {
	mu    sync.Mutex // guards fault
	fault error
	sent  chan string
}

func newOtherWay() *otherWay { return &otherWay{sent: make(chan string, 1024)} }

func (w *otherWay) Send(packet []byte, to netip.AddrPort) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fault != nil {
		return w.fault
	}
	w.sent <- fmt.Sprintf("%s to %s", textOf(packet), to)
	return nil
}

func (w *otherWay) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = err
}

func (w *otherWay) Endpoint(to netip.AddrPort) (netip.AddrPort, error) { return to, nil }

func (w *otherWay) Remote(endpoint netip.AddrPort) (netip.AddrPort, bool) { return endpoint, true }

var elsewhere = netip.MustParseAddrPort("203.0.113.7:40001")

// TestRelayDiverts checks what goes another way, and what does not.
func TestRelayDiverts(t *testing.T) {
	noLeaks(t)
	relay, nodeA, nodeB := twoNodes(t, nil)
	a, b := relay.startPeer(t, nodeA, nil, nil), relay.startPeer(t, nodeB, nil, nil)
	a.awaitUp(t)
	b.awaitUp(t)
	exchange(t, a, b, "by relay")
	way := newOtherWay()
	a.client.Divert(netip.AddrPortFrom(netip.AddrFrom16(b.relayed.Addr().As16()), b.relayed.Port()), way, elsewhere, time.Hour)
	for i := range 20 {
		a.sendVia(t, b.relayed, fmt.Sprint(i))
		if got, want := <-way.sent, fmt.Sprintf("%d to %s", i, elsewhere); got != want {
			t.Fatalf("sent %q another way, want %q", got, want)
		}
	}
	check := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint)
	if err := a.client.Send(check.Raw, b.relayed); err != nil {
		t.Fatal(err)
	}
	if got := <-b.stun; got.packet != string(check.Raw) {
		t.Error("a check was diverted")
	}
	exchange(t, b, a, "the other direction")
	way.fail(errors.New("no route"))
	exchange(t, a, b, "what cannot go another way")
	way.fail(nil)
	a.client.Divert(b.relayed, way, elsewhere, 0)
	exchange(t, a, b, "when it is over")
	if a.client.remotes[b.relayed].diversion.Load() != nil {
		t.Error("a diversion that is over is still looked at")
	}
	a.client.Divert(netip.MustParseAddrPort("192.0.2.99:1"), way, elsewhere, time.Hour) // nobody
	exchange(t, a, b, "of others")
	if len(way.sent) > 0 {
		t.Errorf("%d packets too many went another way", len(way.sent))
	}
}

// TestRelayDivertsWhilePacketsFlow has each packet go by one of two ways, in order.
func TestRelayDivertsWhilePacketsFlow(t *testing.T) {
	noLeaks(t)
	relay, nodeA, nodeB := twoNodes(t, nil)
	a, b := relay.startPeer(t, nodeA, nil, nil), relay.startPeer(t, nodeB, nil, nil)
	a.awaitUp(t)
	b.awaitUp(t)
	exchange(t, a, b, "first")
	ways := []*otherWay{newOtherWay(), newOtherWay()}
	a.client.Divert(b.relayed, ways[0], elsewhere, time.Hour)
	stop := make(chan struct{})
	var changing sync.WaitGroup
	changing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				a.client.Divert(b.relayed, ways[i%2], elsewhere, time.Hour)
			}
		}
	})
	for i := range 300 {
		a.sendVia(t, b.relayed, fmt.Sprint(i))
		var got string
		select {
		case got = <-ways[0].sent:
		case got = <-ways[1].sent:
		case <-time.After(relayPatience):
			t.Fatalf("packet %d went nowhere", i)
		}
		if want := fmt.Sprintf("%d to %s", i, elsewhere); got != want {
			t.Fatalf("sent %q, want %q", got, want)
		}
	}
	close(stop)
	changing.Wait()
}
