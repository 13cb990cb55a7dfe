package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// pass compares everything with what is wanted and puts it right, in the
// device's namespace. Its error is the device's; what single peers and routes
// lack is kept as d.partial. The caller holds the lock.
func (d *Device) pass(ctx context.Context) error {
	var err, partial error
	if nsErr := d.ns.do(func() error {
		err, partial = d.ensure(ctx)
		return nil
	}); nsErr != nil {
		err = nsErr
	}
	d.checked = time.Now()
	d.setReady(err)
	if err != nil {
		return err // it says nothing of peers and routes
	}
	switch {
	case partial != nil && (d.partial == nil || d.partial.Error() != partial.Error()):
		d.cfg.Log.Warn("device lacks peers or routes, trying again", "iface", d.cfg.Name, "err", partial)
	case partial == nil && d.partial != nil:
		d.cfg.Log.Info("device has all its peers and routes again", "iface", d.cfg.Name)
	}
	d.partial = partial
	return nil
}

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

// ensureDevice sets key and port, and returns the device as it then is.
func (d *Device) ensureDevice() (*wgtypes.Device, error) {
	if d.user != nil {
		if err := d.user.serve(d.cfg.Name); err != nil {
			return nil, err
		}
	}
	have, err := d.wg.Device(d.cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("read WireGuard configuration: %w", err)
	}
	var config wgtypes.Config
	differs := false
	if key := d.cfg.PrivateKey.reveal(); have.PrivateKey != key {
		if have.PrivateKey != (wgtypes.Key{}) {
			d.cfg.Log.Info("device had another key", "iface", d.cfg.Name, "key", have.PublicKey.String())
		}
		config.PrivateKey, differs = &key, true
	}
	if port := d.cfg.ListenPort; port != 0 && have.ListenPort != port {
		config.ListenPort, differs = &port, true
		have.ListenPort = port
	}
	if !differs {
		return have, nil
	}
	if err := d.wg.ConfigureDevice(d.cfg.Name, config); err != nil {
		return nil, fmt.Errorf("set key and UDP port: %w", portError(d.cfg.ListenPort, err))
	}
	return have, nil
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

// ensurePeers writes the difference between have and peers.
func (d *Device) ensurePeers(have []wgtypes.Peer, peers []Peer) error {
	changes := Diff(have, peers, settled(have, peers, d.written, time.Now()))
	failed, err := d.configure(changes)
	d.written = make(map[wgtypes.Key]netip.AddrPort, len(peers))
	var keys []wgtypes.Key
	for i := range peers {
		if key := peers[i].PublicKey; peers[i].Endpoint.IsValid() && !failed[key] {
			d.written[key] = peers[i].Endpoint
			keys = append(keys, key)
		}
	}
	if d.user != nil && d.fresh {
		d.fresh, d.greet = false, keys
		notify(d.greetings)
	}
	if len(changes) > 0 {
		d.cfg.Log.Info("peers changed", "iface", d.cfg.Name, "written", len(changes), "peers", len(peers))
	}
	return err
}

const (
	// wgctrl sends the kernel one message per peer as soon as there are more
	// than 32 peers or 256 addresses, and one for all below that.
	kernelPeers, kernelAddrs = 32, 256
	// userspacePeers are set by one exchange over the socket.
	userspacePeers = 1024
)

// configure writes changes in order. A peer that is refused costs only itself;
// failed holds those.
func (d *Device) configure(changes []wgtypes.PeerConfig) (failed map[wgtypes.Key]bool, err error) {
	failed = map[wgtypes.Key]bool{}
	var errs []error
	for len(changes) > 0 {
		batch := changes[:d.batch(changes)]
		changes = changes[len(batch):]
		if d.wg.ConfigureDevice(d.cfg.Name, wgtypes.Config{Peers: batch}) == nil {
			continue
		}
		for i := range batch {
			if err := d.wg.ConfigureDevice(d.cfg.Name, wgtypes.Config{Peers: batch[i : i+1]}); err != nil {
				failed[batch[i].PublicKey] = true
				errs = append(errs, fmt.Errorf("write peer %s: %w", batch[i].PublicKey, err))
			}
		}
	}
	return failed, errors.Join(errs...)
}

// batch returns how many of changes to write in one call.
func (d *Device) batch(changes []wgtypes.PeerConfig) int {
	if d.backend == Userspace {
		return min(len(changes), userspacePeers)
	}
	addrs := 0
	for i := range changes {
		if addrs += len(changes[i].AllowedIPs); i > 0 && (i == kernelPeers || addrs > kernelAddrs) {
			return i
		}
	}
	return len(changes)
}
