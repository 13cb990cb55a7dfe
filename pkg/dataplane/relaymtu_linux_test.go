package dataplane

import (
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
)

// TestMTULeavesRoomForRelays: a full packet fits the underlay inside ChannelData,
// on every node of a cluster where any may use a relay.
func TestMTULeavesRoomForRelays(t *testing.T) {
	const underlay, outerIPv4, wireGuard = 1500, 28, 32
	for _, test := range []struct {
		name string
		nat  NATConfig
		node Node // the other
		want int
	}{
		{"no relay", NATConfig{Enabled: true}, Node{}, 1440},
		{"another's", NATConfig{Enabled: true}, Node{Relay: "udp=192.0.2.2:3478"}, 1436},
		{"another's by IPv6", NATConfig{Enabled: true}, Node{Relay: "udp=[2001:db8:9::2]:3478"}, 1416},
		{"its own", NATConfig{Enabled: true, Relay: &RelayConfig{}}, Node{}, 1436},
		{"a server outside", NATConfig{Enabled: true, TURNServers: []TURNServer{{Address: "turn.example:3478"}}}, Node{}, 1436},
		{"another behind a server outside", NATConfig{Enabled: true}, Node{Candidates: []string{"host/192.0.2.2:51820", "relay/203.0.113.7:49152"}}, 1436},
		{"another that is direct", NATConfig{Enabled: true}, Node{Candidates: []string{"host/192.0.2.2:51820"}}, 1440},
		{"an offer of garbage", NATConfig{Enabled: true}, Node{Relay: "garbage"}, 1440},
		{"no traversal", NATConfig{Relay: &RelayConfig{}}, Node{Relay: "udp=192.0.2.2:3478"}, 1440},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newPlane(t)
			d.cfg.MTU, d.cfg.NAT = 0, test.nat
			d.cfg.NAT.Relay = nil // the relay itself is not needed
			ip(t, "link", "add", "under", "mtu", "1500", "type", "bridge")
			t.Cleanup(func() { ip(t, "link", "del", "under") })
			ip(t, "addr", "add", "192.0.2.1/24", "dev", "under")
			ip(t, "addr", "add", "2001:db8:9::1/64", "dev", "under", "nodad")
			ip(t, "link", "set", "under", "up")
			set := twoNodes(t)
			for i := range set.Nodes {
				if set.Nodes[i].Name != d.cfg.Node {
					set.Nodes[i].Relay, set.Nodes[i].Candidates = test.node.Relay, test.node.Candidates
				}
			}
			if err := d.SetNodes(t.Context(), set); err != nil {
				t.Fatal(err)
			}
			endpoints, err := d.current().device.Endpoints(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			mtu, err := d.overlayMTU(endpoints, test.nat)
			if err != nil || mtu != test.want {
				t.Errorf("MTU %d, not %d (%v)", mtu, test.want, err)
			}
			if test.want == 1436 && mtu+wireGuard+nat.RelayOverhead+outerIPv4 > underlay {
				t.Error("a full packet is fragmented on the way to the relay")
			}
			if up := d.current().device.MTU(); test.nat.Relay == nil && up != test.want {
				t.Errorf("the device came up with MTU %d, not %d", up, test.want)
			}
		})
	}
}
