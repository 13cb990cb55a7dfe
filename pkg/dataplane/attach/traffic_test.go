//go:build linux

package attach_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// ping sends several packets and wants every answer: an ICMP redirect spoils
// all but the first.
func ping(t *testing.T, from *netlab.NS, to string, extra ...string) {
	t.Helper()
	argv := append([]string{"ping", "-n", "-c", "4", "-i", "0.05", "-W", "20"}, extra...)
	if text := out(t, from, append(argv, to)...); !strings.Contains(text, " 4 received") {
		t.Errorf("ping %s from %s:\n%s", to, from.Name, text)
	}
}

// TestTraffic checks who reaches whom: sandboxes on one bridge and on two, the
// host and its own address, the gateways, and a sandbox itself by an address
// that the host translates.
func TestTraffic(t *testing.T) {
	n := newNode(t, "host", attach.Config{MTU: 1420, Sources: overlay})
	giveOverlay(t, n.ns)
	out(t, n.ns, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1") // the strictest
	one, two, other := newPod(t, "one"), newPod(t, "two"), newPod(t, "other")
	n.must(t, one.spec(1))
	n.must(t, two.spec(2))
	elsewhere := other.spec(3)
	elsewhere.Segment = "ns/web"
	n.must(t, elsewhere)

	for _, tc := range []struct {
		name     string
		from     *netlab.NS
		ipv4, v6 string
	}{
		{"on one bridge", one.NS, "10.42.0.2", "fd42::2"},
		{"back", two.NS, "10.42.0.1", "fd42::1"},
		{"to another segment", one.NS, "10.42.0.3", "fd42::3"},
		{"from another segment", other.NS, "10.42.0.2", "fd42::2"},
		{"host to sandbox", n.ns, "10.42.0.1", "fd42::1"},
		{"sandbox to host", one.NS, overlay[0].String(), overlay[1].String()},
		{"sandbox to gateway", one.NS, "169.254.1.1", "fe80::1%eth0"},
		{"sandbox to itself", one.NS, "10.42.0.1", "fd42::1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ping(t, tc.from, tc.ipv4)
			ping(t, tc.from, tc.v6)
		})
	}

	t.Run("the host answers for its overlay address", func(t *testing.T) {
		for i, addr := range []string{"10.42.0.1", "fd42::1"} {
			if route := out(t, n.ns, "ip", "route", "get", addr); !strings.Contains(route, "src "+overlay[i].String()) {
				t.Errorf("route to %s: %s", addr, route)
			}
		}
	})
	for _, netfilter := range []string{"0", "1"} {
		t.Run("services with br_netfilter "+netfilter, func(t *testing.T) {
			// A kernel without br_netfilter behaves like one where it is off.
			out(t, n.ns, "sh", "-c", "modprobe -q br_netfilter; for f in /proc/sys/net/bridge/bridge-nf-call-ip*; do [ ! -e $f ] || echo "+netfilter+" > $f; done")
			out(t, n.ns, "nft", services)
			for _, to := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2", "2001:db8::3"} {
				ping(t, one.NS, to)
			}
			ping(t, one.NS, "fd42::2") // a redirect that came with a service would break it now
			out(t, n.ns, "nft", "delete table ip services; delete table ip6 services")
		})
	}
	t.Run("too large for a smaller sandbox", func(t *testing.T) {
		small := newPod(t, "small")
		spec := small.spec(4)
		spec.MTU = 1300
		n.must(t, spec)
		// Without fragments allowed, the host says what fits rather than dropping in silence.
		text, err := one.Command(t.Context(), "ping", "-n", "-c", "1", "-W", "20", "-M", "do", "-s", "1380", "10.42.0.4").CombinedOutput()
		if err == nil || !strings.Contains(string(text), "mtu = 1300") && !strings.Contains(string(text), "mtu=1300") {
			t.Errorf("ping: %v\n%s", err, text)
		}
	})
}

// services gives each sandbox an address outside, as kube-proxy does, and one
// that reaches itself there another source.
const services = `
table ip services {
	chain in {
		type nat hook prerouting priority -100;
		ip daddr 192.0.2.1 dnat to 10.42.0.1
		ip daddr 192.0.2.2 dnat to 10.42.0.2
		ip daddr 192.0.2.3 dnat to 10.42.0.3
	}
	chain out {
		type nat hook postrouting priority 100;
		ip saddr 10.42.0.1 ip daddr 10.42.0.1 masquerade
	}
}
table ip6 services {
	chain in {
		type nat hook prerouting priority -100;
		ip6 daddr 2001:db8::1 dnat to fd42::1
		ip6 daddr 2001:db8::2 dnat to fd42::2
		ip6 daddr 2001:db8::3 dnat to fd42::3
	}
	chain out {
		type nat hook postrouting priority 100;
		ip6 saddr fd42::1 ip6 daddr fd42::1 masquerade
	}
}`

// TestIsolation checks that a frame for a neighbour's hardware address does not
// cross the bridge: everything has to be routed.
func TestIsolation(t *testing.T) {
	n := newNode(t, "host", attach.Config{})
	one, two := newPod(t, "one"), newPod(t, "two")
	n.must(t, one.spec(1))
	neighbour := n.must(t, two.spec(2))
	out(t, one.NS, "sh", "-c", "ip route add 10.42.0.2 dev eth0 && ip neigh add 10.42.0.2 dev eth0 lladdr "+neighbour.MAC.String())
	if text, err := one.Command(t.Context(), "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "10.42.0.2").CombinedOutput(); err == nil {
		t.Errorf("a frame crossed the bridge:\n%s", text)
	}
	out(t, one.NS, "ip", "route", "del", "10.42.0.2", "dev", "eth0")
	ping(t, one.NS, "10.42.0.2")
}

// overlay is the node's own address of both families.
var overlay = []netip.Addr{netip.MustParseAddr("10.42.255.1"), netip.MustParseAddr("fd42::ffff")}

// giveOverlay stands in for the WireGuard device.
func giveOverlay(t testing.TB, ns *netlab.NS) {
	t.Helper()
	out(t, ns, "sh", "-c", "ip link add overlay type bridge && ip link set overlay addrgenmode none up && ip addr add 10.42.255.1/32 dev overlay && ip addr add fd42::ffff/128 dev overlay nodad")
}
