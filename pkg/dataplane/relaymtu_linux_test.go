package dataplane

import (
	"strconv"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
)

// TestMTULeavesRoomForRelays: a full packet fits the underlay inside ChannelData,
// on every node of a cluster where any may use a relay.
func TestMTULeavesRoomForRelays(t *testing.T) {
	const outerIPv4, outerIPv6, wireGuard = 20 + 8, 40 + 8, 32
	for _, test := range []struct {
		name     string
		underlay int
		nat      NATConfig
		node     Node // the other
		want     int
		relayed  bool
		byIPv6   bool
	}{
		{"no relay", 1500, NATConfig{Enabled: true}, Node{}, 1440, false, false},
		{"another's", 1500, NATConfig{Enabled: true}, Node{Relay: "udp=192.0.2.2:3478"}, 1436, true, false},
		{"another's, over an odd underlay", 1454, NATConfig{Enabled: true}, Node{Relay: "udp=192.0.2.2:3478"}, 1388, true, false},
		{"another's by IPv6", 1500, NATConfig{Enabled: true}, Node{Relay: "udp=[2001:db8:9::2]:3478"}, 1416, true, true},
		{"its own", 1500, NATConfig{Enabled: true, Relay: &RelayConfig{}}, Node{}, 1436, true, false},
		{"a server outside", 1500, NATConfig{Enabled: true, TURNServers: []TURNServer{{Address: "turn.example:3478"}}}, Node{}, 1436, true, false},
		{"another behind a server outside", 1500, NATConfig{Enabled: true}, Node{Candidates: []string{"host/192.0.2.2:51820", "relay/203.0.113.7:49152"}}, 1436, true, false},
		{"another behind a server outside, by IPv6", 1500, NATConfig{Enabled: true}, Node{Candidates: []string{"relay/[2001:db8:9::7]:49152"}}, 1416, true, true},
		{"another that is direct", 1500, NATConfig{Enabled: true}, Node{Candidates: []string{"host/192.0.2.2:51820"}}, 1440, false, false},
		{"an offer of garbage", 1500, NATConfig{Enabled: true}, Node{Relay: "garbage"}, 1440, false, false},
		{"no traversal", 1500, NATConfig{Relay: &RelayConfig{}}, Node{Relay: "udp=192.0.2.2:3478"}, 1440, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newPlane(t)
			d.cfg.MTU, d.cfg.NAT = 0, test.nat
			d.cfg.NAT.Relay = nil // the relay itself is not needed
			ip(t, "link", "add", "under", "mtu", strconv.Itoa(test.underlay), "type", "bridge")
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
			outer := outerIPv4
			if test.byIPv6 {
				outer = outerIPv6
			}
			// In a channel's message, which may be padded.
			full := (mtu+wireGuard+nat.RelayOverhead+nat.RelayPadding-1)/nat.RelayPadding*nat.RelayPadding + outer
			if test.relayed && (full > test.underlay || full <= test.underlay-nat.RelayPadding) {
				t.Errorf("a full packet has %d bytes on the way to the relay, of %d", full, test.underlay)
			}
			if up := d.current().device.MTU(); test.nat.Relay == nil && up != test.want {
				t.Errorf("the device came up with MTU %d, not %d", up, test.want)
			}
		})
	}
}
