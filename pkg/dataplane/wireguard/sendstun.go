//go:build linux || windows

package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// stunSender sends STUN messages by a device's UDP port. Safe for concurrent
// use.
type stunSender interface {
	sendSTUN(packet []byte, from netip.Addr, to netip.AddrPort) error
}

var (
	errNoSTUN  = errors.New("device was opened without OnSTUN")
	errDeaf    = errors.New("device does not hear STUN now")
	errNotSTUN = errors.New("not a STUN message, nor one of WireGuard's")
)

// HearSTUN has the device take part in STUN, or not any more. It matters to a
// kernel device only, which begins without: hearing has a price, see rawPort. After
// an error the device tries again by itself. That of Windows' driver shares its port
// with nobody: there it is always errors.ErrUnsupported.
func (d *Device) HearSTUN(ctx context.Context, hear bool) error {
	if err := d.lock(ctx); err != nil {
		return fmt.Errorf("hear STUN by %s: %w", d.cfg.Name, err)
	}
	defer d.unlock()
	d.hears = hear
	if err := d.do(func() error { return d.ensureSTUN(0) }); err != nil {
		return fmt.Errorf("hear STUN by %s: %w", d.cfg.Name, err)
	}
	return nil
}

// SendSTUN sends a STUN message of at most 2048 bytes by the device's UDP port,
// or a message that the device itself has sent elsewhere. It leaves from an
// address of this node's, by the zero value from the one that the routes choose.
// An error says only that this packet was not sent; one while the device is being
// rebuilt passes. It does not wait for what else is done to the device, so it may
// be called in OnSTUN.
func (d *Device) SendSTUN(packet []byte, from netip.Addr, to netip.AddrPort) error {
	if err := d.sendSTUN(packet, from.Unmap().WithZone(""), plainAddrPort(to)); err != nil {
		return fmt.Errorf("send STUN by %s to %v: %w", d.cfg.Name, to, err)
	}
	return nil
}

func (d *Device) sendSTUN(packet []byte, from netip.Addr, to netip.AddrPort) error {
	switch {
	case d.cfg.OnSTUN == nil:
		return errNoSTUN
	case !isSTUN(packet) && !isWireGuard(packet):
		return errNotSTUN
	case !to.IsValid() || to.Port() == 0:
		return errors.New("no address and port to send to")
	case from.IsValid() && from.Is4() != to.Addr().Is4():
		return fmt.Errorf("%v is of another family", from)
	}
	if sender := d.stun.Load(); sender != nil {
		return (*sender).sendSTUN(packet, from, to)
	}
	if err := d.Ready(); err != nil {
		return err
	}
	return errDeaf
}

// isWireGuard tells whether a packet begins as WireGuard's messages do: with one
// of four types and three zeros. None of them is shorter.
func isWireGuard(packet []byte) bool {
	const shortest = 32
	return len(packet) >= shortest && packet[0] >= 1 && packet[0] <= 4 && packet[1] == 0 && packet[2] == 0 && packet[3] == 0
}

func (d *Device) setSTUN(sender stunSender) { d.stun.Store(&sender) }
