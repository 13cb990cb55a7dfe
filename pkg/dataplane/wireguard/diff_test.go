package wireguard

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// had is what a device says of a peer that is as planned.
func had(p Peer) wgtypes.Peer {
	return wgtypes.Peer{
		PublicKey: p.PublicKey, Endpoint: udpAddr(p.Endpoint), AllowedIPs: ipNets(p.AllowedIPs),
		PersistentKeepaliveInterval: p.Keepalive,
	}
}

// lines renders a difference as one line per peer.
func lines(configs []wgtypes.PeerConfig, names ...string) []string {
	known := map[wgtypes.Key]string{}
	for _, name := range names {
		known[named(name)] = name
	}
	var out []string
	for _, c := range configs {
		line := known[c.PublicKey]
		if c.Remove {
			line += " remove"
		}
		if c.UpdateOnly {
			line += " update"
		}
		if c.Endpoint != nil {
			line += " endpoint " + c.Endpoint.String()
		}
		if c.PersistentKeepaliveInterval != nil {
			line += fmt.Sprintf(" keepalive %v", *c.PersistentKeepaliveInterval)
		}
		if c.ReplaceAllowedIPs {
			line += " replace"
		}
		for _, ip := range c.AllowedIPs {
			line += " " + ip.String()
		}
		out = append(out, line)
	}
	return out
}

func TestDiff(t *testing.T) {
	with := func(p Peer, change func(*Peer)) Peer {
		p.AllowedIPs = slices.Clone(p.AllowedIPs)
		change(&p)
		return p
	}
	has := func(peers ...Peer) []wgtypes.Peer {
		var have []wgtypes.Peer
		for _, p := range peers {
			have = append(have, had(p))
		}
		return have
	}
	roamed := func(p Peer, to string) wgtypes.Peer {
		have := had(p)
		have.Endpoint = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
		return have
	}
	planned2 := planned(2).Endpoint
	for _, c := range []struct {
		name    string
		have    []wgtypes.Peer
		want    []Peer
		written netip.AddrPort // for n2
		diff    []string
	}{
		{name: "nothing at all"},
		{name: "equal", have: has(planned(2), planned(3)), want: []Peer{planned(2), planned(3)}},
		{name: "equal in another order", have: has(planned(3), planned(2)), want: []Peer{planned(2), planned(3)}},
		{
			name: "allowed IPs in another order", want: []Peer{planned(2)},
			have: has(with(planned(2), func(p *Peer) { slices.Reverse(p.AllowedIPs) })),
		},
		{
			name: "new peer", have: has(planned(2)), want: []Peer{planned(2), planned(3)},
			diff: []string{"n3 endpoint 192.0.2.3:51820 keepalive 25s replace 10.200.3.0/24 fd00:200:0:3::/64"},
		},
		{
			name: "new peer without endpoint", want: []Peer{with(planned(2), func(p *Peer) { p.Endpoint = netip.AddrPort{} })},
			diff: []string{"n2 keepalive 25s replace 10.200.2.0/24 fd00:200:0:2::/64"},
		},
		{name: "peer gone", have: has(planned(2), planned(3)), want: []Peer{planned(3)}, diff: []string{"n2 remove"}},
		{name: "all gone", have: has(planned(2), planned(3)), diff: []string{"n2 remove", "n3 remove"}},
		{
			name: "other keepalive", have: has(planned(2)), want: []Peer{with(planned(2), func(p *Peer) { p.Keepalive = 0 })},
			diff: []string{"n2 update keepalive 0s"},
		},
		{
			name: "one address more", have: has(planned(2)), diff: []string{"n2 update 10.200.99.0/24"},
			want: []Peer{with(planned(2), func(p *Peer) { p.AllowedIPs = append(p.AllowedIPs, prefixes("10.200.99.0/24")...) })},
		},
		{
			name: "one address less", have: has(planned(2)), diff: []string{"n2 update replace 10.200.2.0/24"},
			want: []Peer{with(planned(2), func(p *Peer) { p.AllowedIPs = p.AllowedIPs[:1] })},
		},
		{
			name: "endpoint announced anew", have: has(planned(2)), written: planned2, diff: []string{"n2 update endpoint 198.51.100.2:1"},
			want: []Peer{with(planned(2), func(p *Peer) { p.Endpoint = netip.MustParseAddrPort("198.51.100.2:1") })},
		},
		{name: "endpoint roamed", have: []wgtypes.Peer{roamed(planned(2), "198.51.100.2:1")}, want: []Peer{planned(2)}, written: planned2},
		{
			name: "endpoint roamed, then announced anew", written: planned2, diff: []string{"n2 update endpoint 198.51.100.3:1"},
			have: []wgtypes.Peer{roamed(planned(2), "198.51.100.2:1")},
			want: []Peer{with(planned(2), func(p *Peer) { p.Endpoint = netip.MustParseAddrPort("198.51.100.3:1") })},
		},
		{
			name: "endpoint roamed to where it is announced now", written: planned2,
			have: []wgtypes.Peer{roamed(planned(2), "198.51.100.2:1")},
			want: []Peer{with(planned(2), func(p *Peer) { p.Endpoint = netip.MustParseAddrPort("198.51.100.2:1") })},
		},
		{
			name: "endpoint of a device found", have: []wgtypes.Peer{roamed(planned(2), "198.51.100.2:1")}, want: []Peer{planned(2)},
			diff: []string{"n2 update endpoint 192.0.2.2:51820"},
		},
		{
			name: "endpoint lost", written: planned2, want: []Peer{planned(2)}, diff: []string{"n2 update endpoint 192.0.2.2:51820"},
			have: has(with(planned(2), func(p *Peer) { p.Endpoint = netip.AddrPort{} })),
		},
		{
			name: "no endpoint wanted any more", written: planned2, have: has(planned(2)),
			want: []Peer{with(planned(2), func(p *Peer) { p.Endpoint = netip.AddrPort{} })},
		},
		{
			name: "same address in IPv6 form", have: func() []wgtypes.Peer {
				have := had(planned(2))
				have.Endpoint.IP = have.Endpoint.IP.To16()
				return []wgtypes.Peer{have}
			}(), want: []Peer{planned(2)},
		},
		{
			name: "slice moves to a new node", have: has(planned(2)), want: []Peer{with(planned(3), func(p *Peer) { p.AllowedIPs = planned(2).AllowedIPs })},
			diff: []string{"n2 remove", "n3 endpoint 192.0.2.3:51820 keepalive 25s replace 10.200.2.0/24 fd00:200:0:2::/64"},
		},
		{
			name: "slice moves between nodes that stay", have: has(planned(2), planned(3)),
			want: []Peer{
				with(planned(2), func(p *Peer) { p.AllowedIPs = slices.Concat(p.AllowedIPs, planned(3).AllowedIPs[1:]) }),
				with(planned(3), func(p *Peer) { p.AllowedIPs = p.AllowedIPs[:1] }),
			},
			diff: []string{"n3 update replace 10.200.3.0/24", "n2 update fd00:200:0:3::/64"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			written := map[wgtypes.Key]netip.AddrPort{named("n2"): c.written}
			if diff := cmp.Diff(c.diff, lines(Diff(c.have, c.want, written), "n2", "n3")); diff != "" {
				t.Errorf("difference (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSettled(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	older := netip.MustParseAddrPort("198.51.100.9:9")
	for _, c := range []struct {
		name      string
		handshake time.Time
		written   netip.AddrPort
		want      netip.AddrPort
	}{
		{"a device found while its sessions work", now.Add(-time.Minute), netip.AddrPort{}, planned(2).Endpoint},
		{"a device found with dead sessions", now.Add(-time.Hour), netip.AddrPort{}, netip.AddrPort{}},
		{"no handshake ever", time.Time{}, older, netip.AddrPort{}},
		{"it answers", now.Add(-time.Second), older, older},
		{"it no longer answers", now.Add(-staleHandshake), older, netip.AddrPort{}},
		{"the clock went back", now.Add(time.Hour), older, older},
	} {
		t.Run(c.name, func(t *testing.T) {
			have := had(planned(2))
			have.LastHandshakeTime = c.handshake
			written := map[wgtypes.Key]netip.AddrPort{}
			if c.written.IsValid() {
				written[have.PublicKey] = c.written
			}
			got := settled([]wgtypes.Peer{have}, []Peer{planned(2)}, written, now)[have.PublicKey]
			if got != c.want {
				t.Errorf("settled on %v, want %v", got, c.want)
			}
		})
	}
}

// device obeys a difference as WireGuard does: an address given to one peer is
// taken from the other.
type fakeDevice map[wgtypes.Key]*wgtypes.Peer

func (d fakeDevice) configure(t *testing.T, configs []wgtypes.PeerConfig) {
	t.Helper()
	for _, c := range configs {
		peer := d[c.PublicKey]
		switch {
		case c.Remove && peer == nil, c.UpdateOnly && peer == nil:
			t.Errorf("%v is not there", c.PublicKey)
			continue
		case c.Remove:
			delete(d, c.PublicKey)
			continue
		case peer == nil:
			peer = &wgtypes.Peer{PublicKey: c.PublicKey}
			d[c.PublicKey] = peer
		}
		if c.Endpoint != nil {
			peer.Endpoint = c.Endpoint
		}
		if c.PersistentKeepaliveInterval != nil {
			peer.PersistentKeepaliveInterval = *c.PersistentKeepaliveInterval
		}
		if c.ReplaceAllowedIPs {
			peer.AllowedIPs = nil
		}
		for _, ip := range c.AllowedIPs {
			for key, other := range d {
				held := slices.ContainsFunc(other.AllowedIPs, func(n net.IPNet) bool { return n.String() == ip.String() })
				if held && key != c.PublicKey {
					t.Errorf("%v is given away while %v still holds it", ip, key)
				}
				other.AllowedIPs = slices.DeleteFunc(other.AllowedIPs, func(n net.IPNet) bool { return n.String() == ip.String() })
			}
			peer.AllowedIPs = append(peer.AllowedIPs, ip)
		}
	}
}

func (d fakeDevice) peers() []wgtypes.Peer {
	var peers []wgtypes.Peer
	for _, peer := range d {
		peers = append(peers, *peer)
	}
	return peers
}

// FuzzDiff walks a device through random sets of peers: each difference leads
// to what is wanted, and the next one is empty.
func FuzzDiff(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, uint8(4))
	}
	f.Fuzz(func(t *testing.T, seed uint64, steps uint8) {
		random := rand.New(rand.NewPCG(seed, 1))
		device := fakeDevice{}
		written := map[wgtypes.Key]netip.AddrPort{}
		for range steps%8 + 1 {
			want := randomPeers(random)
			device.configure(t, Diff(device.peers(), want, written))
			written = map[wgtypes.Key]netip.AddrPort{}
			for _, p := range want {
				written[p.PublicKey] = p.Endpoint
			}
			if again := Diff(device.peers(), want, written); len(again) > 0 {
				t.Fatalf("a second pass writes %v", lines(again))
			}
			if len(device) != len(want) {
				t.Fatalf("the device has %d peers, want %d", len(device), len(want))
			}
			for _, p := range want {
				have := device[p.PublicKey]
				if !slices.Equal(prefixesOf(have.AllowedIPs), p.AllowedIPs) || have.PersistentKeepaliveInterval != p.Keepalive ||
					p.Endpoint.IsValid() && addrPort(have.Endpoint) != p.Endpoint {
					t.Fatalf("peer %+v, want %+v", have, p)
				}
			}
		}
	})
}

// randomPeers deals some of eight slices out to some of five nodes.
func randomPeers(random *rand.Rand) []Peer {
	chosen := map[int][]netip.Prefix{}
	for n := range 8 {
		if owner := random.IntN(7); owner < 5 {
			chosen[owner] = append(chosen[owner], node(n + 1).Slices[random.IntN(2)])
		}
	}
	var peers []Peer
	for _, n := range slices.Sorted(maps.Keys(chosen)) {
		slices.SortFunc(chosen[n], netip.Prefix.Compare)
		p := Peer{Node: fmt.Sprint(n), PublicKey: named(fmt.Sprint(n)), AllowedIPs: chosen[n], Keepalive: time.Duration(random.IntN(2)) * time.Second}
		if random.IntN(3) > 0 {
			p.Endpoint = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(random.IntN(3))}), 1)
		}
		peers = append(peers, p)
	}
	return peers
}
