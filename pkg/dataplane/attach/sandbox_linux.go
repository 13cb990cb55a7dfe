package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// laterMetric is added to a link's number for the default route of a further
// interface of one sandbox: the first keeps the lead, but a program bound to
// the other, or left alone with it, has a way out.
const laterMetric = 2048

// addressSandbox gives the sandbox's half its addresses while it is down. IPv6
// leaves the rest of that to a worker, which is done by the time settle asks.
// Doing it again changes nothing.
func (w *work) addressSandbox(context.Context) error {
	b := &w.slot.Batch
	setUp(b, loopback)
	for _, addr := range w.Addrs {
		addAddress(b, w.inside, netip.PrefixFrom(addr, addr.BitLen()), unix.RT_SCOPE_UNIVERSE)
	}
	err := w.sandbox.Do(b, nil)
	if noIPv6(err) && slices.ContainsFunc(w.Addrs, netip.Addr.Is6) {
		err = fmt.Errorf("is IPv6 switched off there (net.ipv6.conf.%s.disable_ipv6)? %w", w.Key.IfName, err)
	}
	return inSandbox(err)
}

// raiseSandbox sets the sandbox's half up and gives it the way out. Doing it
// again changes nothing.
func (w *work) raiseSandbox(context.Context) error {
	b := &w.slot.Batch
	setUp(b, w.inside)
	gateways := gatewaysOf(w.Addrs)
	for _, gateway := range gateways {
		addDefault(b, w.inside, gateway, 0)
	}
	err := w.sandbox.Do(b, nil)
	if errors.Is(err, unix.EEXIST) {
		err = w.addLaterDefaults(gateways)
	}
	return inSandbox(err)
}

// addLaterDefaults adds the default routes where the sandbox has some already.
func (w *work) addLaterDefaults(gateways []netip.Addr) error {
	routes, err := readDefaults(w.sandbox)
	if err != nil {
		return err
	}
	for _, gateway := range gateways {
		if slices.ContainsFunc(routes, func(r rtnl.Route) bool { return r.Link == w.inside && r.Gateway == gateway }) {
			continue
		}
		metric := 0
		if slices.ContainsFunc(routes, func(r rtnl.Route) bool { return r.Dst.Addr().Is4() == gateway.Is4() }) {
			metric = laterMetric + w.inside
		}
		addDefault(&w.slot.Batch, w.inside, gateway, metric)
	}
	return w.sandbox.Do(&w.slot.Batch, nil)
}

// gatewaysOf returns one gateway for each family of addrs.
func gatewaysOf(addrs []netip.Addr) []netip.Addr {
	var gateways []netip.Addr
	for _, addr := range addrs {
		if gateway := Gateway(addr); !slices.Contains(gateways, gateway) {
			gateways = append(gateways, gateway)
		}
	}
	return gateways
}

// readDefaults returns the default routes of the main table.
func readDefaults(s *rtnl.Socket) ([]rtnl.Route, error) {
	var b rtnl.Batch
	var found []rtnl.Route
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		routes, err := readRoutes(s, &b, unix.RtMsg{Family: family, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST})
		if err != nil && !noIPv6(err) {
			return nil, err
		}
		for _, route := range routes {
			if route.Dst.Bits() == 0 {
				found = append(found, route)
			}
		}
	}
	return found, nil
}
