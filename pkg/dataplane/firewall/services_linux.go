package firewall

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Sets of the inet table that are there while the node hosts services.
const (
	// WireGuard devices of services.
	setDevices = "devices"
	// Links that lead to nothing but their service: devices, and bridges of
	// isolated services.
	setClosed = "closed"
	// Links of a service, each with the service's blocks on this node (near) and
	// on others (far).
	setNear4, setNear6 = "near4", "near6"
	setFar4, setFar6   = "far4", "far6"
	// Blocks of all services, and of those that are isolated.
	setServices4, setServices6 = "services4", "services6"
	setIsolated4, setIsolated6 = "isolated4", "isolated6"
	// Messages between neighbours on a link.
	setNeighbourly = "neighbourly"
)

// Chains of the inet table that are there while the node hosts services; the
// first five have hooks.
const (
	chainServicePrerouting  = "service_prerouting"
	chainServiceForward     = "service_forward"
	chainServiceInput       = "service_input"
	chainServiceOutput      = "service_output"
	chainServicePostrouting = "service_postrouting"
	chainFromDevice         = "from_device"
	chainFromService        = "from_service"
	chainFromClosed         = "from_closed"
	chainToService          = "to_service"
	chainByDevice           = "by_device"
	chainToNode             = "to_node"
	chainToDevice           = "to_device"
)

func serviceSets(services []Service) []set {
	var devices, closed []string
	var blocks, isolated []netip.Prefix
	var near4, near6, far4, far6 []element
	for _, s := range services {
		devices, closed = append(devices, s.Device), append(closed, s.Device)
		blocks = append(append(blocks, s.Own...), s.Remote...)
		if s.Isolated {
			closed = append(closed, s.Bridge)
			isolated = append(append(isolated, s.Own...), s.Remote...)
		}
		for _, link := range []string{s.Bridge, s.Device} {
			near4, near6 = append(near4, ranges(link, s.Own, true)...), append(near6, ranges(link, s.Own, false)...)
			far4, far6 = append(far4, ranges(link, s.Remote, true)...), append(far6, ranges(link, s.Remote, false)...)
		}
	}
	key4 := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)
	key6 := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr)
	sets := []set{
		{name: setDevices, key: nftables.TypeIFName, elements: linkNames(devices)},
		{name: setClosed, key: nftables.TypeIFName, elements: linkNames(closed)},
		{name: setNear4, key: key4, ranges: true, elements: near4},
		{name: setNear6, key: key6, ranges: true, elements: near6},
		{name: setFar4, key: key4, ranges: true, elements: far4},
		{name: setFar6, key: key6, ranges: true, elements: far6},
		messageSet(setNeighbourly, listenerReport, listenerDone, routerSolicit, neighbourSolicit, neighbourAdvertise, listenerReportVersion2),
	}
	sets = append(sets, prefixSets(setServices4, setServices6, blocks)...)
	return append(sets, prefixSets(setIsolated4, setIsolated6, isolated)...)
}

func serviceChains() []chain {
	return []chain{
		servicePrerouting(), fromDevice(), fromService(),
		serviceForward(), fromClosed(), toService(), byDevice(),
		serviceInput(), toNode(), serviceOutput(),
		servicePostrouting(), toDevice(),
	}
}

// servicePrerouting sees packets whose sources the chain prerouting let pass.
func servicePrerouting() chain {
	return chain{
		name: chainServicePrerouting,
		hook: &hook{nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRef(*nftables.ChainPriorityRaw + 1)},
		rules: []rule{
			when(fromLink(), in(setDevices), follow(chainFromDevice)),
			when(ip4(), source4(), in(setServices4), follow(chainFromService)),
			when(ip6(), source6(), in(setServices6), follow(chainFromService)),
		},
	}
}

// fromDevice takes what the service's other nodes send to its pods here, by their
// own addresses.
func fromDevice() chain {
	return chain{name: chainFromDevice, rules: []rule{
		when(ip4(), linkWith(fromLink(), source4()), in(setFar4), linkWith(fromLink(), destination4()), in(setNear4), accept()),
		when(ip6(), linkWith(fromLink(), source6()), in(setFar6), linkWith(fromLink(), destination6()), in(setNear6), accept()),
		when(ip6(), toNeighbours(), accept()),
		when(drop(CounterIsolated)),
	}}
}

// fromService is for sources out of a service's blocks that came by no device.
// Those of this node belong behind the service's bridge. Those of others may come
// by the cluster's device, if the service isn't isolated: it carries what they
// have to say to all but their service.
func fromService() chain {
	return chain{name: chainFromService, rules: []rule{
		when(ip4(), linkWith(fromLink(), source4()), in(setNear4), accept()),
		when(ip6(), linkWith(fromLink(), source6()), in(setNear6), accept()),
		when(ip4(), source4(), in(setOwn4), drop(CounterIsolated)),
		when(ip6(), source6(), in(setOwn6), drop(CounterIsolated)),
		when(ip4(), source4(), in(setIsolated4), drop(CounterIsolated)),
		when(ip6(), source6(), in(setIsolated6), drop(CounterIsolated)),
	}}
}

func serviceForward() chain {
	return chain{
		name: chainServiceForward,
		hook: &hook{nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter},
		rules: []rule{
			when(fromLink(), in(setClosed), follow(chainFromClosed)),
			when(ip4(), destination4(), in(setServices4), follow(chainToService)),
			when(ip6(), destination6(), in(setServices6), follow(chainToService)),
			when(toLink(), in(setClosed), drop(CounterIsolated)),
		},
	}
}

// fromClosed is for what comes by a link that leads to its service only, even if
// somebody's Service translates the address of one of its pods.
func fromClosed() chain {
	return chain{name: chainFromClosed, rules: append(withinService(), when(drop(CounterIsolated)))}
}

// toService is for packets to services, from wherever else. What one of its other
// nodes sends has come by its device, or else it would leave by the service's
// bridge with a source of another node.
func toService() chain {
	return chain{name: chainToService, rules: append(withinService(),
		when(ip4(), destination4(), in(setIsolated4), drop(CounterIsolated)),
		when(ip6(), destination6(), in(setIsolated6), drop(CounterIsolated)),
		when(ip4(), linkWith(toLink(), source4()), in(setFar4), drop(CounterIsolated)),
		when(ip6(), linkWith(toLink(), source6()), in(setFar6), drop(CounterIsolated)),
		when(toLink(), in(setClosed), drop(CounterIsolated)),
	)}
}

// withinService are the rules for packets from a service's link to the service.
func withinService() []rule {
	return []rule{
		when(ip4(), linkWith(fromLink(), destination4()), in(setNear4), accept()),
		when(ip6(), linkWith(fromLink(), destination6()), in(setNear6), accept()),
		when(ip4(), linkWith(fromLink(), destination4()), in(setFar4), follow(chainByDevice)),
		when(ip6(), linkWith(fromLink(), destination6()), in(setFar6), follow(chainByDevice)),
	}
}

// byDevice lets packets for the service's other nodes leave by its device only.
// They could leave by its bridge as well here; the chain to_bridge refuses that.
func byDevice() chain {
	return chain{name: chainByDevice, rules: []rule{
		when(ip4(), linkWith(toLink(), destination4()), in(setFar4), accept()),
		when(ip6(), linkWith(toLink(), destination6()), in(setFar6), accept()),
		when(drop(CounterIsolated)),
	}}
}

func serviceInput() chain {
	return chain{
		name:  chainServiceInput,
		hook:  &hook{nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter},
		rules: []rule{when(fromLink(), in(setClosed), follow(chainToNode))},
	}
}

// toNode takes answers to what the node began, as kubelet's probes, and what
// neighbours on a link have to tell each other.
func toNode() chain {
	return chain{name: chainToNode, rules: []rule{
		when(reply(), accept()),
		when(carries(unix.IPPROTO_ICMPV6), messageType(), in(setNeighbourly), accept()),
		when(drop(CounterIsolated)),
	}}
}

// serviceOutput keeps the node's own processes off the devices: any of them may
// bind to a link, and has the service's own address there.
func serviceOutput() chain {
	return chain{
		name: chainServiceOutput,
		hook: &hook{nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter},
		rules: []rule{
			when(ip6(), toNeighbours(), accept()),
			when(toLink(), in(setDevices), drop(CounterIsolated)),
		},
	}
}

// servicePostrouting also sees what the node itself sends: to an isolated
// service's pods on this node only.
func servicePostrouting() chain {
	return chain{
		name: chainServicePostrouting,
		hook: &hook{nftables.ChainTypeFilter, nftables.ChainHookPostrouting, nftables.ChainPriorityRef(*nftables.ChainPriorityFilter + 1)},
		rules: []rule{
			when(toLink(), in(setDevices), follow(chainToDevice)),
			when(ip4(), destination4(), in(setIsolated4), destination4(), notIn(setOwn4), drop(CounterIsolated)),
			when(ip6(), destination6(), in(setIsolated6), destination6(), notIn(setOwn6), drop(CounterIsolated)),
		},
	}
}

// toDevice lets out what a service's pods here send; to where has been seen in
// service_forward.
func toDevice() chain {
	return chain{name: chainToDevice, rules: []rule{
		when(ip4(), linkWith(toLink(), source4()), in(setNear4), accept()),
		when(ip6(), linkWith(toLink(), source6()), in(setNear6), accept()),
		when(ip6(), toNeighbours(), accept()),
		when(drop(CounterIsolated)),
	}}
}

// toNeighbours is true of packets to groups of the link, which are not forwarded:
// what IPv6 sends when a link comes up.
func toNeighbours() parts {
	group, mask := make([]byte, 16), make([]byte, 16)
	group[0], group[1], mask[0], mask[1] = 0xff, 0x02, 0xff, 0xff
	return slices.Concat(destination6(), masked(mask...), is(group...))
}
