package wireguard

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

// TunnelMTU returns the largest MTU with which a packet fits the underlay on the
// way to every one of endpoints: that of the adapter by which it is reached, less 60
// bytes for an IPv4 endpoint and 80 for an IPv6 one; the smallest counts. Endpoints
// without a route do not count, nor do addresses of this machine, which no underlay
// leads to. If none counts, it goes by the default routes, and without those it is
// 1420. It is never below [MinMTU], with which the underlay may have to fragment.
func TunnelMTU(endpoints []netip.Addr) (int, error) {
	rows, err := winipcfg.GetUnicastIPAddressTable(familyAny)
	if err != nil {
		return 0, fmt.Errorf("find MTU: list own addresses: %w", err)
	}
	own := make(map[netip.Addr]bool, len(rows)) // to which Windows finds the way by the adapter that has them
	for i := range rows {
		own[rows[i].Address.Addr().WithZone("")] = true
	}
	return tunnelMTU(endpoints, func(endpoint netip.Addr) (int, error) {
		if own[endpoint.WithZone("")] {
			return 0, nil
		}
		return underlayMTU(endpoint)
	})
}

// underlayMTU returns 0 if no route leads from this machine to endpoint.
func underlayMTU(endpoint netip.Addr) (int, error) {
	var to windows.Sockaddr
	fam := familyIPv4
	switch {
	case !endpoint.IsValid():
		return 0, nil
	case endpoint.Is4():
		to = &windows.SockaddrInet4{Addr: endpoint.As4()}
	default:
		fam, to = familyIPv6, &windows.SockaddrInet6{Addr: endpoint.As16()}
	}
	var index uint32
	if err := windows.GetBestInterfaceEx(to, &index); err != nil { // Windows says "unreachable" in several ways
		return 0, nil
	}
	luid, err := winipcfg.LUIDFromIndex(index)
	if err != nil {
		return 0, fmt.Errorf("find MTU: look at the interface to %v: %w", endpoint, err)
	}
	if refusing, err := loopback(); err != nil || luid == refusing { // what refuses is no way either
		return 0, err
	}
	row, err := luid.IPInterface(fam)
	if err != nil {
		return 0, fmt.Errorf("find MTU: look at the interface to %v: %w", endpoint, err)
	}
	return int(row.NLMTU), nil
}
