//go:build !linux && !windows

package wireguard

import (
	"context"
	"errors"
	"net/netip"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Device cannot be opened on this system. Its methods exist so that programs
// compile, and return errors.ErrUnsupported.
type Device struct{}

// Open returns errors.ErrUnsupported.
func Open(context.Context, Config) (*Device, error) { return nil, errors.ErrUnsupported }

// Remove returns errors.ErrUnsupported.
func Remove(context.Context, Link) error { return errors.ErrUnsupported }

// RemoveRefusals returns errors.ErrUnsupported.
func RemoveRefusals(context.Context, int, int) error { return errors.ErrUnsupported }

// List returns errors.ErrUnsupported.
func List(context.Context) ([]Link, error) { return nil, errors.ErrUnsupported }

// TunnelMTU returns errors.ErrUnsupported.
func TunnelMTU([]netip.Addr) (int, error) { return 0, errors.ErrUnsupported }

// Name returns "".
func (d *Device) Name() string { return "" }

// Backend returns "".
func (d *Device) Backend() Backend { return "" }

// MTU returns 0.
func (d *Device) MTU() int { return 0 }

// MaxMTU returns 0.
func (d *Device) MaxMTU() int { return 0 }

// Ready returns errors.ErrUnsupported.
func (d *Device) Ready() error { return errors.ErrUnsupported }

// SetPeers returns errors.ErrUnsupported.
func (d *Device) SetPeers(context.Context, []Peer) error { return errors.ErrUnsupported }

// Redirect returns errors.ErrUnsupported.
func (d *Device) Redirect(context.Context, []Peer) error { return errors.ErrUnsupported }

// Hold returns errors.ErrUnsupported.
func (d *Device) Hold(context.Context, []Peer) error { return errors.ErrUnsupported }

// SetCluster returns errors.ErrUnsupported.
func (d *Device) SetCluster(context.Context, []netip.Prefix) error { return errors.ErrUnsupported }

// SetMTU returns errors.ErrUnsupported.
func (d *Device) SetMTU(context.Context, int) error { return errors.ErrUnsupported }

// Endpoints returns errors.ErrUnsupported.
func (d *Device) Endpoints(context.Context) ([]netip.Addr, error) { return nil, errors.ErrUnsupported }

// Status returns errors.ErrUnsupported.
func (d *Device) Status(context.Context) (Status, error) { return Status{}, errors.ErrUnsupported }

// HearSTUN returns errors.ErrUnsupported.
func (d *Device) HearSTUN(context.Context, bool) error { return errors.ErrUnsupported }

// SendSTUN returns errors.ErrUnsupported.
func (d *Device) SendSTUN([]byte, netip.Addr, netip.AddrPort) error { return errors.ErrUnsupported }

// Probe returns errors.ErrUnsupported.
func (d *Device) Probe(context.Context, map[wgtypes.Key]netip.Addr) (map[wgtypes.Key]ProbeResult, error) {
	return nil, errors.ErrUnsupported
}

// Run returns errors.ErrUnsupported.
func (d *Device) Run(context.Context) error { return errors.ErrUnsupported }

// Close returns errors.ErrUnsupported.
func (d *Device) Close() error { return errors.ErrUnsupported }
