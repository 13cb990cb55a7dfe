package nat

import (
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// BenchmarkLook measures what one look at the device costs with 5,000 peers, none
// of which is behind a translator, but for one.
func BenchmarkLook(b *testing.B) {
	w := &simWorld{internet: newNetwork()}
	o := w.node("a", w.internet, "203.0.113.1").options()
	o.Direct = &simSink{}
	agent, err := New(o)
	if err != nil {
		b.Fatal(err)
	}
	e := newEngine(agent)
	e.now = time.Now()
	var peers []Peer
	var states []PeerState
	for i := range 5000 {
		key := wgtypes.Key{0: 1, 1: byte(i >> 8), 2: byte(i)}
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), wgPort)
		peers = append(peers, Peer{Key: key, Endpoint: addr, Candidates: []Candidate{{Host, addr}, {Reflexive, addr}}})
		states = append(states, PeerState{Key: key, Endpoint: addr, LastHandshake: e.now})
	}
	peers[0].Candidates[1].Addr = netip.MustParseAddrPort("198.51.100.1:1")
	e.setPeers(peers)
	b.ReportAllocs()
	for b.Loop() {
		e.now = e.now.Add(lookInterval)
		e.looked(sight{peers: states})
	}
}
