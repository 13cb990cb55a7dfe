package attach

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// snapshot is what the kernel has of what could be ours.
type snapshot struct {
	links      map[int]rtnl.Link
	addrs      []rtnl.Addr
	rules      []rtnl.Rule          // with our mark
	routes     []rtnl.Route         // of our protocol, in the main table or ours, over a link of ours
	neighbours []rtnl.Neigh         // permanent, on a link of ours
	forwarding map[int][]rtnl.Neigh // static entries by port
}

// readLinks returns the links of the host.
func readLinks(slot *slot) (map[int]rtnl.Link, error) {
	slot.Link(rtnl.Request{What: "read links", Type: unix.RTM_GETLINK, Flags: unix.NLM_F_DUMP}, unix.IfInfomsg{})
	slot.Uint32(unix.IFLA_EXT_MASK, rtnl.SkipStats)
	list, err := rtnl.Dump(slot.Socket, &slot.Batch, rtnl.ParseLink)
	links := map[int]rtnl.Link{}
	for _, link := range list {
		links[link.Index] = link
	}
	return links, err
}

// readAddrs returns the addresses of the host's links.
func readAddrs(slot *slot) ([]rtnl.Addr, error) {
	slot.Addr(rtnl.Request{What: "read addresses", Type: unix.RTM_GETADDR, Flags: unix.NLM_F_DUMP}, unix.IfAddrmsg{})
	return rtnl.Dump(slot.Socket, &slot.Batch, rtnl.ParseAddr)
}

// readHost reads what stands around the bridges and ports given.
func readHost(slot *slot, bridges []segment, entries []entry) (snapshot, error) {
	have := snapshot{forwarding: map[int][]rtnl.Neigh{}}
	var err error
	if have.links, err = readLinks(slot); err != nil {
		return have, err
	}
	if have.addrs, err = readAddrs(slot); err != nil {
		return have, err
	}
	ours := map[int]bool{}
	for _, s := range bridges {
		ours[s.index] = true
	}
	for _, e := range entries {
		ours[e.PortIndex] = true
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := have.readFamily(slot, family, ours); err != nil && !noIPv6(err) {
			return have, err
		}
	}
	for _, bridge := range bridges {
		if err := have.readForwarding(slot, bridge); err != nil {
			return have, err
		}
	}
	return have, nil
}

// readRoutes returns the routes of a table that have what filter says. A table
// that was never written to may not exist yet.
func readRoutes(s *rtnl.Socket, b *rtnl.Batch, filter unix.RtMsg) ([]rtnl.Route, error) {
	b.Route(rtnl.Request{
		What: "read routes", Type: unix.RTM_GETROUTE, Flags: unix.NLM_F_DUMP, Tolerate: []unix.Errno{unix.ENOENT},
	}, filter)
	return rtnl.Dump(s, b, rtnl.ParseRoute)
}

// readRules returns the rules of one family that have our mark.
func readRules(slot *slot, family uint8) ([]rtnl.Rule, error) {
	slot.Rule(rtnl.Request{What: "read rules", Type: unix.RTM_GETRULE, Flags: unix.NLM_F_DUMP}, unix.RtMsg{Family: family})
	rules, err := rtnl.Dump(slot.Socket, &slot.Batch, rtnl.ParseRule)
	return slices.DeleteFunc(rules, func(r rtnl.Rule) bool { return !ourRule(r) }), err
}

// readFamily reads rules, routes and neighbours. The kernel sorts out foreign
// routes.
func (have *snapshot) readFamily(slot *slot, family uint8, ours map[int]bool) error {
	rules, err := readRules(slot, family)
	if err != nil {
		return err
	}
	have.rules = append(have.rules, rules...)
	for _, table := range []uint8{unix.RT_TABLE_MAIN, RouteTable} {
		routes, err := readRoutes(slot.Socket, &slot.Batch, unix.RtMsg{Family: family, Table: table, Protocol: RouteProtocol})
		if err != nil {
			return err
		}
		for _, route := range routes {
			if ours[route.Link] && route.Protocol == RouteProtocol && route.Table == int(table) {
				route.Flags &= unix.RTNH_F_ONLINK // the others tell how the link is
				have.routes = append(have.routes, route)
			}
		}
	}
	slot.Neigh(rtnl.Request{What: "read neighbours", Type: unix.RTM_GETNEIGH, Flags: unix.NLM_F_DUMP}, unix.NdMsg{Family: family})
	neighbours, err := rtnl.Dump(slot.Socket, &slot.Batch, rtnl.ParseNeigh)
	for _, neighbour := range neighbours {
		if ours[neighbour.Link] && neighbour.State == unix.NUD_PERMANENT {
			have.neighbours = append(have.neighbours, neighbour)
		}
	}
	return err
}

// readForwarding reads a bridge's entries that were set, not learned, and are
// not the bridge's own.
func (have *snapshot) readForwarding(slot *slot, bridge segment) error {
	slot.Neigh(rtnl.Request{
		What: "read forwarding entries", Type: unix.RTM_GETNEIGH, Flags: unix.NLM_F_DUMP,
	}, unix.NdMsg{Family: unix.AF_BRIDGE})
	slot.Uint32(unix.NDA_MASTER, uint32(bridge.index))
	entries, err := rtnl.Dump(slot.Socket, &slot.Batch, rtnl.ParseNeigh)
	for _, entry := range entries {
		if entry.Master == bridge.index && entry.State == unix.NUD_NOARP {
			have.forwarding[entry.Link] = append(have.forwarding[entry.Link], entry)
		}
	}
	return err
}

// hasAddr tells whether a link has an address, as it stands there.
func (have *snapshot) hasAddr(link int, prefix netip.Prefix) bool {
	return slices.ContainsFunc(have.addrs, func(a rtnl.Addr) bool { return a.Link == link && a.Prefix == prefix })
}

// onLink returns those of the wanted addresses that some link has.
func onLink(wanted []netip.Addr, addrs []rtnl.Addr) []netip.Addr {
	found := []netip.Addr{}
	for _, source := range wanted {
		if slices.ContainsFunc(addrs, func(a rtnl.Addr) bool { return a.Prefix.Addr() == source }) {
			found = append(found, source)
		}
	}
	return found
}
