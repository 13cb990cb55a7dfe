package main

import (
	"context"
	"fmt"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// serviceOf tells which service a sandbox joins: in Kubernetes its pod says so,
// elsewhere the request.
func (d *daemon) serviceOf(ctx context.Context, r *shim.AttachContainer) (dataplane.ServiceRequest, error) {
	if d.cluster != nil && r.Pod != nil {
		return d.serviceOfPod(ctx, r.Pod)
	}
	service := dataplane.ServiceRequest{Name: r.Service, Mode: dataplane.Mode(r.Mode), Reach: reachOf(r)}
	if service.Name != "" && service.Name != dataplane.DefaultSegment {
		return service, nil
	}
	if service.Reach == dataplane.Itself {
		return service, fmt.Errorf("join_global is false without a service: %w", dataplane.ErrInvalid)
	}
	return dataplane.ServiceRequest{}, nil
}

// reachOf is what an attach says of a sandbox's reach. ZLayer's agent says nothing
// of a Windows container's: its join_global is always false.
func reachOf(r *shim.AttachContainer) dataplane.Reach {
	container, is := r.Handle.(*shim.WindowsContainer)
	switch {
	case r.JoinGlobal:
		return dataplane.All
	case is && container.IfName == "":
		return dataplane.Anything
	}
	return dataplane.Itself
}

func (d *daemon) setupService(ctx context.Context, r *shim.SetupServiceOverlay) (shim.Response, error) {
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	status, err := d.plane.SetupService(ctx, dataplane.ServiceRequest{Name: r.Service, Mode: dataplane.Mode(r.Mode)})
	if err != nil {
		return nil, err
	}
	answer := &shim.ServiceOverlay{
		Name: status.Bridge, Mode: shim.Mode(status.Mode),
		OverlayIP: first(status.Addresses), Addresses: status.Addresses,
		Subnet: first(status.Blocks), Subnets: status.Blocks,
	}
	if status.Mode == dataplane.Dedicated {
		answer.WGPublicKey, answer.WGPort = status.Device.PublicKey.String(), uint16(status.Device.ListenPort)
	}
	return answer, nil
}

func (d *daemon) teardownService(ctx context.Context, r *shim.TeardownServiceOverlay) error {
	if err := d.mayServe(ctx); err != nil {
		return err
	}
	return d.plane.TeardownService(ctx, r.Service)
}

// changePeer adds, changes or removes a peer that is not of the node set.
func (d *daemon) changePeer(ctx context.Context, request shim.Request) error {
	if err := d.mayServe(ctx); err != nil {
		return err
	}
	switch r := request.(type) {
	case *shim.AddPeer:
		peer, err := addedPeer(r)
		if err != nil {
			return err
		}
		return d.plane.AddPeer(ctx, peer)
	case *shim.RemovePeer:
		return d.plane.RemovePeer(ctx, r.Scope.Service, r.Pubkey)
	case *shim.AddAllowedIP:
		return d.plane.SetAllowedIP(ctx, r.Scope.Service, r.Pubkey, r.CIDR, true)
	case *shim.RemoveAllowedIP:
		return d.plane.SetAllowedIP(ctx, r.Scope.Service, r.Pubkey, r.CIDR, false)
	}
	return nil
}

// noEndpoint is how ZLayer writes that a peer has to begin.
const noEndpoint = "0.0.0.0:0"

func addedPeer(r *shim.AddPeer) (dataplane.AddedPeer, error) {
	peer := dataplane.AddedPeer{Service: r.Scope.Service, PublicKey: r.PublicKey, Endpoint: r.Endpoint, AllowedIPs: r.AllowedIPs, Candidates: r.Candidates, Relay: r.Relay}
	if peer.Endpoint == noEndpoint {
		peer.Endpoint = ""
	}
	if r.PersistentKeepaliveSecs > uint64(maxKeepalive/time.Second) {
		return peer, fmt.Errorf("persistent_keepalive_secs: %d is more than %d: %w", r.PersistentKeepaliveSecs, maxKeepalive/time.Second, dataplane.ErrInvalid)
	}
	peer.Keepalive = time.Duration(r.PersistentKeepaliveSecs) * time.Second
	return peer, nil
}

func (d *daemon) allocateIP(ctx context.Context, r *shim.AllocateIP) (shim.Response, error) {
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	ip, err := d.plane.ReserveIP(ctx, r.Service, r.Owner)
	if err != nil {
		return nil, err
	}
	return &shim.AllocatedIP{IP: ip}, nil
}

func (d *daemon) releaseIP(ctx context.Context, r *shim.ReleaseIP) error {
	if err := d.mayServe(ctx); err != nil {
		return err
	}
	return d.plane.ReleaseIP(ctx, r.IP, r.Owner)
}

// setNodeKey compares the key that an agent believes this node to have with the
// one it has, which alone counts: it was made here and never left.
func (d *daemon) setNodeKey(key string) error {
	if _, err := wgtypes.ParseKey(key); err != nil {
		return fmt.Errorf("pubkey: not 32 bytes in base64: %w", dataplane.ErrInvalid)
	}
	if own := d.plane.PublicKey(); key != own {
		d.log.Warn("agent believes in another public key of this node", "op", "set_local_wg_pubkey", "key", key, "own", own)
	}
	return nil
}
