package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// TestCandidatesEvent tells no more candidates than other nodes take.
func TestCandidatesEvent(t *testing.T) {
	var many []nat.Candidate
	var want []string
	for i := range 20 {
		candidate := nat.Candidate{Kind: nat.Host, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 51820)}
		many = append(many, candidate)
		if i < nat.MaxCandidates {
			want = append(want, candidate.String())
		}
	}
	if diff := cmp.Diff(&shim.NATCandidatesChanged{Candidates: want, Relay: "udp=192.0.2.1:3478"}, candidatesEvent(many, "udp=192.0.2.1:3478")); diff != "" {
		t.Errorf("event (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(&shim.NATCandidatesChanged{Candidates: []string{}}, candidatesEvent(nil, "")); diff != "" {
		t.Errorf("event of nothing (-want +got)\n%s", diff)
	}
}

func TestPeerEvent(t *testing.T) {
	key := wgtypes.Key{1}
	for _, tc := range []struct {
		name string
		news dataplane.PeerNews
		want shim.Event
	}{
		{"answers", dataplane.PeerNews{PublicKey: key, Answers: true, Health: wireguard.PeerHealth{State: wireguard.Healthy}}, &shim.PeerHealthChanged{Pubkey: key.String(), Healthy: true}},
		{"does not", dataplane.PeerNews{PublicKey: key, Answers: true, Health: wireguard.PeerHealth{State: wireguard.Unhealthy}}, &shim.PeerHealthChanged{Pubkey: key.String()}},
		{"elsewhere", dataplane.PeerNews{PublicKey: key, Endpoint: netip.MustParseAddrPort("192.0.2.1:4000")}, &shim.NATEndpointChanged{Pubkey: key.String(), Endpoint: "192.0.2.1:4000"}},
		{
			"elsewhere, by a relay", dataplane.PeerNews{PublicKey: key, Endpoint: netip.MustParseAddrPort("192.0.2.1:4000"), Connection: dataplane.Relayed},
			&shim.NATEndpointChanged{Pubkey: key.String(), Endpoint: "192.0.2.1:4000", Connection: shim.ConnectionRelayed},
		},
		{"reached no more", dataplane.PeerNews{PublicKey: key}, &shim.NATEndpointChanged{Pubkey: key.String()}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, peerEvent(tc.news)); diff != "" {
				t.Errorf("event (-want +got)\n%s", diff)
			}
		})
	}
}
