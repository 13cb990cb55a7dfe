package dataplane

import (
	"log/slog"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
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

// relayPlane is a data plane without devices, with what a relay is made of.
func relayPlane(t *testing.T, external string) (*Dataplane, *parts) {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	d := &Dataplane{key: wireguard.NewPrivateKey(key), log: slog.New(slog.DiscardHandler)}
	made := &parts{nat: NATConfig{
		Enabled: true, MaxCandidatePairs: 10,
		Relay: &RelayConfig{ListenPort: 3478, External: netip.MustParseAddrPort(external), MaxSessions: 1},
	}}
	return d, made
}

// TestRelayCostsOnlyItself: a relay that cannot be made takes neither NAT
// traversal nor the data plane with it.
func TestRelayCostsOnlyItself(t *testing.T) {
	for _, test := range []struct{ external, offer string }{
		{"192.0.2.1:3478", "udp=192.0.2.1:3478,tcp=192.0.2.1:3478"},
		{"127.0.0.1:3478", ""},
	} {
		d, made := relayPlane(t, test.external)
		traversal, err := d.newTraversal(made)
		if err != nil {
			t.Errorf("%s: %v", test.external, err)
			continue
		}
		if traversal.offer != test.offer || (traversal.server == nil) != (test.offer == "") {
			t.Errorf("%s: offer %q, server %v", test.external, traversal.offer, traversal.server)
		}
	}
}

// TestRelaysInsideTheOverlay checks that nobody's offer leads a node to pods.
func TestRelaysInsideTheOverlay(t *testing.T) {
	overlay := []netip.Prefix{netip.MustParsePrefix("10.200.0.0/16")}
	for text, want := range map[string]bool{
		"udp=192.0.2.1:3478": false, "udp=10.200.1.5:53": true, "tcp=10.200.1.5:53": true,
		"udp=192.0.2.1:3478,tcp=192.0.2.1:3478":  false,
		"udp=192.0.2.1:3478,tcp=10.200.1.5:6443": true,
	} {
		offer, err := nat.ParseRelayOffer(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := insideAny(overlay, offer); got != want {
			t.Errorf("%s: %t, want %t", text, got, want)
		}
	}
}
