package dns

import (
	"cmp"
	"fmt"
	"net/netip"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

// systemUpstreams are the servers that the host asks: Windows keeps them by
// interface, and in no file, so that root is not looked at.
func systemUpstreams(string) ([]netip.AddrPort, error) {
	const flags = winipcfg.GAAFlagSkipUnicast | winipcfg.GAAFlagSkipAnycast | winipcfg.GAAFlagSkipMulticast | winipcfg.GAAFlagSkipFriendlyName
	adapters, err := winipcfg.GetAdaptersAddresses(winipcfg.AddressFamily(windows.AF_UNSPEC), flags)
	if err != nil {
		return nil, fmt.Errorf("list the adapters' name servers: %w", err)
	}
	var links []hostLink
	for _, adapter := range adapters {
		link := hostLink{
			up:    adapter.OperStatus == winipcfg.IfOperStatusUp && adapter.IfType != winipcfg.IfTypeSoftwareLoopback,
			index: int(adapter.IPv6IfIndex), metric: cmp.Or(adapter.Ipv4Metric, adapter.Ipv6Metric),
		}
		for server := adapter.FirstDNSServerAddress; server != nil; server = server.Next {
			if addr, ok := netip.AddrFromSlice(server.Address.IP()); ok {
				link.servers = append(link.servers, addr)
			}
		}
		links = append(links, link)
	}
	return linkServers(links), nil
}

// upstreamsPlace is where they are, for messages.
func upstreamsPlace(string) string { return "any adapter's settings" }
