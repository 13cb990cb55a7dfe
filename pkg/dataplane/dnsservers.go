package dataplane

import (
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
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

// DNSServersOf are DNSServers for a sandbox on a segment: none if that is a
// service's that is cut off, which reaches no server.
func (d *Dataplane) DNSServersOf(segment string) []netip.Addr {
	if parts := d.current(); parts == nil || parts.services.isolated(segment) {
		return nil
	}
	return d.DNSServers()
}

// isolated tells whether a segment is a service's that is cut off. The segment may
// have kept only the digest of a long name.
func (s *services) isolated(segment string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, one := range s.all {
		if one.record.Isolated && (attach.Segment{Name: segment}).Named(name) {
			return true
		}
	}
	return false
}
