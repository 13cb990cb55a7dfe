package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

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
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, peerEvent(tc.news)); diff != "" {
				t.Errorf("event (-want +got)\n%s", diff)
			}
		})
	}
}
