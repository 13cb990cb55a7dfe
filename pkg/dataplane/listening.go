package dataplane

import (
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

// listen has the server listen on this node's overlay addresses and on the
// gateways of its sandboxes: on Linux that of IPv4 is one for all bridges, that of
// IPv6 one on each.
func (d *Dataplane) listen(parts *parts) {
	n := d.naming
	n.mu.Lock()
	defer n.mu.Unlock()
	segments := parts.attacher.Segments()
	slices.SortFunc(segments, func(a, b attach.Segment) int { return a.Index - b.Index })
	own, addrs := listenAddrs(parts.slices, segments, !d.system.subnets)
	n.zone.SetServers(own)
	if !n.cfg.Enabled {
		return
	}
	var all []netip.AddrPort
	for _, addr := range addrs {
		for _, port := range n.cfg.Ports {
			all = append(all, netip.AddrPortFrom(addr, uint16(port)))
		}
	}
	n.listens.Store(&all)
	n.server.SetAddresses(all)
}

// listenAddrs are the node's own addresses, and those with the gateways, which
// where segments are subnets are the node's own.
func listenAddrs(own []netip.Prefix, segments []attach.Segment, gateways bool) (nodes, all []netip.Addr) {
	for _, slice := range own {
		nodes = append(nodes, nodeAddress(slice))
	}
	all = slices.Clone(nodes)
	if !gateways {
		return nodes, all
	}
	for _, addr := range nodes {
		gateway := attach.Gateway(addr)
		switch {
		case slices.ContainsFunc(all, func(a netip.Addr) bool { return a.WithZone("") == gateway }): // two slices of a family
		case gateway.Is4():
			all = append(all, gateway)
		default:
			for _, segment := range segments {
				all = append(all, gateway.WithZone(segment.Bridge))
			}
		}
	}
	return nodes, all
}

// own tells whether a server that the host would ask is this node's own. The
// gateway of IPv4 is that from the start: it is nobody else's.
func (n *naming) own(server netip.AddrPort) bool {
	gateway := attach.Gateway(netip.IPv4Unspecified())
	if server.Addr() == gateway && slices.Contains(n.cfg.Ports, int(server.Port())) {
		return true
	}
	listens := n.listens.Load()
	return listens != nil && slices.Contains(*listens, server)
}
