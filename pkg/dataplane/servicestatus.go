package dataplane

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// ServiceStatus is a service of this node at one moment.
type ServiceStatus struct {
	// Name is the service's.
	Name string
	// Mode is Shared or Dedicated.
	Mode Mode
	// Held says that SetupService asked for it: it stays without sandboxes.
	Held bool
	// Bridge is the link of its segment.
	Bridge string
	// Sandboxes is the number of those attached or under way.
	Sandboxes int

	// What follows is a dedicated one's.

	// Isolated says that it is cut off from everything else.
	Isolated bool
	// Device is its WireGuard device with its peers; only the name is there while it is not up.
	Device wireguard.Status
	// Table is its routing table.
	Table uint32
	// Addresses are its own, on the device, one of each slice.
	Addresses []netip.Addr
	// Blocks are what its sandboxes' addresses come from, parts of the slices.
	Blocks []netip.Prefix
	// Problems are what was refused as its peers.
	Problems []wireguard.Problem
	// Fault says why it is not, or not wholly, up.
	Fault error
}

// serviceStatuses reads all services. It waits for none that is being made or
// removed.
func (d *Dataplane) serviceStatuses(ctx context.Context, parts *parts) ([]ServiceStatus, error) {
	var all []ServiceStatus
	var errs []error
	for _, s := range parts.services.copies() {
		status, err := d.serviceStatus(ctx, parts, s)
		all, errs = append(all, status), append(errs, err)
	}
	return all, errors.Join(errs...)
}

// copies are all services as they are at this moment.
func (s *services) copies() []service {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []service
	for _, one := range s.all {
		one := *one
		one.used = maps.Clone(one.used)
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b service) int { return cmp.Compare(a.record.Name, b.record.Name) })
	return list
}

// serviceStatus reads a service. A device that was closed meanwhile is none.
func (d *Dataplane) serviceStatus(ctx context.Context, parts *parts, s service) (ServiceStatus, error) {
	record := s.record
	status := ServiceStatus{Name: record.Name, Mode: record.Mode, Held: record.Held, Sandboxes: len(s.used)}
	segments := parts.attacher.Segments()
	if at := segmentOf(segments, record.Name); at >= 0 {
		status.Bridge = segments[at].Bridge
	}
	if record.Mode != Dedicated {
		return status, nil
	}
	status.Isolated, status.Table, status.Blocks = record.Isolated, record.table(), slices.Clone(record.Blocks)
	status.Addresses = parts.addresses.held(serviceOwner(record.Name))
	status.Problems, status.Fault = slices.Clone(s.problems), s.fault
	status.Device = wireguard.Status{Device: serviceDevice(record.Name), PublicKey: s.key.PublicKey(), ListenPort: record.port(parts.port)}
	if s.device == nil {
		return status, nil
	}
	read, err := s.device.Status(ctx)
	if err != nil {
		if errors.Is(err, wireguard.ErrClosed) {
			err = nil
		}
		return status, err
	}
	status.Device = read
	status.Fault = errors.Join(status.Fault, s.device.Ready(), read.Fault)
	return status, nil
}
