package main

import (
	"context"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// snapshot is the state of the node for `overlayd status`. It tells what could
// be read. A fault that keeps no sandbox from being attached stands behind the
// reasons to wait, and the node is ready all the same.
func (d *daemon) snapshot(ctx context.Context) *shim.StatusSnapshot {
	status, err := d.plane.Status(ctx)
	snapshot := snapshotOf(status)
	snapshot.NAT = natStatusOf(d.plane.NATStatus())
	snapshot.DNS = dnsStatusOf(d.plane.DNSStatus())
	snapshot.Version = buildVersion()
	snapshot.Waiting = d.waiting()
	snapshot.Ready = len(snapshot.Waiting) == 0
	snapshot.OverlayCIDRs = status.Cluster
	snapshot.OverlayCIDR = first(snapshot.OverlayCIDRs)
	faults := []error{err, status.Device.Fault, d.installer.Fault()}
	if snapshot.Ready { // else it is among the reasons
		faults = append(faults, d.nodes.Fault())
	}
	for _, fault := range faults {
		if fault != nil {
			snapshot.Waiting = append(snapshot.Waiting, oneLine(fault.Error()))
		}
	}
	for _, fault := range d.plane.DNSFaults() {
		snapshot.Waiting = append(snapshot.Waiting, oneLine(fault))
	}
	return snapshot
}

func snapshotOf(status dataplane.Status) *shim.StatusSnapshot {
	device := status.Device
	device.Peers = withoutGuests(device.Peers, status.Guests)
	snapshot := &shim.StatusSnapshot{
		Node: status.Node, PublicKey: status.PublicKey,
		Interface: device.Device, Backend: string(device.Backend),
		ListenPort: uint16(device.ListenPort), MTU: device.MTU,
		NodeIPs: device.Addresses, NodeIP: first(device.Addresses),
		Peers: peersOf(device.Peers, status.Health[device.Device], status.Problems), PeerCount: uint32(len(device.Peers)), Guests: guestStatuses(status.Guests),
	}
	for _, pool := range status.Pools {
		snapshot.SliceCIDRs = append(snapshot.SliceCIDRs, pool.Prefix)
		snapshot.Pools = append(snapshot.Pools, shim.PoolStatus{
			Prefix: pool.Prefix, Capacity: pool.Capacity, Used: pool.Used, Resting: pool.Resting,
		})
	}
	snapshot.SliceCIDR = first(snapshot.SliceCIDRs)
	modes := map[string]shim.Mode{}
	for _, service := range status.Services {
		modes[service.Bridge] = shim.Mode(service.Mode)
		if service.Mode == dataplane.Dedicated {
			snapshot.DedicatedServices = append(snapshot.DedicatedServices, dedicatedOf(service, status.Health))
		}
	}
	snapshot.ServiceCount = uint32(len(status.Services))
	for _, segment := range status.Segments {
		snapshot.Segments = append(snapshot.Segments, shim.SegmentStatus{
			Name: segment.Name, Bridge: segment.Bridge, Ports: segment.Ports, Mode: modes[segment.Bridge],
		})
	}
	for _, attached := range status.Attachments {
		snapshot.Attachments = append(snapshot.Attachments, attachmentOf(attached))
	}
	return snapshot
}

func dedicatedOf(service dataplane.ServiceStatus, health map[string]map[wgtypes.Key]wireguard.PeerHealth) shim.DedicatedServiceStatus {
	device := service.Device
	status := shim.DedicatedServiceStatus{
		Service: service.Name, Interface: device.Device, PublicKey: device.PublicKey.String(), ListenPort: uint16(device.ListenPort),
		OverlayIP: first(service.Addresses), Subnet: first(service.Blocks), PeerCount: uint32(len(device.Peers)),
		Subnets: service.Blocks, Table: service.Table, Bridge: service.Bridge, JoinGlobal: !service.Isolated,
		Attachments: service.Sandboxes, Peers: peersOf(device.Peers, health[device.Device], service.Problems),
	}
	if service.Fault != nil {
		status.Problem = oneLine(service.Fault.Error())
	}
	return status
}

// withoutGuests leaves out the peers that the snapshot shows as guests.
func withoutGuests(peers []wireguard.PeerStatus, guests []dataplane.Guest) []wireguard.PeerStatus {
	isGuest := map[wgtypes.Key]bool{}
	for _, guest := range guests {
		isGuest[guest.Peer.PublicKey] = true
	}
	return slices.DeleteFunc(slices.Clone(peers), func(peer wireguard.PeerStatus) bool { return isGuest[peer.PublicKey] })
}

// peersOf lists the device's peers, then the nodes that were refused.
func peersOf(peers []wireguard.PeerStatus, health map[wgtypes.Key]wireguard.PeerHealth, problems []wireguard.Problem) []shim.PeerStatus {
	all := make([]shim.PeerStatus, 0, len(peers)+len(problems))
	for _, peer := range peers {
		status := peerStatusOf(peer)
		if known, found := health[peer.PublicKey]; found {
			status.Health, status.HealthReason, status.RTTMicros = string(known.State), known.Reason, uint64(known.RTT.Microseconds())
		}
		all = append(all, status)
	}
	for _, problem := range problems {
		all = append(all, shim.PeerStatus{Node: problem.Node, Problem: problem.Err.Error()})
	}
	return all
}

func attachmentOf(a attach.Attachment) shim.AttachmentStatus {
	return shim.AttachmentStatus{
		ContainerID: a.Key.ContainerID, IfName: a.Key.IfName, Key: a.Key.Digest,
		Segment: a.Segment, Addresses: slices.Clone(a.Addrs), MAC: a.MAC.String(), HostInterface: a.Port, Network: a.Network,
	}
}

// first returns the first element, or the zero value if there is none.
func first[T netip.Addr | netip.Prefix](list []T) T {
	var none T
	if len(list) == 0 {
		return none
	}
	return list[0]
}
