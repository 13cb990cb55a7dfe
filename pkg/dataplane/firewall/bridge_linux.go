package firewall

import (
	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Sets of the bridge table, beside setPorts.
const (
	setSources4 = "sources4"
	setSources6 = "sources6"
	// What IPv6 may send before it has an address.
	setUnaddressed = "unaddressed"
)

// Chains of the bridge table, beside chainPrerouting.
const (
	chainPinned        = "pinned"
	chainPinned4       = "pinned_ip"
	chainPinned6       = "pinned_ip6"
	chainPinnedARP     = "pinned_arp"
	chainAdvertisement = "advertisement"
	chainUnaddressed   = "unaddressed"
)

// ICMPv6 message types (RFC 2710, 3810, 4861).
const (
	listenerReport         = 131
	listenerDone           = 132
	routerSolicit          = 133
	routerAdvertisement    = 134
	neighbourSolicit       = 135
	neighbourAdvertise     = 136
	listenerReportVersion2 = 143
)

func bridgeTable(name string, r Rules, p pinned) table {
	return table{
		family:   nftables.TableFamilyBridge,
		name:     name,
		counters: []string{CounterRefused, CounterRogue, CounterSpoofed, CounterUnpinned},
		sets:     append([]set{portSet(p), unaddressedSet()}, sourceSets(p)...),
		chains: []chain{
			bridgePrerouting(r.PortGroup), pinnedFrames(), pinned4(), pinned6(), pinnedARP(), advertisement(), unaddressed(),
		},
	}
}

// unaddressedSet lists the messages that IPv6 sends before it has an address.
func unaddressedSet() set {
	return messageSet(setUnaddressed, listenerReport, listenerDone, routerSolicit, neighbourSolicit, listenerReportVersion2)
}

// messageSet lists types of ICMPv6 messages.
func messageSet(name string, types ...byte) set {
	s := set{name: name, key: nftables.TypeICMP6Type}
	for _, t := range types {
		s.elements = append(s.elements, element{key: string([]byte{t})})
	}
	return s
}

// bridgePrerouting costs a frame of a foreign bridge a lookup and a comparison. A
// port has its group from birth, so there is no moment in which it could send
// without a pin, not even if its pin was forgotten.
func bridgePrerouting(ports uint32) chain {
	// nft's name "filter" means -200 in this family.
	return chain{
		name: chainPrerouting,
		hook: &hook{nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRef(-200)},
		rules: []rule{
			when(fromIndex(), in(setPorts), follow(chainPinned)),
			when(ourPort(ports), drop(CounterUnpinned)),
		},
	}
}

// pinnedFrames reads the type from the frame as it was sent: of a VLAN-tagged
// frame that is the tag's, while the kernel has already put the inner one into
// the packet's protocol, and would take a frame tagged with VLAN 0 for an
// untagged one.
func pinnedFrames() chain {
	return chain{name: chainPinned, rules: []rule{
		when(frameIs(unix.ETH_P_IP), follow(chainPinned4)),
		when(frameIs(unix.ETH_P_IPV6), follow(chainPinned6)),
		when(frameIs(unix.ETH_P_ARP), follow(chainPinnedARP)),
		when(drop(CounterRefused)),
	}}
}

func pinned4() chain {
	const dhcpServer, dhcpClient = 67, 68
	return chain{name: chainPinned4, rules: []rule{
		when(udp(dhcpServer, dhcpClient), drop(CounterRogue)),
		when(icmpType(icmpRedirect), drop(CounterRogue)),
		when(frameIs(unix.ETH_P_IP), portWith(frameSender(), source4()), in(setSources4), accept()),
		when(drop(CounterSpoofed)),
	}}
}

func pinned6() chain {
	const dhcpServer, dhcpClient = 547, 546
	return chain{name: chainPinned6, rules: []rule{
		when(udp(dhcpServer, dhcpClient), drop(CounterRogue)),
		when(icmpv6Type(routerAdvertisement), drop(CounterRogue)),
		when(icmpv6Type(icmpv6Redirect), drop(CounterRogue)),
		when(icmpv6Type(neighbourAdvertise), follow(chainAdvertisement)),
		when(frameIs(unix.ETH_P_IPV6), source6(), is(make([]byte, 16)...), follow(chainUnaddressed)),
		when(frameIs(unix.ETH_P_IPV6), portWith(frameSender(), source6()), in(setSources6), accept()),
		when(drop(CounterSpoofed)),
	}}
}

// pinnedARP holds the sender in the frame and the one in the message to the
// same pin.
func pinnedARP() chain {
	return chain{name: chainPinnedARP, rules: []rule{
		when(frameIs(unix.ETH_P_ARP),
			portWith(frameSender(), arpSenderAddr()), in(setSources4),
			portWith(arpSenderMAC(), arpSenderAddr()), in(setSources4), accept()),
		when(drop(CounterSpoofed)),
	}}
}

// advertisement holds what a pod says it owns to its pin, as pinnedARP does for
// IPv4.
func advertisement() chain {
	return chain{name: chainAdvertisement, rules: []rule{
		when(frameIs(unix.ETH_P_IPV6),
			portWith(frameSender(), source6()), in(setSources6),
			portWith(frameSender(), advertised()), in(setSources6), accept()),
		when(drop(CounterSpoofed)),
	}}
}

// unaddressed is for pods that have no address yet: duplicate address
// detection, and joining the groups it needs.
func unaddressed() chain {
	return chain{name: chainUnaddressed, rules: []rule{
		when(frameIs(unix.ETH_P_IPV6),
			portWith(frameSender(), source6()), in(setSources6),
			carries(unix.IPPROTO_ICMPV6), messageType(), in(setUnaddressed), accept()),
		when(drop(CounterSpoofed)),
	}}
}
