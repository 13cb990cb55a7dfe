//go:build linux

package firewall

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A sending is a frame from pod 2, and what becomes of it.
type sending struct {
	name    string
	frame   []byte
	dropped string // the counter; "" passes
}

const (
	ipPod, ipOther   = "10.200.5.2", "10.200.5.3"
	ip6Pod, ip6Other = "fd00:200:0:5::2", "fd00:200:0:5::3"
	llPod, llOther   = "fe80::ff:fe00:502", "fe80::ff:fe00:503"
	allNodes         = "ff02::1"
)

// sendings are frames to the bridge with the given MAC.
func sendings(bridge string) []sending {
	own, other, to := mac("02:00:00:00:05:02"), mac("02:00:00:00:05:03"), mac(bridge)
	everyone := mac("ff:ff:ff:ff:ff:ff")
	datagram := udpTo(1000, 2000, "hello")
	from4 := func(source string) []byte {
		return ether(to, own, unix.ETH_P_IP, packet4(source, "192.0.2.9", unix.IPPROTO_UDP, datagram))
	}
	from6 := func(source string) []byte {
		return ether(to, own, unix.ETH_P_IPV6, sealed(packet6(source, "2001:db8::9", unix.IPPROTO_UDP, datagram)))
	}
	nd := func(source, destination string, kind byte, body ...byte) []byte {
		return ether(to, own, unix.ETH_P_IPV6, sealed(packet6(source, destination, unix.IPPROTO_ICMPV6, icmp(kind, body...))))
	}
	hidden := func(header byte, source string, message []byte) []byte {
		return ether(to, own, unix.ETH_P_IPV6, packet6(source, allNodes, header, behindOptions(unix.IPPROTO_ICMPV6, message)))
	}
	withSource := func(frame, source []byte) []byte {
		return ether(frame[:6], source, binary.BigEndian.Uint16(frame[12:]), frame[14:])
	}
	return []sending{
		{"IPv4 from its address", from4(ipPod), ""},
		{"IPv4 from another pod's address", from4(ipOther), CounterSpoofed},
		{"IPv4 from the node's address", from4("10.200.5.1"), CounterSpoofed},
		{"IPv4 from outside", from4("192.0.2.77"), CounterSpoofed},
		{"IPv4 from nowhere", from4("0.0.0.0"), CounterSpoofed},
		{"IPv4 with another pod's MAC", withSource(from4(ipPod), other), CounterSpoofed},
		{"IPv4 as another pod altogether", withSource(from4(ipOther), other), CounterSpoofed},
		{"IPv4 cut off in the header", from4(ipPod)[:14+14], CounterSpoofed},
		{"DHCP answer", ether(to, own, unix.ETH_P_IP, packet4(ipPod, "255.255.255.255", unix.IPPROTO_UDP, udpTo(67, 68, "yes"))), CounterRogue},
		{"DHCP question", ether(to, own, unix.ETH_P_IP, packet4("0.0.0.0", "255.255.255.255", unix.IPPROTO_UDP, udpTo(68, 67, "who"))), CounterSpoofed},
		{"ICMP redirect", ether(to, own, unix.ETH_P_IP, packet4(ipPod, ipOther, unix.IPPROTO_ICMP, icmp(icmpRedirect, 0, 0, 0, 0))), CounterRogue},
		{"ICMP echo", ether(to, own, unix.ETH_P_IP, packet4(ipPod, "192.0.2.9", unix.IPPROTO_ICMP, icmp(8, 0, 1, 0, 1))), ""},

		{"IPv6 from its address", from6(ip6Pod), ""},
		{"IPv6 from its link-local address", nd(llPod, allNodes, 128, 0, 1, 0, 1), ""},
		{"IPv6 from another pod's address", from6(ip6Other), CounterSpoofed},
		{"IPv6 from another pod's link-local address", nd(llOther, allNodes, 128, 0, 1, 0, 1), CounterSpoofed},
		{"IPv6 from the gateway's address", nd("fe80::1", allNodes, 128, 0, 1, 0, 1), CounterSpoofed},
		{"IPv6 from outside", from6("2001:db8::77"), CounterSpoofed},
		{"IPv6 with another pod's MAC", withSource(from6(ip6Pod), other), CounterSpoofed},
		{"IPv6 as another pod altogether", withSource(from6(ip6Other), other), CounterSpoofed},
		{"IPv6 cut off in the header", from6(ip6Pod)[:14+20], CounterSpoofed},
		{"datagram from no address", from6("::"), CounterSpoofed},
		{"echo from no address", nd("::", allNodes, 128, 0, 1, 0, 1), CounterSpoofed},
		{"duplicate address detection", nd("::", "ff02::1:ff00:2", neighbourSolicit, ndTarget(ip6Pod)...), ""},
		{"duplicate address detection with another pod's MAC", withSource(nd("::", "ff02::1:ff00:2", neighbourSolicit, ndTarget(ip6Pod)...), other), CounterSpoofed},
		{"neighbour solicitation", nd(llPod, "ff02::1:ff00:1", neighbourSolicit, ndTarget("fe80::1")...), ""},
		{"advertisement of its address", nd(ip6Pod, allNodes, neighbourAdvertise, ndTarget(ip6Pod)...), ""},
		{"advertisement of its link-local address", nd(llPod, allNodes, neighbourAdvertise, ndTarget(llPod)...), ""},
		{"advertisement of another pod's address", nd(ip6Pod, allNodes, neighbourAdvertise, ndTarget(ip6Other)...), CounterSpoofed},
		{"advertisement of the gateway", nd(llPod, allNodes, neighbourAdvertise, ndTarget("fe80::1")...), CounterSpoofed},
		{"advertisement from another pod's address", nd(ip6Other, allNodes, neighbourAdvertise, ndTarget(ip6Pod)...), CounterSpoofed},
		{"advertisement of another's address behind options", hidden(unix.IPPROTO_DSTOPTS, llPod, icmp(neighbourAdvertise, ndTarget(ip6Other)...)), CounterSpoofed},
		{"listener report without address", hidden(unix.IPPROTO_HOPOPTS, "::", icmp(listenerReportVersion2, 0, 0, 0, 0)), ""},
		{"listener report", hidden(unix.IPPROTO_HOPOPTS, llPod, icmp(listenerReportVersion2, 0, 0, 0, 0)), ""},
		{"router solicitation", nd(llPod, "ff02::2", routerSolicit, 0, 0, 0, 0), ""},
		{"router advertisement", nd(llPod, allNodes, routerAdvertisement, make([]byte, 12)...), CounterRogue},
		{"router advertisement behind options", hidden(unix.IPPROTO_HOPOPTS, llPod, icmp(routerAdvertisement, make([]byte, 12)...)), CounterRogue},
		{"router advertisement as the gateway", nd("fe80::1", allNodes, routerAdvertisement, make([]byte, 12)...), CounterRogue},
		{"IPv6 redirect", nd(llPod, allNodes, icmpv6Redirect, make([]byte, 36)...), CounterRogue},
		{"DHCPv6 answer", ether(to, own, unix.ETH_P_IPV6, sealed(packet6(llPod, allNodes, unix.IPPROTO_UDP, udpTo(547, 546, "yes")))), CounterRogue},

		{"ARP question", ether(everyone, own, unix.ETH_P_ARP, arp(1, own, ipPod, "169.254.1.1")), ""},
		{"ARP answer", ether(to, own, unix.ETH_P_ARP, arp(2, own, ipPod, "169.254.1.1")), ""},
		{"ARP for another pod's address", ether(everyone, own, unix.ETH_P_ARP, arp(2, own, ipOther, "169.254.1.1")), CounterSpoofed},
		{"ARP for the gateway", ether(everyone, own, unix.ETH_P_ARP, arp(2, own, "169.254.1.1", ipOther)), CounterSpoofed},
		{"ARP with another pod's MAC inside", ether(everyone, own, unix.ETH_P_ARP, arp(2, other, ipPod, "169.254.1.1")), CounterSpoofed},
		{"ARP with another pod's MAC outside", ether(everyone, other, unix.ETH_P_ARP, arp(2, own, ipPod, "169.254.1.1")), CounterSpoofed},
		{"ARP as another pod altogether", ether(everyone, other, unix.ETH_P_ARP, arp(2, other, ipOther, "169.254.1.1")), CounterSpoofed},
		{"ARP probe", ether(everyone, own, unix.ETH_P_ARP, arp(1, own, "0.0.0.0", ipPod)), CounterSpoofed},
		{"ARP cut off", ether(everyone, own, unix.ETH_P_ARP, arp(2, own, ipPod, "169.254.1.1"))[:14+12], CounterSpoofed},

		{"priority tag", tagged(from4(ipPod), [4]byte{0x81, 0, 0xe0, 0}), CounterRefused},
		{"priority tag before a forged source", tagged(from4("192.0.2.77"), [4]byte{0x81, 0, 0, 0}), CounterRefused},
		{"VLAN tag", tagged(from6(ip6Pod), [4]byte{0x81, 0, 0, 7}), CounterRefused},
		{"service VLAN tag", tagged(from6("2001:db8::77"), [4]byte{0x88, 0xa8, 0, 0}), CounterRefused},
		{"two tags", tagged(from4("192.0.2.77"), [4]byte{0x88, 0xa8, 0, 0}, [4]byte{0x81, 0, 0, 0}), CounterRefused},
		{"old IEEE frame", ether(to, own, 38, append([]byte{0x42, 0x42, 3}, make([]byte, 35)...)), CounterRefused},
		{"MPLS", ether(to, own, unix.ETH_P_MPLS_UC, from4(ipPod)[14:]), CounterRefused},
		{"PPPoE", ether(to, own, unix.ETH_P_PPP_SES, from4(ipPod)[14:]), CounterRefused},
		{"LLDP", ether(to, own, unix.ETH_P_LLDP, make([]byte, 40)), CounterRefused},
	}
}

// asSeen is a frame as a packet socket shows it: the kernel has moved the first
// VLAN tag out of it.
func asSeen(frame []byte) []byte {
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_8021Q, unix.ETH_P_8021AD:
		return slices.Concat(frame[:12], frame[16:])
	}
	return frame
}

// sendAll sends each frame and then one that marks its end, and reports which
// frames came out of the bridge and what was counted.
func sendAll(t *testing.T, n *node, from *pod, bridge string, all []sending, check func(t *testing.T, s sending, arrived bool, counted map[string]uint64)) {
	t.Helper()
	in, out := openWire(t, from.NS, "eth0"), openWire(t, n.NS, bridge)
	counters, _ := n.counters(t, nil)
	for i, s := range all {
		in.send(t, s.frame)
		marker := ether(s.frame[:6], from.pin.MAC, unix.ETH_P_IP,
			packet4(from.pin.Addrs[0].String(), "192.0.2.9", unix.IPPROTO_UDP, udpTo(1, 1, fmt.Sprintf("end of %d", i))))
		copy(marker, mac("ff:ff:ff:ff:ff:ff"))
		in.send(t, marker)
		arrived := false
		out.until(t, func(frame []byte) bool {
			arrived = arrived || bytes.Equal(frame, asSeen(s.frame))
			return bytes.Equal(frame, marker)
		})
		var counted map[string]uint64
		counters, counted = n.counters(t, counters)
		check(t, s, arrived, counted)
	}
}

// bridgeNetfilter are the states of br_netfilter to test with: loaded, as Docker
// and kubeadm want it, bridged packets pass the inet tables too.
func bridgeNetfilter() []string {
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err != nil {
		return []string{"absent"}
	}
	return []string{"0", "1"}
}

func (n *node) setBridgeNetfilter(t *testing.T, state string) {
	t.Helper()
	if state != "absent" {
		run(t, n.NS, fmt.Sprintf("sysctl -qw net.bridge.bridge-nf-call-iptables=%[1]s net.bridge.bridge-nf-call-ip6tables=%[1]s net.bridge.bridge-nf-call-arptables=%[1]s", state))
	}
}

func TestAPodSendsOnlyAsItself(t *testing.T) {
	for _, state := range bridgeNetfilter() {
		t.Run("br_netfilter "+state, func(t *testing.T) { testAPodSendsOnlyAsItself(t, state) })
	}
}

func testAPodSendsOnlyAsItself(t *testing.T, bridgeNetfilter string) {
	n := newNode(t)
	n.setBridgeNetfilter(t, bridgeNetfilter)
	one, two := n.addPod(t, "zl-default", 2), n.addPod(t, "zl-default", 3)
	rules := testRules()
	rules.Pins = []Pin{one.pin, two.pin}
	mustApply(t, n.firewall, rules, true)
	sendAll(t, n, one, "zl-default", sendings(bridgeMAC), func(t *testing.T, s sending, arrived bool, counted map[string]uint64) {
		want := map[string]uint64{}
		if s.dropped != "" {
			want[s.dropped] = 1
		}
		if arrived != (s.dropped == "") {
			t.Errorf("%s: it arrived: %v", s.name, arrived)
		}
		if diff := cmp.Diff(want, counted); diff != "" {
			t.Errorf("%s: counted (-want +got):\n%s", s.name, diff)
		}
	})
}

// A port of ours that isn't pinned yet, or no longer, and one on its way out,
// whose group differs in its lower half.
func TestAnUnpinnedPortSendsNothing(t *testing.T) {
	for _, group := range []int{testGroup, testGroup + 7} {
		t.Run(fmt.Sprintf("group %#x", group), func(t *testing.T) { testAnUnpinnedPortSendsNothing(t, group) })
	}
}

func testAnUnpinnedPortSendsNothing(t *testing.T, group int) {
	n := newNode(t)
	p := n.addPod(t, "zl-default", 2)
	run(t, n.NS, fmt.Sprintf("ip link set %s group %d", p.port, group))
	mustApply(t, n.firewall, testRules(), true)
	frames := sendings(bridgeMAC)
	// The kernel hands this up from the port itself, past the bridge.
	reserved := ether(mac("01:80:c2:00:00:0e"), p.pin.MAC, unix.ETH_P_IP, packet4("192.0.2.77", "192.0.2.1", unix.IPPROTO_UDP, udpTo(1000, 2000, "hello")))
	in, out := openWire(t, p.NS, "eth0"), openWire(t, n.NS, "zl-default")
	for _, s := range frames {
		in.send(t, s.frame)
	}
	in.send(t, reserved)
	before, counted := n.counters(t, nil)
	// The pod's kernel may have had something to say by itself, as of its groups.
	if want := uint64(len(frames)) + 1; len(counted) != 1 || counted[CounterUnpinned] < want {
		t.Errorf("counted %v, want %d %s and nothing else", counted, want, CounterUnpinned)
	}
	mustPin(t, n.firewall, p.pin)
	good := ether(mac(bridgeMAC), p.pin.MAC, unix.ETH_P_IP, packet4(ipPod, "192.0.2.9", unix.IPPROTO_UDP, udpTo(1, 1, "pinned")))
	in.send(t, good)
	if seen := out.until(t, func(frame []byte) bool { return bytes.Equal(frame, good) }); len(seen) > 1 {
		t.Errorf("%d frames passed before the pin: %x", len(seen)-1, seen)
	}
	if _, counted := n.counters(t, before); len(counted) > 0 {
		t.Errorf("pinned, and counted %v", counted)
	}
}

// The same frames on a bridge that isn't ours.
func TestForeignBridgesAreLeftAlone(t *testing.T) {
	n := newNode(t)
	n.setBridgeNetfilter(t, bridgeNetfilter()[0]) // off: it drops what is malformed
	ours, foreign := n.addPod(t, "zl-default", 3), n.addPod(t, "foreign", 2)
	rules := testRules()
	rules.Pins = []Pin{ours.pin}
	mustApply(t, n.firewall, rules, true)
	// What the node then does with packets from there is its own affair: our inet
	// rules see a pod's address come from elsewhere.
	run(t, n.NS, "nft delete table inet zlayer")
	sendAll(t, n, foreign, "foreign", sendings(foreignMAC), func(t *testing.T, s sending, arrived bool, counted map[string]uint64) {
		if !arrived {
			t.Errorf("%s: it didn't arrive", s.name)
		}
		if len(counted) > 0 {
			t.Errorf("%s: counted %v", s.name, counted)
		}
	})
}
