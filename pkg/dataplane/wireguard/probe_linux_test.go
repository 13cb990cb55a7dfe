package wireguard

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// probe probes to's address of a family once, for at most as long as given.
func (n *testNode) probe(t testing.TB, to *testNode, fam int, patience time.Duration) map[wgtypes.Key]ProbeResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	results, err := n.device.Probe(ctx, map[wgtypes.Key]netip.Addr{to.key.PublicKey(): to.addr(fam)})
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// A peer is lost and comes back, and one that nobody talks to is idle. The
// counters are real, the clock is not.
func TestHealthOfARealPeer(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		a, b := pair(t, backend)
		ping(t, a, b.addr(0))
		health, now := NewHealth(), time.Now()
		peer := b.peer()
		peer.Keepalive = 4 * time.Second // the tracker's alone: the device sends nothing by itself
		look := func(probes map[wgtypes.Key]ProbeResult) PeerHealth {
			t.Helper()
			now = now.Add(time.Second)
			status, err := a.device.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			status.Peers[0].Endpoint = netip.AddrPort{} // as with a peer that has no keepalive
			health.Observe(now, status.Peers, probes)
			return health.Peers()[0]
		}
		health.SetPeers([]Peer{peer})
		expect := func(what string, got PeerHealth, want HealthState) {
			t.Helper()
			if got.State != want {
				t.Errorf("%s: %s (%s), want %s", what, got.State, got.Reason, want)
			}
		}
		expect("after a handshake", look(nil), Healthy)
		ping(t, a, b.addr(1))
		expect("with traffic", look(nil), Healthy)
		now = now.Add(10 * time.Second)
		expect("without traffic", look(nil), Idle)
		if suspects := health.Suspects(now); len(suspects) != 0 {
			t.Errorf("an idle peer is to be probed: %v", suspects)
		}

		b.ip(t, "link", "set", "eth0", "down")
		eventually(t, "an unhealthy peer", func() error {
			_ = a.ns.Command(t.Context(), "ping", "-n", "-c", "1", "-W", "0.1", b.addr(0).String()).Run() // it fails
			now = now.Add(5 * time.Second)
			var probes map[wgtypes.Key]ProbeResult
			if len(health.Suspects(now)) > 0 {
				probes = a.probe(t, b, 0, 200*time.Millisecond)
			}
			if got := look(probes); got.State != Unhealthy {
				return errors.New(got.Reason)
			}
			return nil
		})

		b.ip(t, "link", "set", "eth0", "up")
		eventually(t, "a healthy peer", func() error {
			if got := look(a.probe(t, b, 0, 2*time.Second)); got.State != Healthy || got.RTT == 0 {
				return errors.New(got.Reason)
			}
			return nil
		})
	})
}

func TestProbe(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		a, b := pair(t, backend)
		ping(t, a, b.addr(0))
		for fam := range 2 {
			result := a.probe(t, b, fam, patience)[b.key.PublicKey()]
			if result.Err != nil || result.RTT <= 0 || result.RTT > patience {
				t.Errorf("family %d: %+v", fam, result)
			}
		}
		silent, elsewhere := named("silent"), named("elsewhere")
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		results, err := a.device.Probe(ctx, map[wgtypes.Key]netip.Addr{
			b.key.PublicKey(): b.addr(1), silent: netip.MustParseAddr("10.1.2.200"), elsewhere: netip.MustParseAddr("192.0.2.2"),
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := results[b.key.PublicKey()]; got.Err != nil {
			t.Errorf("beside others, the peer: %+v", got)
		}
		if got := results[silent]; !errors.Is(got.Err, errNoEcho) {
			t.Errorf("an address that nobody has: %+v", got)
		}
		if got := results[elsewhere]; got.Err == nil {
			t.Errorf("an address that answers outside the tunnel: %+v", got)
		}
		if err := a.device.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.device.Probe(t.Context(), map[wgtypes.Key]netip.Addr{silent: b.addr(0)}); !errors.Is(err, ErrClosed) {
			t.Errorf("of a closed device: %v", err)
		}
	})
}

// echoReply is the answer to a request, as the kernel hands it up.
func echoReply(t testing.TB, fam int, nonce [echoNonce]byte, i int) []byte {
	t.Helper()
	data, err := echoRequest(echoOf(fam), nonce, i)
	if err != nil {
		t.Fatal(err)
	}
	data[0] = []byte{0, 129}[fam]
	return data
}

func TestParseEcho(t *testing.T) {
	nonce := [echoNonce]byte{1, 2, 3, 4, 5, 6, 7, 8}
	for fam := range 2 {
		good := echoReply(t, fam, nonce, 70000)
		if i, ok := parseEcho(echoOf(fam), good, nonce); !ok || i != 70000 {
			t.Errorf("family %d: %d, %v", fam, i, ok)
		}
		request, err := echoRequest(echoOf(fam), nonce, 1)
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{
			"nothing": nil, "cut": good[:len(good)-1], "longer": append(slices.Clone(good), 0),
			"a request": request, "another's": echoReply(t, fam, [echoNonce]byte{9}, 1),
		} {
			if i, ok := parseEcho(echoOf(fam), data, nonce); ok {
				t.Errorf("family %d: %s answers %d", fam, name, i)
			}
		}
	}
}

func FuzzParseEcho(f *testing.F) {
	nonce := [echoNonce]byte{1, 2, 3, 4, 5, 6, 7, 8}
	f.Add(0, echoReply(f, 0, nonce, 3))
	f.Add(1, echoReply(f, 1, nonce, 1<<20))
	f.Add(0, []byte{3, 1, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 28})
	f.Fuzz(func(t *testing.T, fam int, data []byte) {
		i, ok := parseEcho(echoOf(fam&1), data, nonce)
		if ok && len(data) != 8+echoNonce+4 {
			t.Errorf("%x answers %d", data, i)
		}
	})
}
