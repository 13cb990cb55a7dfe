package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/internal/durable"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/firewall"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// Status is a snapshot for people and metrics. Parts that do not exist yet are
// zero.
type Status struct {
	// Node is this node's name.
	Node string
	// PublicKey is this node's, in base64.
	PublicKey string
	// Waiting says why the node is not ready, a line for each reason; empty when it is.
	Waiting []string
	// Cluster holds the prefixes of the node set in force.
	Cluster []netip.Prefix
	// Device is the cluster's WireGuard device with its peers. The endpoint of one
	// that is reached by a relay is the peer's address on that way.
	Device wireguard.Status
	// Health is what is known of the peers of all devices, by device and key; of a new one nothing yet.
	Health map[string]map[wgtypes.Key]wireguard.PeerHealth
	// Segments are the bridges of this node.
	Segments []attach.Segment
	// Attachments are sorted by key.
	Attachments []attach.Attachment
	// Services are those of this node, in the order of their names.
	Services []ServiceStatus
	// Guests are those of this node, in the order of their names.
	Guests []Guest
	// Pools are those of the node's slices.
	Pools []ipam.Stats
	// Problems are the nodes that were refused as peers.
	Problems []wireguard.Problem
	// Firewall counts what was dropped.
	Firewall firewall.Counters
}

// Status reads the device and the firewall and returns a snapshot. What could
// be read is returned with the error of what could not.
func (d *Dataplane) Status(ctx context.Context) (Status, error) {
	status := Status{Node: d.cfg.Node, PublicKey: d.PublicKey(), Waiting: d.Waiting()}
	parts := d.current()
	d.mu.Lock()
	status.Problems, status.Cluster = slices.Clone(d.problems), d.cluster
	d.mu.Unlock()
	if parts == nil {
		return status, nil
	}
	status.Segments, status.Attachments, status.Pools = parts.attacher.Segments(), parts.attacher.List(), parts.addresses.stats()
	var deviceErr, servicesErr, firewallErr error
	status.Device, deviceErr = parts.device.Status(ctx)
	paths := d.natPaths()
	for i := range status.Device.Peers {
		peer := &status.Device.Peers[i]
		peer.Endpoint = paths[peer.PublicKey].shown(peer.Endpoint)
	}
	status.Guests = d.guests.seen(status.Device.Peers)
	status.Services, servicesErr = d.serviceStatuses(ctx, parts)
	status.Health = map[string]map[wgtypes.Key]wireguard.PeerHealth{deviceName(): parts.health.peers(deviceName())}
	for _, service := range status.Services {
		status.Problems = append(status.Problems, service.Problems...)
		if device := service.Device.Device; device != "" {
			status.Health[device] = parts.health.peers(device)
		}
	}
	status.Firewall, firewallErr = d.firewall.Counters(ctx)
	if err := errors.Join(deviceErr, servicesErr, firewallErr); err != nil {
		return status, fmt.Errorf("read data plane status: %w", err)
	}
	return status, nil
}

// MTU is that of the overlay in bytes, 0 while there is none.
func (d *Dataplane) MTU() int {
	if parts := d.current(); parts != nil {
		return parts.device.MTU()
	}
	return 0
}

// Backend is what runs WireGuard, empty while nothing does.
func (d *Dataplane) Backend() wireguard.Backend {
	if parts := d.current(); parts != nil {
		return parts.device.Backend()
	}
	return ""
}

// Waiting lists why the node is not ready, a line for each reason.
func (d *Dataplane) Waiting() []string {
	d.mu.Lock()
	parts, waiting, faults := d.parts, d.waiting, []error{d.fault, d.notLetIn}
	d.mu.Unlock()
	var reasons []string
	if waiting != "" {
		reasons = append(reasons, waiting)
	}
	if parts == nil {
		return reasons
	}
	if err := parts.device.Ready(); err != nil {
		reasons = append(reasons, err.Error())
	}
	for _, fault := range faults {
		if fault != nil {
			reasons = append(reasons, fault.Error())
		}
	}
	for _, pool := range parts.addresses.stats() {
		if pool.Free() == 0 {
			reasons = append(reasons, fmt.Sprintf("no free address in %s: all %d are used or in blocks of services", pool.Prefix, pool.Capacity))
		}
	}
	return reasons
}

func (d *Dataplane) whyWaiting() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting
}

// ListenPort is WireGuard's UDP port, 0 while there is no device.
func (d *Dataplane) ListenPort() int {
	if parts := d.current(); parts != nil {
		return parts.port
	}
	return 0
}

// ServiceMode is the mode of a service of this node, empty for one that is not
// here.
func (d *Dataplane) ServiceMode(name string) Mode {
	if parts := d.current(); parts != nil {
		return parts.services.mode(name)
	}
	return ""
}

// Users says in words what a teardown would take away, empty for nothing.
func (d *Dataplane) Users() string {
	parts := d.current()
	if parts == nil {
		return ""
	}
	var users []string
	for _, kind := range []struct {
		name string
		n    int
	}{
		{"sandboxes", len(parts.attacher.List())}, {"services", len(parts.services.names())}, {"guests", len(d.guests.list())},
	} {
		if kind.n > 0 {
			users = append(users, fmt.Sprintf("%d %s", kind.n, kind.name))
		}
	}
	return strings.Join(users, ", ")
}

// StateFiles are the names of what the data plane keeps in Config.StateDir.
func StateFiles() []string {
	return []string{keyFile, servicesDir, guestsDir, peersDir, reservationsDir, namesDir, hcnFile, durable.Pending(hcnFile)}
}
