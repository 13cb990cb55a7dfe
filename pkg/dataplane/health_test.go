package dataplane

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// TestNewsOfPeers looks at one peer again and again.
func TestNewsOfPeers(t *testing.T) {
	key := wgtypes.Key{1}
	here, there := netip.MustParseAddrPort("192.0.2.1:51820"), netip.MustParseAddrPort("198.51.100.1:4000")
	change := func(before, now wireguard.HealthState) []wireguard.HealthChange {
		return []wireguard.HealthChange{{Before: before, PeerHealth: wireguard.PeerHealth{Node: "b", PublicKey: key, State: now}}}
	}
	tracker := (&healthWatch{}).tracker("zl-cluster-g")
	for _, step := range []struct {
		name     string
		changes  []wireguard.HealthChange
		endpoint netip.AddrPort
		want     []string
	}{
		{"new, and not heard of", change("", wireguard.HealthUnknown), netip.AddrPort{}, nil},
		{"answers", change(wireguard.HealthUnknown, wireguard.Healthy), here, []string{"healthy"}},
		{"has nothing to answer", change(wireguard.Healthy, wireguard.Idle), here, nil},
		{"answers after a while", change(wireguard.Idle, wireguard.Healthy), here, nil},
		{"is silent", change(wireguard.Healthy, wireguard.Unhealthy), here, []string{"unhealthy"}},
		{"answers from elsewhere", change(wireguard.Unhealthy, wireguard.Healthy), there, []string{"healthy", there.String()}},
		{"nothing new", nil, there, nil},
	} {
		var got []string
		for _, news := range tracker.news(step.changes, []wireguard.PeerStatus{{Node: "b", PublicKey: key, Endpoint: step.endpoint}}) {
			if news.Node != "b" || news.PublicKey != key {
				t.Errorf("%s: news of %s", step.name, news.Node)
			}
			if news.Answers {
				got = append(got, string(news.Health.State))
			} else {
				got = append(got, news.Endpoint.String())
			}
		}
		if diff := cmp.Diff(step.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", step.name, diff)
		}
	}
	if tracker.news(nil, nil); len(tracker.endpoints) > 0 {
		t.Error("a peer that is gone is remembered")
	}
}
