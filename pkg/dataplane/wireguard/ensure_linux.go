package wireguard

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
)

// ensure makes the link, the device and its peers what they should be, in an
// order in which nothing is missing that the next step needs. Without the
// device nothing works; partial is about single peers and routes.
func (d *Device) ensure(ctx context.Context) (err, partial error) {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx), nil
	}
	link, err := d.ensureLink()
	if err != nil {
		return err, nil
	}
	if d.user != nil {
		if err := d.user.serve(d.cfg.Name); err != nil {
			return err, nil
		}
	}
	have, err := d.ensureDevice()
	if err != nil {
		return err, nil
	}
	if err := d.ensureUp(link); err != nil {
		return err, nil
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx), nil
	}
	peers := d.resolver.resolved(d.peers)
	partial = errors.Join(d.ensureSTUN(have.ListenPort), d.ensureRoutes(peers))
	if d.planned {
		partial = errors.Join(partial, d.ensurePeers(have.Peers, peers))
	}
	return nil, partial
}

// ensureLink returns our link with the carrier of its packets running.
func (d *Device) ensureLink() (netlink.Link, error) {
	link, err := findLink(d.nl, d.cfg.Name)
	if err != nil {
		return nil, err
	}
	if d.index != 0 && (link == nil || link.Attrs().Index != d.index) {
		if err := d.loseLink(); err != nil {
			return nil, err
		}
	}
	if link != nil {
		if err := d.cfg.link().checkOurs(link); err != nil {
			return nil, err
		}
	}
	if d.user != nil && d.user.dead() {
		d.cfg.Log.Warn("wireguard-go ended by itself", "iface", d.cfg.Name)
		err := d.user.stop()
		d.user = nil
		if err != nil {
			return nil, err
		}
	}
	if d.backend == "" {
		if d.backend, err = chooseBackend(d.cfg.Backend, d.nl, link); err != nil {
			return nil, err
		}
	}
	if link, err = d.keep(link); err != nil {
		return nil, err
	}
	if link, err = d.build(link); err != nil {
		return nil, err
	}
	d.index = link.Attrs().Index
	return link, finishLink(d.nl, link, d.cfg.link().alias())
}

// keep returns link, or nil after removing one of another backend or with the
// routes of another table.
func (d *Device) keep(link netlink.Link) (netlink.Link, error) {
	if link == nil {
		return nil, nil
	}
	was, err := parseAlias(link.Attrs().Alias)
	moved := err == nil && was.Table != d.cfg.Table && d.index == 0 // while it is open, the alias is put right instead
	if backendOf(link) == d.backend && !moved {
		return link, nil
	}
	d.cfg.Log.Info("replacing device of another backend or table", "iface", d.cfg.Name, "backend", d.backend, "table", d.cfg.Table)
	err = deleteLink(d.nl, link)
	if moved {
		err = errors.Join(err, removeRefusals(was.Table))
	}
	return nil, err
}

// loseLink gives up a link that was deleted, renamed or moved away. One that
// still exists under another name would keep the routes.
func (d *Device) loseLink() error {
	d.cfg.Log.Warn("device vanished", "iface", d.cfg.Name)
	var errs []error
	if d.user != nil {
		errs = append(errs, d.user.stop())
		d.user = nil
	}
	if link, err := d.nl.LinkByIndex(d.index); err == nil && d.cfg.link().checkOurs(link) == nil {
		errs = append(errs, deleteLink(d.nl, link))
	}
	d.index, d.written = 0, nil
	return errors.Join(errs...)
}

func chooseBackend(wanted Backend, nl *netlink.Handle, link netlink.Link) (Backend, error) {
	if wanted != Auto {
		return wanted, nil
	}
	if link != nil && backendOf(link) == Kernel {
		return Kernel, nil
	}
	able, err := probeKernel(nl)
	switch {
	case err != nil:
		return "", err
	case able:
		return Kernel, nil
	}
	return Userspace, nil
}

// build makes the link if there is none, and starts wireguard-go if there is
// none of this process.
func (d *Device) build(link netlink.Link) (netlink.Link, error) {
	if link != nil && (d.backend == Kernel && d.wg != nil || d.user != nil) {
		return link, nil
	}
	if link == nil {
		d.changed = true
	}
	if d.backend == Userspace {
		return d.buildUserspace()
	}
	if link == nil {
		if err := addKernelLink(d.nl, d.cfg.Name); err != nil {
			return nil, err
		}
	}
	if err := d.openClient(); err != nil {
		return nil, err
	}
	return d.ownLink()
}

func (d *Device) buildUserspace() (netlink.Link, error) {
	if err := d.openClient(); err != nil {
		return nil, err
	}
	fd, err := openTUN(d.cfg.Name)
	if err != nil {
		return nil, err
	}
	link, err := d.ownLink()
	if err == nil {
		err = setMTU(d.nl, link, d.MTU()) // wireguard-go reads it when it starts
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	d.user, err = newUserspace(d.cfg, d.ns, fd)
	d.fresh = true
	return link, err
}

// ownLink returns the link that was there a moment ago.
func (d *Device) ownLink() (netlink.Link, error) {
	link, err := findLink(d.nl, d.cfg.Name)
	if err == nil && link == nil {
		err = fmt.Errorf("link %s vanished while it was made", d.cfg.Name)
	}
	return link, err
}

// openClient connects to the kernel's WireGuard, which a client made before
// the module was loaded does not know.
func (d *Device) openClient() error {
	client, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("open wgctrl: %w", err)
	}
	if d.wg != nil {
		err = d.wg.Close()
	}
	d.wg = client
	return err
}

// ensureUp brings the link up with its MTU and addresses. A kernel device opens
// its port by that.
func (d *Device) ensureUp(link netlink.Link) error {
	if link.Attrs().MTU != d.MTU() {
		if err := setMTU(d.nl, link, d.MTU()); err != nil {
			return err
		}
		if d.user != nil {
			d.user.tun.mtuChanged()
		}
	}
	if d.user != nil {
		if err := d.user.up(d.cfg.ListenPort); err != nil {
			return err
		}
	}
	added, err := setAddresses(d.nl, link, d.cfg.Addresses)
	if err != nil {
		return err
	}
	if !isUp(link) {
		if err := d.nl.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring up %s: %w", d.cfg.Name, portError(d.cfg.ListenPort, err))
		}
		added = true // the kernel drops routes, and IPv6 addresses, with a link that goes down
	}
	d.changed = d.changed || added
	if d.user != nil && d.fresh {
		return d.user.tun.persist()
	}
	return nil
}

// portError names the UDP port if err is about it.
func portError(port int, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("UDP port %d %w: %w", port, ErrPortInUse, err)
	}
	return err
}

// ensureRoutes leaves the routes to peers alone until the peers are known.
func (d *Device) ensureRoutes(peers []Peer) error {
	have, err := d.routes.ours(d.index)
	if err != nil {
		return err
	}
	del, add := diffRoutes(have, wantedRoutes(d.cfg, peers))
	if !d.planned {
		del = slices.DeleteFunc(del, route.ofPeer)
	}
	return errors.Join(d.routes.remove(del, d.index), d.routes.add(add, d.index))
}
