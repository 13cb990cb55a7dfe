//go:build !linux

package dns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// lookFor looks for an address on this node.
func lookFor(addr netip.Addr) presence {
	var at presence
	list := net.InterfaceAddrs
	if zone := addr.Zone(); zone != "" {
		link, err := net.InterfaceByName(zone)
		if err != nil {
			return presence{fault: fmt.Errorf("%w as %s", errNoInterface, zone)}
		}
		at.index, list = link.Index, link.Addrs
	}
	all, err := list()
	if err != nil {
		return presence{fault: fmt.Errorf("look for the address: %w", err)}
	}
	has := func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr() == addr.WithZone("")
	}
	if !slices.ContainsFunc(all, has) {
		at.fault = errNoAddress
	}
	return at
}
