package nat

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// TestRelayFullPackets has networks that carry 1500 bytes, and lose fragments, as
// the translators of many carriers and IPv6 firewalls do.
func TestRelayFullPackets(t *testing.T) {
	fabric := netlab.TestFabric(t, "underlay")
	relayNS := labHost(t, fabric, "relay", "192.0.2.1/24", "203.0.113.1/24")
	a, b := labHost(t, fabric, "a", "192.0.2.10/24"), labHost(t, fabric, "b", "203.0.113.10/24")
	labRoute(t, b, "192.0.2.1/32", "203.0.113.1")
	for _, ns := range []*netlab.NS{relayNS, a, b} {
		labNFT(t, ns, "add table ip fragments; add chain ip fragments in { type filter hook prerouting priority -450; }; "+
			"add rule ip fragments in ip frag-off & 0x3fff != 0 drop")
	}
	relayNode, nodeA, nodeB := newTestNode(t), newTestNode(t), newTestNode(t)
	startMachine(t, relayNS, labRole{Relay: true, Private: relayNode.private, Peers: []wgtypes.Key{nodeA.public, nodeB.public}})
	one := startMachine(t, a, labRole{Private: nodeA.private, Peers: []wgtypes.Key{relayNode.public}})
	two := startMachine(t, b, labRole{Private: nodeB.private, Peers: []wgtypes.Key{relayNode.public}})
	addrA, _ := one.up(t)
	addrB, _ := two.up(t)
	labPing(t, one, two, addrA, addrB, "small")
	const underlay, ipAndUDP, head = 1500, 20 + 8, 16 + 2 + len("ping ") // of wireGuard
	const full = underlay - ipAndUDP - RelayOverhead - head
	labPing(t, one, two, addrA, addrB, strings.Repeat("x", full))
	labPing(t, two, one, addrB, addrA, strings.Repeat("y", full))
	_, _ = fmt.Fprintf(one.in, "%s ping long %s\n", addrB, strings.Repeat("z", full+1-len("long ")))
	if got := two.await(t, "got ping long", 500*time.Millisecond); got != "" {
		t.Error("this network does not lose fragments")
	}
}
