package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// overlayMTU is the configured one, else what the paths to the peers allow, and
// those to relays, once any node of the set may use one: a packet for a node behind
// a relay must fit, whoever sends it.
func (d *Dataplane) overlayMTU(endpoints []netip.Addr, config NATConfig) (int, error) {
	if d.cfg.MTU != 0 {
		return d.cfg.MTU, nil
	}
	relays, relayed := d.relayPaths(config)
	mtu, err := wireguard.TunnelMTU(slices.Concat(endpoints, relays))
	if err != nil {
		return 0, fmt.Errorf("derive MTU from the underlay: %w", err)
	}
	if relayed {
		mtu -= nat.RelayOverhead
		mtu = max(mtu-mtu%nat.RelayPadding, wireguard.MinMTU) // what WireGuard adds is a multiple, too
	}
	return mtu, nil
}

// relayPaths tells whether packets may go by a relay, whether or not one does now,
// so that the MTU stays; and where the relays are, as far as is known: those that
// nodes offer, and those outside of the cluster at which nodes have a place.
func (d *Dataplane) relayPaths(config NATConfig) (addrs []netip.Addr, relayed bool) {
	if !config.Enabled {
		return nil, false
	}
	relayed = config.Relay != nil || len(config.TURNServers) > 0
	overlay := d.clusterPrefixes()
	for _, node := range d.nodesByName() {
		if offer, err := nat.ParseRelayOffer(node.Relay); err == nil && !insideAny(overlay, offer) {
			relayed = true
			if offer.UDP.IsValid() && node.Name != d.cfg.Node {
				addrs = append(addrs, offer.UDP.Addr())
			}
		}
		for _, candidate := range candidatesOf(node) {
			if candidate.Kind == nat.Relayed && !nat.Inside(overlay, candidate.Addr) {
				relayed = true
				addrs = append(addrs, candidate.Addr.Addr())
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), relayed // many have their place at the same relay
}

// followMTU gives devices and segments the MTU that the paths to the peers allow
// now: a route may have changed, or a peer's host name. A part that fails keeps no
// other from being told, and holds itself to what it was told later on. The caller
// holds d.setNodes, or the MTU of an older set could come last.
func (d *Dataplane) followMTU(ctx context.Context, running *parts) error {
	endpoints, err := running.device.Endpoints(ctx)
	if err != nil {
		return err
	}
	mtu, err := d.overlayMTU(endpoints, running.nat)
	if err != nil {
		return err
	}
	mtu = min(mtu, running.device.MaxMTU())
	var errs []error
	if mtu != running.device.MTU() {
		errs = append(errs, running.device.SetMTU(ctx, mtu), running.attacher.SetMTU(ctx, mtu))
		d.log.Info("MTU changed", "op", "mtu", "iface", running.device.Name(), "mtu", mtu)
	}
	return errors.Join(append(errs, d.setServicesMTU(ctx, running, mtu))...)
}

// setServicesMTU gives the services' devices the cluster's MTU, unless they have
// it: one may have come up while that changed.
func (d *Dataplane) setServicesMTU(ctx context.Context, running *parts, mtu int) error {
	return d.eachService(ctx, running.services, func(s *service) error {
		if s.device == nil || s.device.MTU() == mtu {
			return nil
		}
		return s.device.SetMTU(ctx, mtu)
	})
}
