package nat

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestRelayFilter(t *testing.T) {
	ap := netip.MustParseAddrPort
	filter := newRelayFilter(relayFilterInput{
		external:      []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		wireguardPort: 51820,
		local: []netip.Prefix{
			netip.MustParsePrefix("10.0.0.5/24"), netip.MustParsePrefix("203.0.113.9/31"),
			netip.MustParsePrefix("2001:db8:1::5/64"), netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("fe80::5/64"),
		},
		forbidden: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/108")},
		peers: []RelayPeer{{Addrs: []netip.AddrPort{
			ap("198.51.100.7:51820"), ap("[::ffff:198.51.100.8]:51820"), ap("10.0.0.7:51820"), ap("203.0.113.8:51820"), ap("[2001:db8:1::7]:51820"),
			ap("10.0.0.5:51820"), ap("10.0.0.0:51820"), ap("10.0.0.255:51820"), ap("[2001:db8:1::]:51820"), ap("192.0.2.1:22"),
			ap("10.96.0.1:443"), ap("10.244.1.2:80"), ap("[fd00:96::1]:443"), ap("198.51.100.9:0"), ap("0.1.2.3:5"), ap("240.0.0.1:5"),
			ap("[fe80::7%eth0]:51820"), ap("[fe80::7]:51820"), ap("[::1]:51820"), ap("[::]:51820"), ap("[ff02::1]:51820"), ap("127.0.0.2:1"),
		}}, {Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}},
	})
	got := make(map[string]bool)
	for addr := range filter.peers {
		got[addr.String()] = true
	}
	want := map[string]bool{
		"198.51.100.7:51820": true, "198.51.100.8:51820": true, "10.0.0.7:51820": true, "203.0.113.8:51820": true, "[2001:db8:1::7]:51820": true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
	for _, test := range []struct {
		to   string
		want relayVerdict
	}{
		{"198.51.100.7:51820", relayAllowed},
		{"198.51.100.7:51821", relayForbiddenPeer},
		{"192.0.2.1:51820", relayAllowed},
		{"192.0.2.1:22", relayForbiddenSelf},
		{"[2001:db8::1]:51820", relayAllowed},
		{"[2001:db8::1]:22", relayForbiddenSelf},
		{"10.0.0.5:51820", relayForbiddenSelf},
		{"10.0.0.255:51820", relayForbiddenSelf},
		{"127.0.0.1:51820", relayForbiddenSelf},
		{"10.244.1.2:80", relayForbiddenPeer},
	} {
		if got := filter.sends(ap(test.to)); got != test.want {
			t.Errorf("%s: verdict %d, not %d", test.to, got, test.want)
		}
	}
}

// largeRelaySet are n nodes of two families, with slices of their own.
func largeRelaySet(n int) []RelayPeer {
	peers := make([]RelayPeer, n)
	for i := range peers {
		low, high := byte(i), byte(i>>8)
		v4, v6 := netip.AddrFrom4([4]byte{198, 18, high, low}), netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: high, 15: low})
		peers[i] = RelayPeer{
			Addrs: []netip.AddrPort{netip.AddrPortFrom(v4, 51820), netip.AddrPortFrom(v6, 51820)},
			Prefixes: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, high, low, 0}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 6: high, 7: low}), 64),
			},
		}
	}
	return peers
}

// TestRelayFilterOfALargeCluster: twice the nodes cost about twice the time, not
// four times. A quadratic filter takes seconds for what is made here.
func TestRelayFilterOfALargeCluster(t *testing.T) {
	const nodes, bound = 5000, 500 * time.Millisecond
	peers := largeRelaySet(nodes)
	took := time.Hour
	for range 3 { // the machine may be busy
		start := time.Now()
		if filter := newRelayFilter(relayFilterInput{peers: peers}); len(filter.peers) != 2*nodes {
			t.Fatalf("%d addresses", len(filter.peers))
		}
		took = min(took, time.Since(start))
	}
	if took > bound {
		t.Errorf("took %s", took)
	}
}

// TestRelayFilterIsMadeOnce: the ticker does nothing while nothing changes.
func TestRelayFilterIsMadeOnce(t *testing.T) {
	cfg := newTestRelayConfig()
	local := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}
	cfg.Local = func() ([]netip.Prefix, error) { return slices.Clone(local), nil }
	r, err := NewRelayServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	made := func() *relayFilter {
		t.Helper()
		if err := r.refilter(); err != nil {
			t.Fatal(err)
		}
		return r.filter.Load()
	}
	r.SetPeers(largeRelaySet(2))
	first := made()
	if made() != first {
		t.Error("made again of the same")
	}
	r.SetPeers(largeRelaySet(2))
	if made() != first {
		t.Error("made again of peers that are the same")
	}
	r.SetPeers(largeRelaySet(3))
	more := made()
	if more == first || len(more.peers) != 6 {
		t.Errorf("%d addresses of three nodes", len(more.peers))
	}
	local = append(local, netip.MustParsePrefix("198.18.0.1/32"))
	if own := made(); own == more || len(own.peers) != 5 {
		t.Errorf("%d addresses of others, one is the node's now", len(own.peers))
	}
}

func BenchmarkRelayFilter(b *testing.B) {
	peers := largeRelaySet(5000)
	for b.Loop() {
		newRelayFilter(relayFilterInput{peers: peers})
	}
}

func TestRelayConfig(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*RelayConfig)
		ok     bool
	}{
		{"least", func(*RelayConfig) {}, true},
		{"both families", func(c *RelayConfig) { c.External = append(c.External, netip.MustParseAddr("2001:db8::1")) }, true},
		{"no address", func(c *RelayConfig) { c.External = nil }, false},
		{"two of a family", func(c *RelayConfig) { c.External = append(c.External, netip.MustParseAddr("192.0.2.2")) }, false},
		{"loopback", func(c *RelayConfig) { c.External[0] = netip.MustParseAddr("127.0.0.1") }, false},
		{"unspecified", func(c *RelayConfig) { c.External[0] = netip.MustParseAddr("0.0.0.0") }, false},
		{"negative", func(c *RelayConfig) { c.MaxSessions = -1 }, false},
		{"no secrets", func(c *RelayConfig) { c.Shared = nil }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := newTestRelayConfig()
			test.change(&cfg)
			if _, err := NewRelayServer(cfg); (err == nil) != test.ok {
				t.Errorf("%v", err)
			}
		})
	}
}

func newTestRelayConfig() RelayConfig {
	return RelayConfig{
		External: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Shared:   func(wgtypes.Key) ([]byte, error) { return []byte("secret"), nil },
		Log:      slog.New(slog.DiscardHandler),
	}
}
