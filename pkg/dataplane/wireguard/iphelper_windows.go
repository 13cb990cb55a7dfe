package wireguard

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

// familyIPv4 and familyAny are Windows' numbers.
const (
	familyIPv4 = winipcfg.AddressFamily(windows.AF_INET)
	familyIPv6 = winipcfg.AddressFamily(windows.AF_INET6)
	familyAny  = winipcfg.AddressFamily(windows.AF_UNSPEC)
)

// windowsFamily is Windows' number of a family.
func windowsFamily(fam int) winipcfg.AddressFamily {
	return []winipcfg.AddressFamily{familyIPv4, familyIPv6}[fam]
}

// ensureInterfaces sets what each family has of the adapter: the MTU, forwarding,
// since pods' packets come from and go to other adapters, and nothing that Windows
// would do by itself on a link with routers and neighbours. Without IPv6 there is
// nothing to set.
func (d *Device) ensureInterfaces() error {
	for _, fam := range []winipcfg.AddressFamily{familyIPv4, familyIPv6} {
		row, err := d.luid.IPInterface(fam)
		if errors.Is(err, windows.ERROR_NOT_FOUND) && fam == familyIPv6 {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the IP interface of %s: %w", d.cfg.Name, err)
		}
		before := *row
		row.NLMTU = uint32(d.MTU())
		row.ForwardingEnabled = true
		row.WeakHostReceive, row.WeakHostSend = true, true // peers ask the node at addresses of its other adapters
		row.RouterDiscoveryBehavior = winipcfg.RouterDiscoveryDisabled
		row.DadTransmits = 0 // nobody else can have it, and a tentative address is no source
		row.ManagedAddressConfigurationSupported = false
		row.OtherStatefulConfigurationSupported = false
		if *row == before {
			continue
		}
		if err := row.Set(); err != nil {
			return fmt.Errorf("set MTU %d and forwarding of %s: %w", d.MTU(), d.cfg.Name, err)
		}
	}
	return nil
}

// ensureAddresses makes the adapter hold exactly the addresses of the
// configuration, and reports whether one was missing.
func (d *Device) ensureAddresses() (added bool, err error) {
	rows, err := winipcfg.GetUnicastIPAddressTable(familyAny)
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", d.cfg.Name, err)
	}
	var have []netip.Prefix
	for i := range rows {
		if rows[i].InterfaceLUID == d.luid {
			have = append(have, netip.PrefixFrom(rows[i].Address.Addr().WithZone(""), int(rows[i].OnLinkPrefixLength)))
		}
	}
	del, add := diffAddresses(have, d.cfg.Addresses)
	for _, prefix := range del {
		if err := d.luid.DeleteIPAddress(prefix); err != nil && !errors.Is(err, windows.ERROR_NOT_FOUND) {
			return false, fmt.Errorf("remove address %v of %s: %w", prefix, d.cfg.Name, err)
		}
	}
	for _, prefix := range add {
		if err := d.luid.AddIPAddress(prefix); err != nil {
			return added, fmt.Errorf("add address %v to %s: %w", prefix, d.cfg.Name, err)
		}
		added = true
	}
	return added, nil
}

// loopback returns the interface that refuses: what is routed to it and is no
// address of this machine goes nowhere.
func loopback() (winipcfg.LUID, error) {
	const index = 1 // on every Windows
	luid, err := winipcfg.LUIDFromIndex(index)
	if err != nil {
		return 0, fmt.Errorf("find the loopback interface: %w", err)
	}
	row, err := luid.Interface()
	switch {
	case err != nil:
		return 0, fmt.Errorf("look at the loopback interface: %w", err)
	case row.Type != winipcfg.IfTypeSoftwareLoopback:
		return 0, fmt.Errorf("interface %d is not the loopback interface but of type %d", index, row.Type)
	}
	return luid, nil
}

// routesOf returns the routes of ours by the adapter luid, and those that refuse.
func routesOf(luid winipcfg.LUID) ([]route, error) {
	refusing, err := loopback()
	if err != nil {
		return nil, err
	}
	rows, err := winipcfg.GetIPForwardTable2(familyAny)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var ours []route
	for i := range rows {
		row := &rows[i]
		is := route{dst: row.DestinationPrefix.Prefix(), metric: row.Metric, unreachable: row.InterfaceLUID == refusing}
		switch {
		case row.Protocol != winipcfg.RouteProtocolNetMgmt || !row.NextHop.Addr().IsUnspecified():
		case is.unreachable && is.metric == refuseMetric, !is.unreachable && row.InterfaceLUID == luid && is.metric == peerMetric:
			ours = append(ours, is)
		}
	}
	return ours, nil
}

// noAdapter is the LUID of none, for routes that refuse.
const noAdapter winipcfg.LUID = 0

// adapterTable is the routes by an adapter, and those that refuse.
type adapterTable winipcfg.LUID

func (t adapterTable) add(routes []route) error { return addRoutes(winipcfg.LUID(t), routes) }

func (t adapterTable) remove(routes []route) error { return removeRoutes(winipcfg.LUID(t), routes) }

// refusals returns the routes of ours that refuse.
func refusals() ([]route, error) { return routesOf(noAdapter) }

// removeRefusals removes the routes of ours that refuse.
func removeRefusals() error {
	found, err := refusals()
	if err != nil {
		return err
	}
	return removeRoutes(noAdapter, found)
}

// removeRoutes removes routes, of which the peers' are by the adapter luid. One
// that is gone already is fine.
func removeRoutes(luid winipcfg.LUID, routes []route) error {
	return eachRoute(luid, routes, func(by winipcfg.LUID, r route) error {
		err := by.DeleteRoute(r.dst, nowhere(r.dst))
		if err != nil && !errors.Is(err, windows.ERROR_NOT_FOUND) {
			return fmt.Errorf("remove route to %v: %w", r.dst, err)
		}
		return nil
	})
}

// addRoutes adds routes, of which the peers' are by the adapter luid.
func addRoutes(luid winipcfg.LUID, routes []route) error {
	return eachRoute(luid, routes, func(by winipcfg.LUID, r route) error {
		if err := by.AddRoute(r.dst, nowhere(r.dst), r.metric); err != nil {
			return fmt.Errorf("add route to %v: %w", r.dst, err)
		}
		return nil
	})
}

// eachRoute calls fn with every route and the interface that it is by. One that
// fails costs only itself.
func eachRoute(luid winipcfg.LUID, routes []route, fn func(winipcfg.LUID, route) error) error {
	if len(routes) == 0 {
		return nil
	}
	refusing, err := loopback()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range routes {
		by := luid
		if r.unreachable {
			by = refusing
		}
		errs = append(errs, fn(by, r))
	}
	return errors.Join(errs...)
}

// nowhere is the next hop of a route that is on the link.
func nowhere(dst netip.Prefix) netip.Addr {
	if dst.Addr().Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
