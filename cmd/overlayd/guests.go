package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// addGuest gives a machine that runs WireGuard itself its place. It is a peer of
// the cluster's device, so it reaches what pods without a service reach.
func (d *daemon) addGuest(ctx context.Context, guest *shim.GuestManaged, r *shim.AttachContainer) (shim.Response, error) {
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	if mode := d.plane.ServiceMode(r.Service); mode == dataplane.Dedicated || r.Mode == shim.ModeDedicated {
		return nil, fmt.Errorf("guest %s cannot join dedicated service %s: guests are peers of the cluster's device: %w", guest.ID, r.Service, dataplane.ErrInvalid)
	}
	config, err := d.plane.AddGuest(ctx, guest.ID)
	if err != nil {
		return nil, err
	}
	d.told.hear(r)
	server, domain := d.told.or(r)
	resolver := resolverOf(d.plane.DNSServers(), d.config.DNS.Zone, server, domain)
	answer := &shim.GuestConfig{
		OverlayIP: first(config.Addresses), PrivateKey: shim.PrivateKey(config.PrivateKey.Reveal()), PublicKey: config.PublicKey,
		ListenPort: uint16(d.plane.ListenPort()), MTU: config.MTU, DNSServer: first(resolver.servers), DNSDomain: resolver.domain,
		Peers: []shim.PeerSpec{{
			PublicKey: config.NodeKey, Endpoint: config.Endpoint, AllowedIPs: config.AllowedIPs,
			PersistentKeepaliveSecs: uint64(config.Keepalive.Seconds()),
		}},
	}
	for _, addr := range config.Addresses {
		answer.Addresses = append(answer.Addresses, netip.PrefixFrom(addr, addr.BitLen()))
	}
	answer.PrefixLen = uint8(answer.Addresses[0].Bits())
	return answer, nil
}

func (d *daemon) removeGuest(ctx context.Context, guest *shim.GuestManaged) error {
	if err := d.mayServe(ctx); err != nil {
		return err
	}
	return d.plane.RemoveGuest(ctx, guest.ID)
}

func (d *daemon) listGuests(ctx context.Context) (shim.Response, error) {
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	guests, err := d.plane.Guests(ctx)
	if err != nil {
		return nil, err
	}
	return &shim.Guests{Guests: guestStatuses(guests)}, nil
}

// guestStatuses are guests on the wire.
func guestStatuses(guests []dataplane.Guest) []shim.GuestStatus {
	all := make([]shim.GuestStatus, 0, len(guests))
	for _, guest := range guests {
		peer := peerStatusOf(guest.Peer)
		all = append(all, shim.GuestStatus{
			ID: guest.Name, Addresses: guest.Addresses, PublicKey: guest.PublicKey, Endpoint: peer.Endpoint,
			LastHandshakeUnixSecs: peer.LastHandshakeUnixSecs, RxBytes: peer.RxBytes, TxBytes: peer.TxBytes,
		})
	}
	return all
}

// peerStatusOf is a peer on the wire.
func peerStatusOf(peer wireguard.PeerStatus) shim.PeerStatus {
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
	return status
}
