package nat

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumpTries bounds how often a listing is read again that changed under way.
const dumpTries = 10

// HostAddrs returns the addresses of this network namespace at which another
// node could reach it, sorted. Which link an address is on decides, by the link's
// kind and never by its name:
//
//   - Network cards and what is made of them (bond, team, vlan, ...) count.
//   - Tunnels and links that lead nowhere (WireGuard, tun, ipip, gre, vxlan, dummy,
//     ...) never count.
//   - Links to containers and bridges (veth, macvlan, bridge, ...), and kinds that
//     this package does not know, count only if a default route of the main table
//     leaves by them. Else what is behind them is on this node. Where one does, the node
//     is itself a container, or its network card is a port of that bridge.
//
// The link must be up. Nothing within overlay counts, and no address that is
// not global, still tentative, deprecated, or a temporary one of IPv6 privacy, which
// a stable one stands beside.
func HostAddrs(overlay []netip.Prefix) ([]netip.Addr, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("list addresses of this node: open netlink: %w", err)
	}
	defer nl.Close()
	state, err := readNetwork(nl)
	if err != nil {
		return nil, fmt.Errorf("list addresses of this node: %w", err)
	}
	var addrs []netip.Addr // as sorted as state.addrs
	for _, on := range state.addrs {
		if !slices.ContainsFunc(overlay, func(p netip.Prefix) bool { return p.Contains(on.addr) }) {
			addrs = append(addrs, on.addr)
		}
	}
	return slices.Compact(addrs), nil
}

// netState is how this node is reached, and what it sends by.
type netState struct {
	addrs    []linkAddr
	defaults []defaultRoute
}

// linkAddr is an address and the link that it is on.
type linkAddr struct {
	link int
	addr netip.Addr
}

// defaultRoute is one next hop of a default route in the main table.
type defaultRoute struct {
	ipv6    bool
	link    int
	gateway netip.Addr
	metric  int
}

// equal compares what readNetwork sorted.
func (n netState) equal(other netState) bool {
	return slices.Equal(n.addrs, other.addrs) && slices.Equal(n.defaults, other.defaults)
}

// readNetwork reads addresses and default routes, and sorts them.
func readNetwork(nl *netlink.Handle) (netState, error) {
	links, err := listAgain(nl.LinkList)
	if err != nil {
		return netState{}, fmt.Errorf("list links: %w", err)
	}
	defaults, err := defaultRoutes(nl)
	if err != nil {
		return netState{}, err
	}
	outward := map[int]bool{} // links whose addresses count
	for _, link := range links {
		leaves := func(r defaultRoute) bool { return r.link == link.Attrs().Index }
		outward[link.Attrs().Index] = isUp(link) && leadsOut(link, slices.ContainsFunc(defaults, leaves))
	}
	all, err := listAgain(func() ([]netlink.Addr, error) { return nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return netState{}, fmt.Errorf("list addresses: %w", err)
	}
	state := netState{defaults: defaults}
	for _, a := range all {
		if addr, ok := usableAddr(a); ok && outward[a.LinkIndex] {
			state.addrs = append(state.addrs, linkAddr{link: a.LinkIndex, addr: addr})
		}
	}
	slices.SortFunc(state.addrs, func(a, b linkAddr) int { return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.link, b.link)) })
	slices.SortFunc(state.defaults, func(a, b defaultRoute) int {
		return cmp.Or(cmp.Compare(a.link, b.link), a.gateway.Compare(b.gateway), cmp.Compare(a.metric, b.metric))
	})
	return state, nil
}

// isUp holds for links that tell nothing of their carrier, too.
func isUp(link netlink.Link) bool {
	attrs := link.Attrs()
	return attrs.Flags&net.FlagUp != 0 && (attrs.OperState == netlink.OperUp || attrs.OperState == netlink.OperUnknown)
}

// leadsOut judges a link by its kind, and by whether a default route leaves by it.
func leadsOut(link netlink.Link, isDefault bool) bool {
	if link.Attrs().Flags&net.FlagLoopback != 0 {
		return false
	}
	switch link.Type() {
	case "device", // has no kind: a network card
		"bond", "team", "vlan", "macsec", "ppp", "ipoib", "hsr", "wwan", "rmnet":
		return true
	case "wireguard", "tuntap", "ovpn", "ipip", "sit", "ip6tnl", "gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ip6erspan", "vti", "vti6", "xfrm",
		"vxlan", "geneve", "bareudp", "gtp", "amt", "dummy", "ifb", "nlmon", "vrf":
		return false
	}
	return isDefault
}

// usableAddr returns an address that others may know.
func usableAddr(a netlink.Addr) (netip.Addr, bool) {
	addr, ok := netip.AddrFromSlice(a.IP)
	addr = addr.Unmap()
	if !ok || a.Scope != unix.RT_SCOPE_UNIVERSE || unreachable(netip.AddrPortFrom(addr, 1)) != "" {
		return netip.Addr{}, false
	}
	unusable := unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED
	if addr.Is6() {
		unusable |= unix.IFA_F_TEMPORARY // in IPv4 this bit says "secondary", which does not matter
	}
	return addr, a.Flags&unusable == 0
}

// defaultRoutes returns those of the main table that lead somewhere.
func defaultRoutes(nl *netlink.Handle) ([]defaultRoute, error) {
	var found []defaultRoute
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
		routes, err := listAgain(func() ([]netlink.Route, error) {
			return nl.RouteListFiltered(family, filter, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
		})
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) { // no IPv6 in this kernel
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list default routes: %w", err)
		}
		for i := range routes {
			found = append(found, nextHops(&routes[i], family == netlink.FAMILY_V6)...)
		}
	}
	return found, nil
}

func nextHops(route *netlink.Route, ipv6 bool) []defaultRoute {
	if route.Type != unix.RTN_UNICAST {
		return nil
	}
	hop := func(link int, gateway net.IP) defaultRoute {
		addr, _ := netip.AddrFromSlice(gateway)
		return defaultRoute{ipv6: ipv6, link: link, gateway: addr.Unmap(), metric: route.Priority}
	}
	if len(route.MultiPath) == 0 {
		return []defaultRoute{hop(route.LinkIndex, route.Gw)}
	}
	var hops []defaultRoute
	for _, one := range route.MultiPath {
		hops = append(hops, hop(one.LinkIndex, one.Gw))
	}
	return hops
}

// listAgain repeats a listing that the kernel says was changed while it was read.
func listAgain[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		items, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == dumpTries {
			return items, err
		}
	}
}
