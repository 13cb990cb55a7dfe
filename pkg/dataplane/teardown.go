package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/firewall"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// Teardown removes everything of ours from the kernel: attachments, segments,
// the WireGuard devices with their routes, and last the firewall, so that nothing
// leaves in clear meanwhile. No Dataplane may run. It goes on after an error,
// but keeps the firewall then where that drops something: attachments may be left.
// It reports all errors; what is gone already is no error. Keys and settings on disk
// stay; on Windows stateDir also says what is ours.
func Teardown(ctx context.Context, stateDir string, log *slog.Logger) error {
	if err := failpoint.Hit("dataplane/teardown"); err != nil {
		return err
	}
	return hostSystem().takeDown(takedown{
		attachments: func() error {
			attacher, err := attach.New(attach.Config{HCN: attach.HCNConfig{State: filepath.Join(stateDir, hcnFile)}, Log: log})
			if err != nil {
				return err
			}
			return attacher.Teardown(ctx)
		},
		devices: func() error { return errors.Join(removeDevices(ctx)...) },
		firewall: func() error {
			fw, err := firewall.New(firewall.Config{Log: log})
			if err != nil {
				return err
			}
			return fw.Teardown(ctx)
		},
	})
}

// takedown is what removes the parts of a data plane.
type takedown struct{ attachments, devices, firewall func() error }

// takeDown removes the parts in order. Where segments are subnets, the firewall
// drops nothing and only lets in, so that it goes whatever is left.
func (s system) takeDown(parts takedown) error {
	var errs []error
	if err := parts.attachments(); err != nil {
		errs = append(errs, fmt.Errorf("remove attachments: %w", err))
	}
	if err := parts.devices(); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 && !s.subnets {
		return errors.Join(errs...)
	}
	if err := parts.firewall(); err != nil {
		errs = append(errs, fmt.Errorf("remove firewall: %w", err))
	}
	return errors.Join(errs...)
}

// Forget removes from stateDir what was asked for within an overlay that is gone:
// added peers, reserved addresses and registered names. No Dataplane may run; what
// is not there is none to remove. The node's key stays.
func Forget(stateDir string) error {
	for _, dir := range []string{peersDir, reservationsDir, namesDir} {
		if err := os.RemoveAll(filepath.Join(stateDir, dir)); err != nil {
			return fmt.Errorf("forget the overlay: %w", err)
		}
	}
	return nil
}

// removeDevices removes the cluster's device and those of services. Each may have
// left only routes.
func removeDevices(ctx context.Context) []error {
	found, err := wireguard.List(ctx)
	errs := []error{err}
	for _, link := range append(found, wireguard.Link{Name: deviceName()}) {
		errs = append(errs, wireguard.Remove(ctx, link))
	}
	errs = append(errs, wireguard.RemoveRefusals(ctx, firstServiceTable+1, firstServiceTable+serviceSlots))
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}
