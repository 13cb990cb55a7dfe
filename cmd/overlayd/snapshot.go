package main

import (
	"context"
	"net/netip"
	"slices"

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
	return snapshot
}

func snapshotOf(status dataplane.Status) *shim.StatusSnapshot {
	device := status.Device
	snapshot := &shim.StatusSnapshot{
		Node: status.Node, PublicKey: status.PublicKey,
		Interface: device.Device, Backend: string(device.Backend),
		ListenPort: uint16(device.ListenPort), MTU: device.MTU,
		NodeIPs: device.Addresses, NodeIP: first(device.Addresses),
		Peers: peersOf(device.Peers, status.Problems), PeerCount: uint32(len(device.Peers)),
	}
	for _, pool := range status.Pools {
		snapshot.SliceCIDRs = append(snapshot.SliceCIDRs, pool.Prefix)
		snapshot.Pools = append(snapshot.Pools, shim.PoolStatus{
			Prefix: pool.Prefix, Capacity: pool.Capacity, Used: pool.Used, Resting: pool.Resting,
		})
	}
	snapshot.SliceCIDR = first(snapshot.SliceCIDRs)
	for _, segment := range status.Segments {
		snapshot.Segments = append(snapshot.Segments, shim.SegmentStatus{
			Name: segment.Name, Bridge: segment.Bridge, Ports: segment.Ports,
		})
	}
	for _, attached := range status.Attachments {
		snapshot.Attachments = append(snapshot.Attachments, attachmentOf(attached))
	}
	return snapshot
}

// peersOf lists the device's peers, then the nodes that were refused.
func peersOf(peers []wireguard.PeerStatus, problems []wireguard.Problem) []shim.PeerStatus {
	all := make([]shim.PeerStatus, 0, len(peers)+len(problems))
	for _, peer := range peers {
		status := shim.PeerStatus{
			Node: peer.Node, PublicKey: peer.PublicKey.String(), AllowedIPs: peer.AllowedIPs,
			RxBytes: peer.RxBytes, TxBytes: peer.TxBytes,
		}
		if peer.Endpoint.IsValid() {
			status.Endpoint = peer.Endpoint.String()
		}
		if !peer.LastHandshake.IsZero() {
			status.LastHandshakeUnixSecs = peer.LastHandshake.Unix()
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
