package wireguard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// host is how Linux has the device. It is guarded as what it is a part of.
type host struct {
	ns     *namespace
	nl     *netlink.Handle
	routes *routeSocket
	index  int      // of the link; 0 while there is none
	raw    *rawPort // of a kernel device that hears STUN
}

// do runs fn where the device is: in its namespace.
func (h *host) do(fn func() error) error { return h.ns.do(fn) }

// Open makes the device cfg describes, or adopts the one a former process left:
// a kernel device without disturbing it, a TUN by starting wireguard-go on it
// again. Peers and the routes to them stay as they are until SetPeers. A device
// of ours with another key gets the one wanted, and one of another backend is
// removed and made anew; a link of somebody else with the name is an error. If
// Open fails, it leaves nothing that was not there before.
func Open(ctx context.Context, cfg Config) (*Device, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open WireGuard device: %w", err)
	}
	d := newDevice(cfg)
	if d.ns, err = currentNamespace(); err != nil {
		return nil, fmt.Errorf("open WireGuard device %s: %w", cfg.Name, err)
	}
	err = d.ns.do(func() error {
		if err := d.openHandles(); err != nil {
			return err
		}
		return d.start(ctx)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open WireGuard device %s: %w", cfg.Name, err), d.release(), d.ns.close())
	}
	d.changed = false
	d.free <- struct{}{}
	return d, nil
}

// openHandles must run in the namespace; its sockets stay there.
func (d *Device) openHandles() (err error) {
	if d.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	d.routes, err = openRouteSocket(d.cfg.Table)
	return err
}

// start brings the device up for the first time, and takes back what it made
// if that fails.
func (d *Device) start(ctx context.Context) error {
	before, err := findLink(d.nl, d.cfg.Name)
	if err != nil {
		return err
	}
	err, partial := d.ensure(ctx)
	if err = errors.Join(err, partial); err == nil {
		d.checked = time.Now()
		d.setReady(nil)
		return nil
	}
	err = errors.Join(err, d.closeRaw())
	if d.user != nil {
		err = errors.Join(err, d.user.stop())
		d.user = nil
	}
	if before == nil && d.index != 0 {
		err = errors.Join(err, d.removeOwn())
	}
	return err
}

// removeOwn deletes the link and the routes that the device made.
func (d *Device) removeOwn() error {
	link, err := findLink(d.nl, d.cfg.Name)
	if err == nil && link != nil && link.Attrs().Index == d.index {
		err = deleteLink(d.nl, link)
	}
	d.index = 0
	return errors.Join(err, removeRefusals(d.cfg.Table))
}

// release closes what the device holds in this process.
func (d *Device) release() error {
	errs := []error{d.closeRaw()}
	if d.user != nil {
		errs = append(errs, d.user.stop())
		d.user = nil
	}
	if d.wg != nil {
		errs = append(errs, d.wg.Close())
	}
	if d.routes != nil {
		errs = append(errs, d.routes.close())
	}
	if d.nl != nil {
		d.nl.Close()
	}
	return errors.Join(errs...)
}

// Close ends this process's part. A kernel device goes on; a TUN keeps its
// addresses and routes, and drops what is sent to it until the next Open.
// Closing twice is fine. [Remove] removes the device.
func (d *Device) Close() error {
	<-d.free
	defer d.unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	d.setReady(ErrClosed)
	if err := errors.Join(d.release(), d.ns.close()); err != nil {
		return fmt.Errorf("close WireGuard device %s: %w", d.cfg.Name, err)
	}
	return nil
}
