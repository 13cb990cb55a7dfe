package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

// DNSStatus is what people and metrics are told of the names.
type DNSStatus struct {
	// Zone is absolute, with a dot at its end.
	Zone string
	// Enabled says that this node is to listen.
	Enabled bool
	// Listeners are where it is to listen, and does unless they have a fault.
	Listeners []dns.Listener
	// Upstreams are asked for what is not in the zone.
	Upstreams []netip.AddrPort
	// Names is how many there are.
	Names int
	// Waiting are the sources that have told nothing yet: until they have, no name is said not to exist.
	Waiting []string
	// Down are the nodes whose addresses are left out of answers, since they do not answer.
	Down []string
	// Problems are the names and addresses that were left out, with the reason.
	Problems []string
	// Server and Forward are what was counted.
	Server  dns.ServerStats
	Forward dns.ForwardStats
}

// DNSStatus tells how the names are served.
func (d *Dataplane) DNSStatus() DNSStatus {
	n := d.naming
	status := DNSStatus{
		Zone: n.zone.Name(), Enabled: n.cfg.Enabled, Names: n.zone.Len(),
		Waiting: n.zone.Waiting(), Upstreams: n.forward.Upstreams(), Server: n.server.Stats(), Forward: n.forward.Stats(),
	}
	if n.cfg.Enabled {
		status.Listeners = n.server.Listeners()
	}
	status.Down, _ = n.lost.down()
	status.Problems = n.problems.list()
	return status
}

// DNSNames lists all names, in order.
func (d *Dataplane) DNSNames() []dns.Listed { return d.naming.zone.List() }

// DNSFaults says why names are not served everywhere they should be, a line for
// each reason; the node is not ready then.
func (d *Dataplane) DNSFaults() []string {
	if !d.naming.cfg.Enabled {
		return nil
	}
	return faultsOf(d.naming.server.Listeners())
}

// faultsOf are those of listeners. One that a new segment needs is no fault until
// it was tried, or the node would not be ready for that moment.
func faultsOf(listeners []dns.Listener) []string {
	untried := func(l dns.Listener) bool { return errors.Is(l.Fault, dns.ErrNotTried) }
	began := slices.ContainsFunc(listeners, func(l dns.Listener) bool { return !untried(l) })
	var faults []string
	for _, listener := range listeners {
		if listener.Fault != nil && !(began && untried(listener)) {
			faults = append(faults, fmt.Sprintf("DNS is not served on %s: %v", listener.Addr, listener.Fault))
		}
	}
	return faults
}
