package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

func TestPeerChanges(t *testing.T) {
	key := wgtypes.Key{1}
	ago := func(d time.Duration) []wireguard.PeerStatus {
		return []wireguard.PeerStatus{{PublicKey: key, LastHandshake: noon.Add(-d)}}
	}
	steps := []struct {
		name  string
		peers []wireguard.PeerStatus
		want  []bool // what is told
	}{
		{"new, never heard of", []wireguard.PeerStatus{{PublicKey: key}}, nil},
		{"heard of", ago(time.Second), []bool{true}},
		{"still", ago(179 * time.Second), nil},
		{"silent", ago(180 * time.Second), []bool{false}},
		{"still silent", ago(time.Hour), nil},
		{"back", ago(0), []bool{true}},
		{"gone", nil, nil},
		{"there anew", ago(0), []bool{true}},
	}
	healthy := map[wgtypes.Key]bool{}
	for _, step := range steps {
		var want []*shim.PeerHealthChanged
		for _, h := range step.want {
			want = append(want, &shim.PeerHealthChanged{Pubkey: key.String(), Healthy: h})
		}
		if diff := cmp.Diff(want, peerChanges(healthy, step.peers, noon)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
	}
}
