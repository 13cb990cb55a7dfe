package dns

import (
	"net/netip"
	"testing"
	"time"
)

// TestWhoIsServed is about sandboxes that ask the gateway on their link, as they
// do from addresses of the link, and about neighbours of the node that do the same elsewhere.
func TestWhoIsServed(t *testing.T) {
	everywhere, onALink := &socket{}, &socket{index: 7}
	for _, tc := range []struct {
		name   string
		client string
		at     *socket
		want   bool
	}{
		{"of the cluster", "10.0.0.9", everywhere, true},
		{"of the cluster by IPv6", "fd00::9", everywhere, true},
		{"of the cluster, on a link", "fd00::9", onALink, true},
		{"from outside", "192.0.2.9", everywhere, false},
		{"from outside, on a link", "2001:db8::9", onALink, false},
		{"a neighbour of the link", "fe80::9%zl-default-b", onALink, true},
		{"a neighbour of the node", "fe80::9%eth0", everywhere, false},
		{"a neighbour of the node by IPv4", "169.254.7.7", everywhere, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newTestServer(ServerConfig{}, testZone())
			if got := s.serves(clientOf(netip.MustParseAddr(tc.client)), tc.at, time.Now(), &s.counters[0]); got != tc.want {
				t.Errorf("served: %v, want %v", got, tc.want)
			}
		})
	}
}
