package dataplane

import (
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

func TestNeedsRelay(t *testing.T) {
	for _, test := range []struct {
		name  string
		reach nat.Reach
		want  bool
	}{
		{"nobody", nat.Reach{}, false},
		{"a symmetric translator", nat.Reach{Mapping: nat.Symmetric}, true},
		{"all reached", nat.Reach{Translated: true, Unaided: 1}, false},
		{"public, and one is missed", nat.Reach{Unaided: 1, Missed: 1}, false},
		{"public, and the only one is missed", nat.Reach{Missed: 1}, true},
		{"translated, and one is missed", nat.Reach{Translated: true, Unaided: 1, Missed: 1}, true},
		{"by a relay", nat.Reach{Unaided: 1, Relayed: 1}, true},
	} {
		if got := needsRelay(test.reach); got != test.want {
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
		if offer := traversal.relayOffer(); offer != "" {
			t.Errorf("%s: %q is offered before anything serves", test.external, offer)
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

// TestEveryRefusalIsShown finds the counters of a relay that no reason stands for.
func TestEveryRefusalIsShown(t *testing.T) {
	notRefused := []string{"Sessions", "Allocated", "ToPeers", "ToClients", "Unauthenticated", "Answered"}
	stats := &nat.RelayStats{}
	counted := map[*atomic.Uint64]bool{}
	for _, counter := range relayRefusals(stats) {
		counted[counter] = true
	}
	fields := reflect.ValueOf(stats).Elem()
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Name
		counter, is := fields.Field(i).Addr().Interface().(*atomic.Uint64)
		if is && counted[counter] == slices.Contains(notRefused, name) {
			t.Errorf("%s: shown as a refusal: %t", name, counted[counter])
		}
	}
	stats.Stranger.Add(2)
	stats.Expired.Add(3)
	status := relayStatus(stats)
	if status.Refused["stranger"] != 2 || status.Refused["expired"] != 3 || status.RefusedInAll() != 5 {
		t.Errorf("refused %v", status.Refused)
	}
}
