package wireguard

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// names is a resolver of made-up answers.
type names struct {
	mu      sync.Mutex // guards the rest
	answers map[string][]netip.Addr
	asked   map[string]int
}

func (n *names) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked[host]++
	if addrs := n.answers[host]; addrs != nil {
		return append([]netip.Addr(nil), addrs...), nil
	}
	return nil, errors.New("no such host")
}

func (n *names) set(host string, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[host] = nil
	for _, addr := range addrs {
		n.answers[host] = append(n.answers[host], netip.MustParseAddr(addr))
	}
}

// resolving runs a resolver in a bubble with a clock of its own.
func resolving(t *testing.T, test func(n *names, r *resolver, changes *atomic.Int32)) {
	synctest.Test(t, func(t *testing.T) {
		n := &names{answers: map[string][]netip.Addr{}, asked: map[string]int{}}
		r := newResolver(Config{Resolve: n.lookup, Log: slog.New(slog.DiscardHandler)})
		var changes atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { r.run(ctx, func() { changes.Add(1) }) })
		test(n, r, &changes)
		cancel()
		running.Wait()
	})
}

func TestResolverFollowsAName(t *testing.T) {
	resolving(t, func(n *names, r *resolver, changes *atomic.Int32) {
		expect := func(what, want string, wantChanges int32) {
			t.Helper()
			synctest.Wait()
			var addr netip.Addr
			if want != "" {
				addr = netip.MustParseAddr(want)
			}
			if got := r.addr("a.example"); got != addr || changes.Load() != wantChanges {
				t.Errorf("%s: address %v after %d changes, want %v after %d", what, got, changes.Load(), addr, wantChanges)
			}
		}
		overlay := []netip.Prefix{netip.MustParsePrefix("10.200.0.0/16"), netip.MustParsePrefix("fd00:200::/48")}
		r.set(hostsOf([]Peer{{Host: "a.example:7", Overlay: overlay}}))
		expect("unknown", "", 0)
		n.set("a.example", "192.0.2.1", "192.0.2.2")
		time.Sleep(retryHost)
		expect("known", "192.0.2.1", 1)
		n.set("a.example", "192.0.2.2", "192.0.2.1")
		time.Sleep(refreshHost)
		expect("shuffled", "192.0.2.1", 1)
		n.set("a.example", "127.0.0.1", "::ffff:192.0.2.3")
		time.Sleep(refreshHost)
		expect("moved", "192.0.2.3", 2)
		n.set("a.example")
		time.Sleep(10 * refreshHost)
		expect("failing", "192.0.2.3", 2)
		n.set("a.example", "192.0.2.4")
		time.Sleep(refreshHost)
		expect("back", "192.0.2.4", 3)
		n.set("a.example", "10.200.1.1", "::ffff:10.200.1.2", "fd00:200::1")
		time.Sleep(10 * refreshHost)
		expect("inside the overlay", "192.0.2.4", 3)
		n.set("a.example", "10.200.1.1", "192.0.2.5")
		time.Sleep(refreshHost)
		expect("inside and outside", "192.0.2.5", 4)
		n.set("a.example", "192.0.2.5", "198.51.100.1")
		r.set(map[string][]netip.Prefix{"a.example": append(overlay, netip.MustParsePrefix("192.0.2.0/24"))})
		expect("with a larger overlay", "198.51.100.1", 5)
		r.set(nil)
		expect("unwanted", "", 5)
		asked := n.asked["a.example"]
		time.Sleep(10 * refreshHost)
		if n.asked["a.example"] != asked {
			t.Error("a name that nobody wants is looked up")
		}
	})
}

// Names whose server is silent hold up nobody, even if there are more of them
// than lookups may be under way.
func TestResolverIsNotHeldUp(t *testing.T) {
	resolving(t, func(n *names, r *resolver, _ *atomic.Int32) {
		answer := r.lookup
		r.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			if host != "good.example" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return answer(ctx, host)
		}
		n.set("good.example", "192.0.2.1")
		hosts := map[string][]netip.Prefix{"good.example": nil}
		for i := range 2 * maxLookups {
			hosts[string(rune('a'+i%26))+string(rune('a'+i/26))+".example"] = nil
		}
		r.set(hosts)
		time.Sleep(2*lookupTimeout + time.Second)
		synctest.Wait()
		if !r.addr("good.example").IsValid() {
			t.Error("the name with an answer is still unresolved")
		}
	})
}

func TestResolvedFillsEndpointsIn(t *testing.T) {
	r := newResolver(Config{})
	r.hosts["b.example"] = &hostState{addr: netip.MustParseAddr("2001:db8::b")}
	peers := []Peer{{Host: "b.example:7"}, {Host: "c.example:7"}, {Endpoint: planned(2).Endpoint}}
	got := r.resolved(peers)
	want := []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::b]:7"), {}, planned(2).Endpoint}
	for i := range want {
		if got[i].Endpoint != want[i] {
			t.Errorf("endpoint %d is %v, want %v", i, got[i].Endpoint, want[i])
		}
	}
	if peers[0].Endpoint.IsValid() {
		t.Error("the given peers changed")
	}
}
