package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// knownWays is all that a data plane can know of ways through NATs.
func knownWays() dataplane.NATStatus {
	addr := netip.MustParseAddrPort
	return dataplane.NATStatus{
		Enabled: true, Mapping: "endpoint-independent",
		Candidates: []dataplane.NATCandidate{
			{Candidate: nat.Candidate{Kind: nat.Host, Addr: addr("192.168.7.2:51820")}, Since: noon.Add(-time.Hour)},
			{Candidate: nat.Candidate{Kind: nat.Reflexive, Addr: addr("203.0.113.7:40001")}, Since: noon.Add(-time.Minute)},
			{Candidate: nat.Candidate{Kind: nat.Relayed, Addr: addr("[2001:db8::1]:49152")}},
		},
		Peers: []dataplane.NATPath{
			{Node: "node-b", PublicKey: wgtypes.Key{1}, Connection: dataplane.HolePunched, Endpoint: addr("203.0.113.9:40002"), RTT: 23 * time.Millisecond, Since: noon.Add(-72 * time.Second)},
			{Node: "node-c", PublicKey: wgtypes.Key{2}},
		},
		Checks: dataplane.NATChecks{Sent: 40, Answered: 30, Refused: 2, Dropped: 1},
		Relay: &dataplane.RelayStatus{
			Offer: "udp=203.0.113.1:3478", Sessions: 3, Bytes: 5 << 20, Refused: map[string]uint64{"expired": 3, "stranger": 1},
		},
	}
}

func TestNATStatusOf(t *testing.T) {
	want := &shim.NATStatus{
		Enabled: true, NATType: "endpoint-independent",
		Candidates: []shim.NATCandidate{
			{Type: shim.CandidateHost, Address: netip.MustParseAddrPort("192.168.7.2:51820"), Priority: 100, DiscoveredUnixSecs: noon.Unix() - 3600},
			{Type: shim.CandidateServerReflexive, Address: netip.MustParseAddrPort("203.0.113.7:40001"), Priority: 50, DiscoveredUnixSecs: noon.Unix() - 60},
			{Type: shim.CandidateRelay, Address: netip.MustParseAddrPort("[2001:db8::1]:49152"), Priority: 10},
		},
		Peers: []shim.NATPeer{
			{PublicKey: wgtypes.Key{1}.String(), Node: "node-b", Connection: shim.ConnectionHolePunched, Endpoint: "203.0.113.9:40002", RTTMicros: 23000, SinceUnixSecs: noon.Unix() - 72},
			{PublicKey: wgtypes.Key{2}.String(), Node: "node-c"},
		},
		Relay: &shim.NATRelay{
			Offer: "udp=203.0.113.1:3478", Sessions: 3, Bytes: 5 << 20, Refused: 4, RefusedFor: map[string]uint64{"expired": 3, "stranger": 1},
		},
	}
	if diff := cmp.Diff(want, natStatusOf(knownWays()), compareConfigs); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(&shim.NATStatus{}, natStatusOf(dataplane.NATStatus{})); diff != "" {
		t.Errorf("while it is off (-want +got):\n%s", diff)
	}
}

// behindNAT is a busy node with peers that are reached in every way.
func behindNAT() *shim.StatusSnapshot {
	s := busy()
	s.NAT = natStatusOf(knownWays())
	s.NAT.Peers[0].PublicKey = s.Peers[0].PublicKey
	s.NAT.Peers[1].PublicKey = s.Peers[1].PublicKey
	s.Peers = append(s.Peers, shim.PeerStatus{Node: "node-e", PublicKey: keyC, Endpoint: "192.0.2.5:51820"})
	return s
}

// TestNATIsShownWhereItPlaysAPart leaves the table of other nodes alone.
func TestNATIsShownWhereItPlaysAPart(t *testing.T) {
	host := shim.NATCandidate{Type: shim.CandidateHost, Address: netip.MustParseAddrPort("192.0.2.1:51820")}
	seen := shim.NATCandidate{Type: shim.CandidateServerReflexive, Address: host.Address}
	tests := []struct {
		name   string
		status *shim.NATStatus
		want   bool
	}{
		{"an older daemon", nil, false},
		{"off", &shim.NATStatus{}, false},
		{"nothing found", &shim.NATStatus{Enabled: true}, false},
		{"own addresses alone", &shim.NATStatus{Enabled: true, Candidates: []shim.NATCandidate{host}}, false},
		{"seen from outside", &shim.NATStatus{Enabled: true, Candidates: []shim.NATCandidate{host, seen}}, true},
		{"mapping known", &shim.NATStatus{Enabled: true, NATType: "symmetric"}, true},
		{"relays for others", &shim.NATStatus{Enabled: true, Relay: &shim.NATRelay{}}, true},
		{"a peer that needs help", &shim.NATStatus{Enabled: true, Peers: []shim.NATPeer{{}}}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := busy()
			s.NAT = tt.status
			var out strings.Builder
			if err := printStatus(&out, s, noon); err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(out.String(), "\nNAT\n"); got != tt.want {
				t.Errorf("shown: %v, want %v\n%s", got, tt.want, out.String())
			}
		})
	}
}

func TestRoundTrip(t *testing.T) {
	for d, want := range map[time.Duration]string{
		400 * time.Microsecond: "0.4ms", 9940 * time.Microsecond: "9.9ms", 10 * time.Millisecond: "10ms", 23456 * time.Microsecond: "23ms", 2 * time.Second: "2000ms",
	} {
		if got := roundTrip(d); got != want {
			t.Errorf("%v is written %s, want %s", d, got, want)
		}
	}
}
