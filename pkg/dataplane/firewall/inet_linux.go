package firewall

import (
	"net/netip"

	"github.com/google/nftables"
)

// Sets of the inet table. Own and cluster slices come in a set per family.
const (
	setBridges, setTunnels = "bridges", "tunnels"
	setOwn4, setOwn6       = "own4", "own6"
	// The cluster holds our own slices too.
	setCluster4, setCluster6 = "cluster4", "cluster6"
	// Destinations that are not masqueraded.
	setDirect4, setDirect6 = "direct4", "direct6"
	// Addresses of guests, single ones out of our own slices.
	setGuests4, setGuests6 = "guests4", "guests6"
	// Ports of pods, by index. In both tables.
	setPorts = "ports"
)

// Chains of the inet table; the first three have hooks.
const (
	chainPrerouting  = "prerouting"
	chainPostrouting = "postrouting"
	chainSourceNAT   = "source_nat"
	chainFromBridge  = "from_bridge"
	chainFromTunnel  = "from_tunnel"
	chainToBridge    = "to_bridge"
	chainToTunnel    = "to_tunnel"
)

const (
	icmpRedirect   = 5   // RFC 792
	icmpv6Redirect = 137 // RFC 4861
)

func inetTable(name string, r Rules, p pinned) table {
	t := table{
		family:   nftables.TableFamilyINet,
		name:     name,
		counters: []string{CounterFailClosed, CounterIsolated, CounterRedirects, CounterSpoofed, CounterUnpinned},
		sets: []set{
			{name: setBridges, key: nftables.TypeIFName, elements: linkNames(r.bridges())},
			{name: setTunnels, key: nftables.TypeIFName, elements: linkNames(r.tunnels())},
			portSet(p),
			{name: setGuests4, key: nftables.TypeIPAddr, elements: addresses(r.Guests, true)},
			{name: setGuests6, key: nftables.TypeIP6Addr, elements: addresses(r.Guests, false)},
		},
		chains: []chain{prerouting(r.PortGroup), fromBridge(), fromTunnel(), postrouting(), toBridge(), toTunnel()},
	}
	cluster := append(append([]netip.Prefix{}, r.Cluster...), r.Own...)
	t.sets = append(t.sets, prefixSets(setOwn4, setOwn6, r.Own)...)
	t.sets = append(t.sets, prefixSets(setCluster4, setCluster6, cluster)...)
	if r.Masquerade {
		t.sets = append(t.sets, prefixSets(setDirect4, setDirect6, r.NoMasquerade)...)
		t.chains = append(t.chains, sourceNAT())
	}
	if len(r.Services) > 0 {
		t.sets = append(t.sets, serviceSets(r.Services)...)
		t.chains = append(t.chains, serviceChains()...)
	}
	return t
}

func prefixSets(name4, name6 string, prefixes []netip.Prefix) []set {
	return []set{
		{name: name4, key: nftables.TypeIPAddr, interval: true, elements: intervals(prefixes, true)},
		{name: name6, key: nftables.TypeIP6Addr, interval: true, elements: intervals(prefixes, false)},
	}
}

// prerouting refuses sources that cannot come from where the packet came in.
func prerouting(ports uint32) chain {
	return chain{
		name: chainPrerouting,
		hook: &hook{nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw},
		rules: []rule{
			when(fromLink(), link("lo"), accept()),
			when(fromLink(), in(setBridges), follow(chainFromBridge)),
			when(fromLink(), in(setTunnels), follow(chainFromTunnel)),
			// What a pod sends arrives by its bridge, except frames to the group
			// addresses that IEEE 802.1D reserves: these the kernel hands up from the
			// port itself, past the bridge and past every bridge rule.
			when(fromIndex(), in(setPorts), drop(CounterSpoofed)),
			when(ourPort(ports), drop(CounterUnpinned)),
			when(ip4(), source4(), in(setCluster4), drop(CounterSpoofed)),
			when(ip6(), source6(), in(setCluster6), drop(CounterSpoofed)),
		},
	}
}

// fromBridge is the coarse half of source pinning; the fine one is the bridge
// table. Link-local and unspecified sources are IPv6's neighbour discovery.
func fromBridge() chain {
	return chain{name: chainFromBridge, rules: []rule{
		when(ip4(), source4(), in(setOwn4), accept()),
		when(ip6(), source6(), in(setOwn6), accept()),
		when(ip6(), source6(), masked(linkLocalMask()...), is(linkLocalPrefix()...), accept()),
		when(ip6(), source6(), is(make([]byte, 16)...), accept()),
		when(drop(CounterSpoofed)),
	}}
}

// linkLocalPrefix and linkLocalMask are fe80::/10.
func linkLocalPrefix() []byte { return append([]byte{0xfe, 0x80}, make([]byte, 14)...) }
func linkLocalMask() []byte   { return append([]byte{0xff, 0xc0}, make([]byte, 14)...) }

// fromTunnel refuses our own addresses: only our guests send from them.
func fromTunnel() chain {
	return chain{name: chainFromTunnel, rules: []rule{
		when(ip4(), source4(), in(setOwn4), source4(), notIn(setGuests4), drop(CounterSpoofed)),
		when(ip6(), source6(), in(setOwn6), source6(), notIn(setGuests6), drop(CounterSpoofed)),
	}}
}

// postrouting fails closed: packets for pods leave by tunnels, bridges and ports
// only. What one pod of this node sends to another is routed to the port itself,
// past the bridge.
func postrouting() chain {
	return chain{
		name: chainPostrouting,
		hook: &hook{nftables.ChainTypeFilter, nftables.ChainHookPostrouting, nftables.ChainPriorityFilter},
		rules: []rule{
			when(toLink(), link("lo"), accept()),
			when(toLink(), in(setBridges), follow(chainToBridge)),
			when(toIndex(), in(setPorts), follow(chainToBridge)),
			when(toLink(), in(setTunnels), follow(chainToTunnel)),
			when(ip4(), destination4(), in(setCluster4), drop(CounterFailClosed)),
			when(ip6(), destination6(), in(setCluster6), drop(CounterFailClosed)),
		},
	}
}

// toBridge lets pods of this node be reached, not those of others. It also keeps
// ICMP redirects from them: when a packet would leave by the bridge it came in by,
// the kernel tells its sender of a shorter way, and there is none.
func toBridge() chain {
	return chain{name: chainToBridge, rules: []rule{
		when(ip4(), icmpType(icmpRedirect), drop(CounterRedirects)),
		when(ip6(), icmpv6Type(icmpv6Redirect), drop(CounterRedirects)),
		when(ip4(), destination4(), in(setOwn4), accept()),
		when(ip6(), destination6(), in(setOwn6), accept()),
		when(ip4(), destination4(), in(setCluster4), drop(CounterFailClosed)),
		when(ip6(), destination6(), in(setCluster6), drop(CounterFailClosed)),
	}}
}

// toTunnel keeps packets for our own pods from leaving the node. Guests are behind
// the tunnel.
func toTunnel() chain {
	return chain{name: chainToTunnel, rules: []rule{
		when(ip4(), destination4(), in(setOwn4), destination4(), notIn(setGuests4), drop(CounterFailClosed)),
		when(ip6(), destination6(), in(setOwn6), destination6(), notIn(setGuests6), drop(CounterFailClosed)),
	}}
}

// sourceNAT gives what pods send out of the cluster an address of the
// node. The kernel asks it for the first packet of a connection only, so answers
// to connections from outside keep the pod's address until conntrack restores
// what the client knows: externalTrafficPolicy Local sees its clients.
func sourceNAT() chain {
	return chain{
		name: chainSourceNAT,
		hook: &hook{nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource},
		rules: []rule{
			when(toLink(), link("lo"), accept()),
			when(toLink(), in(setBridges), accept()),
			when(toIndex(), in(setPorts), accept()),
			when(toLink(), in(setTunnels), accept()),
			when(ip4(), source4(), in(setOwn4), destination4(), notIn(setCluster4), destination4(), notIn(setDirect4), masquerade()),
			when(ip6(), source6(), in(setOwn6), destination6(), notIn(setCluster6), destination6(), notIn(setDirect6), masquerade()),
		},
	}
}
