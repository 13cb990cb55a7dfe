package dataplane

import (
	"net/netip"
	"slices"
)

// DNSServers are the addresses at which sandboxes and guests of this node are
// told to ask for names, IPv4 first: the node's own. There are none while names
// are not served, the node has no slices, or port 53 is not among the ports,
// since neither resolv.conf nor WireGuard's configuration can name another.
func (d *Dataplane) DNSServers() []netip.Addr {
	parts := d.current()
	if parts == nil || !d.naming.cfg.Enabled || !slices.Contains(d.naming.cfg.Ports, DNSPort) {
		return nil
	}
	servers := make([]netip.Addr, len(parts.slices))
	for i, slice := range parts.slices {
		servers[i] = nodeAddress(slice)
	}
	slices.SortFunc(servers, netip.Addr.Compare)
	return servers
}
