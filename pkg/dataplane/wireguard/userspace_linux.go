package wireguard

import (
	"fmt"

	"golang.zx2c4.com/wireguard/device"
)

// inFlight is how many packets may be inside wireguard-go in each direction.
// Five of the kernel's 64 KiB packets keep every worker of a fast machine busy;
// more only queue, and each packet takes a buffer of 64 KiB.
const inFlight = 256

// userspace is a running wireguard-go on a TUN.
type userspace struct {
	tun     *tunDevice
	bind    *bind
	device  *device.Device
	uapi    *uapiServer
	out, in *gate
	idle    idleness
}

// newUserspace takes fd over, a TUN's descriptor. The device is down and has no
// key until it is configured.
func newUserspace(cfg Config, ns *namespace, fd int) (*userspace, error) {
	u := &userspace{out: newGate(markOut, inFlight), in: newGate(markIn, inFlight)}
	var err error
	if u.tun, err = newTUNDevice(fd, u.out, u.in); err != nil {
		return nil, err
	}
	u.bind = newBind(cfg, ns, u.out, u.in)
	u.device = device.NewDevice(u.tun, u.bind, newGoLogger(cfg.Log))
	if u.uapi, err = serveUAPI(cfg.Name, u.device); err != nil {
		u.device.Close()
		return nil, err
	}
	return u, nil
}

// serve makes sure that wgctrl finds the device.
func (u *userspace) serve(name string) error {
	if u.uapi.alive() {
		return nil
	}
	if err := u.uapi.close(); err != nil {
		return fmt.Errorf("close lost wgctrl socket: %w", err)
	}
	uapi, err := serveUAPI(name, u.device)
	if err != nil {
		return err
	}
	u.uapi = uapi
	return nil
}

// stop ends wireguard-go. The TUN stays if it is persistent.
func (u *userspace) stop() error {
	err := u.uapi.close()
	u.device.Close()
	return err
}

// loadEnded reports true once after every load, whose buffers may then go back to
// the system.
func (u *userspace) loadEnded() bool { return u.idle.ended(u.out.left.Load() + u.in.left.Load()) }
