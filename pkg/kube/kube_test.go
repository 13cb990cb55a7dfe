package kube

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
)

func TestNodesBecomeTheSet(t *testing.T) {
	l := newLab(t)
	peer := peerObject("b", "10.244.1.0/24", "fd00:10:244:1::/64")
	annotate(peer, ForceEndpoint, "gate.example:4000", Keepalive, "25s")
	l.Create("nodes", peer)
	l.Create("nodes", nodeObject("joining", "10.244.2.0/24"))
	l.start()
	l.plane.hasPeers(t, "b")
	want := []dataplane.Node{
		{Name: "self", PublicKey: keyFor("self"), Slices: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/64")}},
		{Name: "b", PublicKey: keyFor("b"), Endpoint: "gate.example:4000", Keepalive: 25 * time.Second,
			Slices: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}},
	}
	got := l.plane.last().Nodes
	sort := cmpopts.SortSlices(func(a, b dataplane.Node) bool { return a.Name > b.Name })
	if diff := cmp.Diff(want, got, sort, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	l.annotation(PublicKey, keyFor("self"))
	l.annotation(Endpoint, "192.0.2.1:51820")
	l.annotation(MTU, "1400")
	l.hasFault("")
}
