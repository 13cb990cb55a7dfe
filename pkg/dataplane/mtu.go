package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// overlayMTU is the configured one, else what the paths to the peers allow.
func (d *Dataplane) overlayMTU(endpoints []netip.Addr) (int, error) {
	if d.cfg.MTU != 0 {
		return d.cfg.MTU, nil
	}
	mtu, err := wireguard.TunnelMTU(endpoints)
	if err != nil {
		return 0, fmt.Errorf("derive MTU from the underlay: %w", err)
	}
	return mtu, nil
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
	mtu, err := d.overlayMTU(endpoints)
	if err != nil {
		return err
	}
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
