package wireguard

import (
	"errors"
	"fmt"
)

// ensureSTUN has STUN messages go by the device's UDP port, which the caller
// last saw to be port; 0 is not known. It must run in the namespace.
func (d *Device) ensureSTUN(port int) error {
	if d.cfg.OnSTUN == nil {
		return nil
	}
	if d.backend == Userspace {
		d.setSTUN(d.user.bind)
		return nil
	}
	if !d.hears {
		return d.closeRaw()
	}
	if port == 0 { // the kernel chose one when the link came up
		have, err := d.wg.Device(d.cfg.Name)
		if err != nil {
			return fmt.Errorf("read UDP port: %w", err)
		}
		port = have.ListenPort
	}
	if d.raw != nil && int(d.raw.port) == port {
		return nil
	}
	err := d.closeRaw()
	raw, openErr := openRawPort(d.cfg, d.ns, uint16(port))
	if err = errors.Join(err, openErr); openErr != nil {
		return err
	}
	d.raw = raw
	d.setSTUN(raw)
	return err
}

// closeRaw closes the raw sockets of a kernel device, if it has any.
func (d *Device) closeRaw() error {
	d.stun.Store(nil)
	if d.raw == nil {
		return nil
	}
	err := d.raw.close()
	d.raw = nil
	return err
}
