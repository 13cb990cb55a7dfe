package nat

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

// HostAddrs returns the addresses at which another node could reach this one,
// sorted: those of network cards, and of other adapters only where a default route
// leaves by them, but never of tunnels. Nothing within overlay counts, and no address
// that is not global, tentative, deprecated or temporary.
func HostAddrs(overlay []netip.Prefix) ([]netip.Addr, error) {
	links, err := hostLinks()
	if err != nil {
		return nil, fmt.Errorf("list addresses of this node: %w", err)
	}
	return linkAddrs(links, overlay), nil
}

func hostLinks() ([]hostLink, error) {
	const flags = winipcfg.GAAFlagSkipAnycast | winipcfg.GAAFlagSkipMulticast | winipcfg.GAAFlagSkipDNSServer | winipcfg.GAAFlagIncludeGateways
	adapters, err := winipcfg.GetAdaptersAddresses(winipcfg.AddressFamily(windows.AF_UNSPEC), flags)
	if err != nil {
		return nil, err
	}
	var links []hostLink
	for _, adapter := range adapters {
		row, err := adapter.LUID.Interface()
		if err != nil {
			continue // it went meanwhile
		}
		link := hostLink{
			up:       adapter.OperStatus == winipcfg.IfOperStatusUp,
			inward:   slices.Contains([]winipcfg.IfType{winipcfg.IfTypeSoftwareLoopback, winipcfg.IfTypeTunnel, winipcfg.IfTypePropVirtual}, adapter.IfType),
			hardware: row.InterfaceAndOperStatusFlags&winipcfg.IAOSFHardwareInterface != 0,
			gateway:  adapter.FirstGatewayAddress != nil,
		}
		for on := adapter.FirstUnicastAddress; on != nil; on = on.Next {
			if addr, ok := netip.AddrFromSlice(on.Address.IP()); ok {
				temporary := addr.Is6() && on.SuffixOrigin == windows.IpSuffixOriginRandom
				link.addrs = append(link.addrs, hostAddr{addr: addr, unusable: temporary || on.DadState != windows.IpDadStatePreferred})
			}
		}
		links = append(links, link)
	}
	return links, nil
}

// WatchNetwork calls changed when addresses or routes of this node may not be what
// they were: some second after the change, one call at a time, and first when it
// begins to watch, so that nothing is missed between what its caller read before and
// then. It returns nil when ctx ends.
func WatchNetwork(ctx context.Context, changed func()) error {
	events := make(chan struct{}, 1)
	signal := func() {
		select {
		case events <- struct{}{}:
		default:
		}
	}
	addresses, err := winipcfg.RegisterUnicastAddressChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibUnicastIPAddressRow) { signal() })
	if err != nil {
		return fmt.Errorf("watch the network of this node: %w", err)
	}
	defer func() { _ = addresses.Unregister() }()
	routes, err := winipcfg.RegisterRouteChangeCallback(func(_ winipcfg.MibNotificationType, route *winipcfg.MibIPforwardRow2) {
		if route.DestinationPrefix.PrefixLength == 0 {
			signal()
		}
	})
	if err != nil {
		return fmt.Errorf("watch the network of this node: %w", err)
	}
	defer func() { _ = routes.Unregister() }()
	changed()
	for waitFor(ctx, events) {
		changed()
	}
	return nil
}
