package wireguard

import "net/netip"

const (
	// overheadIPv4 is what WireGuard adds to a packet: an outer IPv4 header of
	// 20 bytes, UDP's 8, its own 16, and a tag of 16.
	overheadIPv4 = 60
	// overheadIPv6 has an outer header of 40 bytes.
	overheadIPv6 = 80
)

// tunnelMTU is TunnelMTU, with underlay telling the MTU of the way to an address,
// 0 if there is none.
func tunnelMTU(endpoints []netip.Addr, underlay func(netip.Addr) (int, error)) (int, error) {
	least := 0
	for _, endpoint := range endpoints {
		mtu, err := underlay(endpoint.Unmap())
		if err != nil {
			return 0, err
		}
		least = smallest(least, mtu, endpoint.Unmap())
	}
	if least == 0 {
		// Addresses that only default routes lead to, since RFC 7526 and RFC 6666
		// keep them from being anybody's. Nothing is sent to them.
		for _, anywhere := range []netip.Addr{netip.AddrFrom4([4]byte{192, 88, 99, 1}), netip.MustParseAddr("100::1")} {
			mtu, err := underlay(anywhere)
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
