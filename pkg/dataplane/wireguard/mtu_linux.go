package wireguard

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TunnelMTU returns the largest MTU with which a packet fits the underlay on the
// way to every one of endpoints: that of the route to it, or of the route's link,
// less 60 bytes for an IPv4 endpoint and 80 for an IPv6 one; the smallest counts.
// Endpoints without a route do not count, nor do addresses of this machine,
// which no underlay leads to. If none counts, it goes by the default routes, and
// without those it is 1420. It is never below [MinMTU], with which
// the underlay may have to fragment.
//
// It asks the kernel once per endpoint, which takes some 15 us.
func TunnelMTU(endpoints []netip.Addr) (int, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, fmt.Errorf("find MTU: open netlink: %w", err)
	}
	defer nl.Close()
	links := map[int]int{} // MTU by index
	return tunnelMTU(endpoints, func(endpoint netip.Addr) (int, error) { return underlayMTU(nl, endpoint, links) })
}

// underlayMTU returns 0 if no route leads from this machine to endpoint.
func underlayMTU(nl *netlink.Handle, endpoint netip.Addr, links map[int]int) (int, error) {
	if !endpoint.IsValid() {
		return 0, nil
	}
	routes, err := nl.RouteGet(net.IP(endpoint.AsSlice()))
	if err != nil || len(routes) == 0 { // the kernel says "unreachable" in several ways
		return 0, nil
	}
	if routes[0].Type == unix.RTN_LOCAL { // by loopback, whose MTU is nobody else's
		return 0, nil
	}
	index := routes[0].LinkIndex
	if links[index] == 0 {
		link, err := nl.LinkByIndex(index)
		if err != nil {
			return 0, fmt.Errorf("find MTU: look at the link to %v: %w", endpoint, err)
		}
		links[index] = link.Attrs().MTU
	}
	if routes[0].MTU > 0 {
		return min(routes[0].MTU, links[index]), nil
	}
	return links[index], nil
}

func setMTU(nl *netlink.Handle, link netlink.Link, mtu int) error {
	if err := nl.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set MTU %d of %s: %w", mtu, link.Attrs().Name, err)
	}
	return nil
}
