package dataplane

import (
	"net/netip"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
)

func TestNeedsRelay(t *testing.T) {
	public := []nat.Candidate{
		{Kind: nat.Host, Addr: netip.MustParseAddrPort("203.0.113.7:51820")},
		{Kind: nat.Reflexive, Addr: netip.MustParseAddrPort("203.0.113.7:51820")},
	}
	direct, dead := nat.PeerStatus{Path: nat.Direct}, nat.PeerStatus{Path: nat.Unreached}
	missed, relayed := nat.PeerStatus{Path: nat.Unreached, Missed: true}, nat.PeerStatus{Path: nat.ByRelay}
	for _, test := range []struct {
		name   string
		status nat.Status
		want   bool
	}{
		{"nobody", nat.Status{}, false},
		{"a symmetric translator", nat.Status{Mapping: nat.Symmetric}, true},
		{"all reached", nat.Status{Translated: true, Peers: []nat.PeerStatus{direct}}, false},
		{"public, and one is switched off", nat.Status{Candidates: public, Peers: []nat.PeerStatus{direct, dead}}, false},
		{"public, and one is missed", nat.Status{Candidates: public, Peers: []nat.PeerStatus{direct, missed}}, false},
		{"public, and the only one is missed", nat.Status{Candidates: public, Peers: []nat.PeerStatus{missed}}, true},
		{"translated, and one is switched off", nat.Status{Translated: true, Peers: []nat.PeerStatus{direct, dead}}, false},
		{"translated, and one is missed", nat.Status{Translated: true, Peers: []nat.PeerStatus{direct, missed}}, true},
		{"by a relay", nat.Status{Peers: []nat.PeerStatus{direct, relayed}}, true},
	} {
		if got := needsRelay(test.status); got != test.want {
			t.Errorf("%s: %t, want %t", test.name, got, test.want)
		}
	}
}
