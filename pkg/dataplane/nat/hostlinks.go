package nat

import (
	"net/netip"
	"slices"
)

// hostLink is an interface of this node, on a system where interfaces have no kinds
// as Linux' links have.
type hostLink struct {
	up       bool
	inward   bool // loopback and tunnels
	hardware bool // a network card, by the word of its driver
	gateway  bool // a default route leaves by it
	addrs    []hostAddr
}

// hostAddr is an address of a link.
type hostAddr struct {
	addr netip.Addr
	// unusable says that it is tentative, a duplicate, deprecated, or a temporary one of IPv6 privacy.
	unusable bool
}

// linkAddrs are the addresses at which another node could reach this one, sorted:
// those of network cards, and of others, as are switches for containers and machines,
// only where a default route leaves by them. Nothing within overlay counts.
func linkAddrs(links []hostLink, overlay []netip.Prefix) []netip.Addr {
	var addrs []netip.Addr
	for _, link := range links {
		if !link.up || link.inward || !link.hardware && !link.gateway {
			continue
		}
		for _, on := range link.addrs {
			inside := slices.ContainsFunc(overlay, func(p netip.Prefix) bool { return p.Contains(on.addr) })
			if !on.unusable && !inside && unreachable(netip.AddrPortFrom(on.addr, 1)) == "" {
				addrs = append(addrs, on.addr)
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}
