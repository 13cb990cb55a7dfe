package wireguard

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// manyPeers returns n peers with a slice of each family.
func manyPeers(n int) []Peer {
	peers := make([]Peer, n)
	for i := range peers {
		peers[i] = Peer{
			Node:      fmt.Sprintf("node-%d", i),
			PublicKey: wgtypes.Key{31: 1},
			Endpoint:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 51820),
			AllowedIPs: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 2, 4: byte(i >> 8), 5: byte(i)}), 64),
			},
		}
		binary.BigEndian.PutUint32(peers[i].PublicKey[:], uint32(i)+1)
	}
	return peers
}

func BenchmarkSetPeers(b *testing.B) {
	for _, backend := range availableBackends(b) {
		for _, n := range []int{10, 1000, 5000} {
			b.Run(fmt.Sprintf("%s/%d", backend, n), func(b *testing.B) { benchmarkSetPeers(b, backend, manyPeers(n)) })
		}
	}
}

// benchmarkSetPeers compares the first application of peers with bare wgctrl,
// one after the other, and then takes a change of one and no change.
func benchmarkSetPeers(b *testing.B, backend Backend, peers []Peer) {
	node := newTestNode(b, netlab.TestFabric(b, "fabric"), backend, 1)
	d := node.open(b)
	var client *wgctrl.Client
	if err := node.ns.Do(func() (err error) { client, err = wgctrl.New(); return err }); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	configs := Diff(nil, peers, nil)
	other := append([]Peer(nil), peers...)
	var bare, first, one, none sample
	for b.Loop() {
		bare.time(func() error { return client.ConfigureDevice(d.Name(), wgtypes.Config{Peers: configs}) })
		empty(b, d, client)
		first.time(func() error { return d.SetPeers(b.Context(), peers) })
		none.time(func() error { return d.SetPeers(b.Context(), peers) })
		other[len(other)/2].Endpoint = netip.MustParseAddrPort("198.19.0.1:1")
		one.time(func() error { return d.SetPeers(b.Context(), other) })
		empty(b, d, client)
	}
	for _, s := range []sample{bare, first, one, none} {
		if s.err != nil {
			b.Fatal(s.err)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(bare.median(), "bare-ms")
	b.ReportMetric(first.median(), "first-ms")
	b.ReportMetric(first.median()/bare.median(), "first/bare")
	b.ReportMetric(one.median(), "one-ms")
	b.ReportMetric(none.median(), "none-ms")
}

// empty takes all peers and their routes away.
func empty(b *testing.B, d *Device, client *wgctrl.Client) {
	b.Helper()
	if err := client.ConfigureDevice(d.Name(), wgtypes.Config{ReplacePeers: true}); err != nil {
		b.Fatal(err)
	}
	if err := d.SetPeers(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
}
