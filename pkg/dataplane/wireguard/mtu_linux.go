package wireguard

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// overheadIPv4 is what WireGuard adds to a packet: an outer IPv4 header of
	// 20 bytes, UDP's 8, its own 16, and a tag of 16.
	overheadIPv4 = 60
	// overheadIPv6 has an outer header of 40 bytes.
	overheadIPv6 = 80
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
	least := 0
	for _, endpoint := range endpoints {
		mtu, err := underlayMTU(nl, endpoint.Unmap(), links)
		if err != nil {
			return 0, err
		}
		least = smallest(least, mtu, endpoint.Unmap())
	}
	if least == 0 {
		// Addresses that only default routes lead to, since RFC 7526 and RFC 6666
		// keep them from being anybody's. Nothing is sent to them.
		for _, anywhere := range []netip.Addr{netip.AddrFrom4([4]byte{192, 88, 99, 1}), netip.MustParseAddr("100::1")} {
			mtu, err := underlayMTU(nl, anywhere, links)
			if err != nil {
				return 0, err
			}
			least = smallest(least, mtu, anywhere)
		}
	}
	if least == 0 {
		return defaultMTU, nil
	}
	return min(max(least, MinMTU), maxMTU), nil
}

// smallest takes the lesser of two MTUs, of which 0 means none.
func smallest(least, underlay int, endpoint netip.Addr) int {
	if underlay == 0 {
		return least
	}
	inner := underlay - overheadIPv6
	if endpoint.Is4() {
		inner = underlay - overheadIPv4
	}
	if least == 0 {
		return max(inner, 1)
	}
	return min(least, max(inner, 1))
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
