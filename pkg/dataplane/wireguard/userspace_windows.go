package wireguard

import (
	"golang.zx2c4.com/wintun"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// userspace is a running wireguard-go on an adapter of wintun. Its buffers are of
// 2 KiB here, so it needs no bound on the packets in flight.
type userspace struct {
	tun    *tun.NativeTun
	bind   *siftBind
	device *device.Device
}

// newUserspace takes the adapter over, which goes with the device. The device is
// down and has no key until it is configured.
func newUserspace(cfg Config, adapter *tun.NativeTun) *userspace {
	bind := newSiftBind(conn.NewDefaultBind(), cfg)
	return &userspace{tun: adapter, bind: bind, device: device.NewDevice(adapter, bind, newGoLogger(cfg.Log))}
}

// lost reports whether wireguard-go has given up, or hears nothing any more.
func (u *userspace) lost() bool { return u.dead() || u.bind.deaf() }

// loadEnded reports false: what a load leaves behind is little.
func (*userspace) loadEnded() bool { return false }

// wintunVersion has wintun's package load its library and set its logger, before
// ours.
func wintunVersion() string { return wintun.Version() }
