package dataplane

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// newTraversingPlane returns a data plane that is up, with a peer, of which
// packets are sent nowhere.
func newTraversingPlane(t *testing.T) (*traversal, wgtypes.Key) {
	t.Helper()
	d := newPlane(t)
	d.cfg.NAT = NATConfig{Enabled: true}
	if err := d.SetNodes(t.Context(), twoNodes(t)); err != nil {
		t.Fatal(err)
	}
	return d.current().traversal, d.currentPeers()[0].PublicKey
}

// TestMTUFollowsThePath has a peer reached by the other family, and back.
func TestMTUFollowsThePath(t *testing.T) {
	d := newPlane(t)
	d.cfg.MTU, d.cfg.NAT = 0, NATConfig{Enabled: true}
	ip(t, "link", "add", "under", "type", "bridge")
	t.Cleanup(func() { ip(t, "link", "del", "under") })
	ip(t, "addr", "add", "192.0.2.1/24", "dev", "under")
	ip(t, "addr", "add", "2001:db8:9::1/64", "dev", "under", "nodad")
	ip(t, "link", "set", "under", "up")
	if err := d.SetNodes(t.Context(), twoNodes(t)); err != nil {
		t.Fatal(err)
	}
	tr, peer := d.current().traversal, d.currentPeers()[0].PublicKey
	for _, step := range []struct {
		endpoint string
		want     int
	}{{"192.0.2.2:51820", 1440}, {"[2001:db8:9::2]:51820", 1420}, {"192.0.2.2:4500", 1440}} {
		if err := tr.Use(t.Context(), map[wgtypes.Key]netip.AddrPort{peer: netip.MustParseAddrPort(step.endpoint)}); err != nil {
			t.Fatal(err)
		}
		link, err := net.InterfaceByName(deviceName())
		if err != nil || link.MTU != step.want || d.current().device.MTU() != step.want {
			t.Errorf("by %s: MTU of the link %+v (%v), of the device %d, want %d", step.endpoint, link, err, d.current().device.MTU(), step.want)
		}
	}
}

// TestPeersArePointedTo checks that the device sends to where it is pointed,
// stays there when the node set is given again, and is left as it was by an error.
func TestPeersArePointedTo(t *testing.T) {
	tr, peer := newTraversingPlane(t)
	moved := netip.MustParseAddrPort("192.0.2.3:51820")
	published, found := netip.MustParseAddrPort("192.0.2.2:51820"), netip.MustParseAddrPort("203.0.113.7:4500")
	ended, end := context.WithCancel(t.Context())
	end()
	to := func(endpoint netip.AddrPort) map[wgtypes.Key]netip.AddrPort {
		return map[wgtypes.Key]netip.AddrPort{peer: endpoint}
	}
	for _, step := range []struct {
		name string
		do   func() error
		fail bool
		want netip.AddrPort
	}{
		{"an error", func() error { return tr.Use(ended, to(found)) }, true, published},
		{"the same peers after an error", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, published},
		{"an error of the device", func() error {
			return tr.point(t.Context(), to(found), func(context.Context, []wireguard.Peer) error { return context.DeadlineExceeded })
		}, true, published},
		{"the same peers after an error of the device", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, published},
		{"used", func() error { return tr.Use(t.Context(), to(found)) }, false, found},
		{"the same peers", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, found},
		{"held elsewhere", func() error { return tr.Hold(t.Context(), to(published)) }, false, found},
		{"never heard there", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, published},
		{"used and given back", func() error {
			if err := tr.Use(t.Context(), to(found)); err != nil {
				return err
			}
			return tr.Use(t.Context(), to(netip.AddrPort{}))
		}, false, published},
		{"published elsewhere while another is used", func() error {
			set := NodeSet{Cluster: tr.plane.clusterPrefixes(), Nodes: slices.Clone(tr.plane.nodes)}
			set.Nodes[1].Endpoint = moved.String()
			return errors.Join(tr.Use(t.Context(), to(found)), tr.plane.SetNodes(t.Context(), set))
		}, false, moved},
		{"the same peers, published elsewhere", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, moved},
		{"used again", func() error { return tr.Use(t.Context(), to(found)) }, false, found},
		{"the same peers, used again", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, found},
	} {
		if err := step.do(); (err != nil) != step.fail {
			t.Fatalf("%s: %v", step.name, err)
		}
		states, err := tr.Peers(t.Context())
		if err != nil || len(states) != 1 {
			t.Fatalf("%s: %v, %v", step.name, states, err)
		}
		if states[0].Endpoint != step.want {
			t.Errorf("%s: sends to %s, want %s", step.name, states[0].Endpoint, step.want)
		}
	}
}
