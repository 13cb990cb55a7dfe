package shim

import (
	"context"
	"fmt"
	"net/netip"
)

// AddGlobalPeer adds a peer to the cluster's WireGuard device, or replaces the
// one of its key.
func (m *OverlayManager) AddGlobalPeer(ctx context.Context, peer PeerSpec) error {
	return m.changePeer(ctx, "add peer", peer.PublicKey, &AddPeer{PeerSpec: peer})
}

// RemoveGlobalPeer removes a peer from the cluster's WireGuard device. An
// unknown one is none to remove.
func (m *OverlayManager) RemoveGlobalPeer(ctx context.Context, pubkey string) error {
	return m.changePeer(ctx, "remove peer", pubkey, &RemovePeer{Pubkey: pubkey})
}

// AddServicePeer adds a peer to the WireGuard device of a dedicated service, or
// replaces the one of its key.
func (m *OverlayManager) AddServicePeer(ctx context.Context, service string, peer PeerSpec) error {
	if service == "" {
		return fmt.Errorf("add peer: %w", errNoService)
	}
	return m.changePeer(ctx, "add peer", peer.PublicKey, &AddPeer{PeerSpec: peer, Scope: Scope{Service: service}})
}

// RemoveServicePeer removes a peer from the WireGuard device of a dedicated
// service. An unknown one is none to remove.
func (m *OverlayManager) RemoveServicePeer(ctx context.Context, service, pubkey string) error {
	if service == "" {
		return fmt.Errorf("remove peer: %w", errNoService)
	}
	return m.changePeer(ctx, "remove peer", pubkey, &RemovePeer{Pubkey: pubkey, Scope: Scope{Service: service}})
}

// AddGlobalAllowedIP adds a prefix, such as that of a shared service on another
// node, to what a known peer of the cluster's device may send and receive.
// Adding it twice is no error.
func (m *OverlayManager) AddGlobalAllowedIP(ctx context.Context, pubkey string, prefix netip.Prefix) error {
	if !prefix.IsValid() {
		return fmt.Errorf("add to peer %s: prefix: there is none", short(pubkey))
	}
	return m.changePeer(ctx, "add "+prefix.String()+" to peer", pubkey, &AddAllowedIP{Pubkey: pubkey, CIDR: prefix})
}

// RemoveGlobalAllowedIP takes back AddGlobalAllowedIP. An unknown peer or prefix
// is none to remove.
func (m *OverlayManager) RemoveGlobalAllowedIP(ctx context.Context, pubkey string, prefix netip.Prefix) error {
	if !prefix.IsValid() {
		return fmt.Errorf("remove from peer %s: prefix: there is none", short(pubkey))
	}
	return m.changePeer(ctx, "remove "+prefix.String()+" from peer", pubkey, &RemoveAllowedIP{Pubkey: pubkey, CIDR: prefix})
}

func (m *OverlayManager) changePeer(ctx context.Context, what, pubkey string, req Request) error {
	err := checkKey(pubkey)
	if err == nil {
		err = m.client.do(ctx, req)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, short(pubkey), err)
	}
	return nil
}
