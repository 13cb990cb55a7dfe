package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
)

// hostLink is an interface of the host, on a system where each has servers of its
// own.
type hostLink struct {
	up      bool
	index   int    // of the interface, for link-local addresses
	metric  uint32 // the lowest is asked first
	servers []netip.Addr
}

// linkServers are the servers of the interfaces that are up, in the order in which
// the host asks them, each once. Windows gives interfaces without servers three
// site-local ones of an old draft, fec0:0:0:ffff::1 to 3, which nobody has.
func linkServers(links []hostLink) []netip.AddrPort {
	siteLocal := netip.MustParsePrefix("fec0::/10")
	links = slices.Clone(links)
	slices.SortStableFunc(links, func(a, b hostLink) int { return cmp.Compare(a.metric, b.metric) })
	var servers []netip.AddrPort
	for _, link := range links {
		if !link.up {
			continue
		}
		for _, addr := range link.servers {
			if addr.Is6() && addr.IsLinkLocalUnicast() && addr.Zone() == "" {
				addr = addr.WithZone(strconv.Itoa(link.index))
			}
			server, err := parseServer(addr.String())
			if at := netip.AddrPortFrom(server, upstreamPort); err == nil && !siteLocal.Contains(server.WithZone("")) && !slices.Contains(servers, at) {
				servers = append(servers, at)
			}
		}
	}
	return servers
}
