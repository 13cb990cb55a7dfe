//go:build linux || windows

package wireguard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Device is a WireGuard device of this node, with its addresses, its peers and
// the routes to them. On Linux it stays in the network namespace it was opened in.
type Device struct {
	cfg       Config
	resolver  *resolver
	kick      chan struct{} // Run has something to do
	greetings chan struct{} // there are peers to greet
	readiness atomic.Pointer[error]
	mtu       atomic.Int32
	stun      atomic.Pointer[stunSender] // nil while there is none

	// free holds one token while nobody works on the device; it guards all below.
	free    chan struct{}
	host    // how this system has the device
	wg      configurer
	backend Backend // Kernel or Userspace; constant once opened
	user    *userspace
	hears   bool // STUN, if there is OnSTUN
	planned bool // SetPeers was called
	peers   []Peer
	written map[wgtypes.Key]netip.AddrPort
	greet   []wgtypes.Key // peers to greet
	fresh   bool          // wireguard-go has started and not greeted yet
	changed bool          // OnRebuilt is due
	checked time.Time     // when everything was last compared
	partial error         // what single peers and routes lacked then
	closed  bool
}

// configurer reads and writes a device's key, port and peers.
type configurer interface {
	Device(name string) (*wgtypes.Device, error)
	ConfigureDevice(name string, config wgtypes.Config) error
	Close() error
}

var (
	errNotOpened  = errors.New("device is not opened yet")
	errRebuilding = errors.New("device is being rebuilt")
)

// newDevice returns a device that is not open yet, for a configuration with its
// defaults.
func newDevice(cfg Config) *Device {
	d := &Device{
		cfg:       cfg,
		resolver:  newResolver(cfg),
		kick:      make(chan struct{}, 1),
		greetings: make(chan struct{}, 1),
		free:      make(chan struct{}, 1),
	}
	d.mtu.Store(int32(cfg.MTU))
	d.setReady(errNotOpened)
	return d
}

// lock waits until nobody else works on the device.
func (d *Device) lock(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-d.free:
	}
	if d.closed {
		d.unlock()
		return ErrClosed
	}
	return nil
}

func (d *Device) unlock() { d.free <- struct{}{} }

// Name returns the link's name.
func (d *Device) Name() string { return d.cfg.Name }

// Backend returns Kernel or Userspace.
func (d *Device) Backend() Backend { return d.backend }

// MTU returns the MTU that the link should have.
func (d *Device) MTU() int { return int(d.mtu.Load()) }

// MaxMTU returns the largest MTU that the backend takes.
func (d *Device) MaxMTU() int { return largestMTU(d.backend) }

// Ready returns nil while the device stands, and otherwise what is wrong.
func (d *Device) Ready() error { return *d.readiness.Load() }

func (d *Device) setReady(err error) { d.readiness.Store(&err) }

// SetPeers makes peers the device's peers, and the routes to their AllowedIPs
// the routes through the device. It takes the whole set, compares it with what
// is there, and writes only what differs; a set that is in place already writes
// nothing. Sessions of peers that stay survive.
//
// A peer or route that cannot be written costs only itself: it is no error
// here but in Status, the rest is in place, and Run tries again. Endpoints that
// are host names follow from Run, as they are resolved.
func (d *Device) SetPeers(ctx context.Context, peers []Peer) error {
	if err := checkPeers(d.cfg.PrivateKey.PublicKey(), peers); err != nil {
		return fmt.Errorf("set peers of %s: %w", d.cfg.Name, err)
	}
	if err := d.lock(ctx); err != nil {
		return fmt.Errorf("set peers of %s: %w", d.cfg.Name, err)
	}
	defer notify(d.kick) // a rebuilt device is announced by Run alone
	defer d.unlock()
	d.peers, d.planned = clonePeers(peers), true
	d.resolver.set(hostsOf(d.peers))
	if err := d.pass(ctx); err != nil {
		return fmt.Errorf("set peers of %s: %w", d.cfg.Name, err)
	}
	return nil
}

// Redirect has packets to peers go to the endpoints of peers, even if they have
// roamed. All else about them is ignored, as are peers that are not set. After an
// error the device goes on as it did.
func (d *Device) Redirect(ctx context.Context, peers []Peer) error {
	if err := d.lock(ctx); err != nil {
		return fmt.Errorf("redirect peers of %s: %w", d.cfg.Name, err)
	}
	defer d.unlock()
	before, written := d.peers, maps.Clone(d.written)
	for key := range d.aim(peers) {
		d.written[key] = netip.AddrPort{} // none, so the wanted one is another
	}
	if err := d.pass(ctx); err != nil {
		d.peers, d.written = before, written
		d.resolver.set(hostsOf(d.peers))
		return fmt.Errorf("redirect peers of %s: %w", d.cfg.Name, err)
	}
	return nil
}

// Hold makes the endpoints of peers those that the device wants, as if it had
// written them before: it leaves peers where they are, and comes back to these
// once a peer is not heard any more. All else about peers is ignored, as are those
// that are not set.
func (d *Device) Hold(ctx context.Context, peers []Peer) error {
	if err := d.lock(ctx); err != nil {
		return fmt.Errorf("hold peers of %s: %w", d.cfg.Name, err)
	}
	defer d.unlock()
	maps.Copy(d.written, d.aim(peers))
	return nil
}

// aim makes the endpoints of peers those that are wanted, and returns them as far
// as names are resolved. The caller holds the lock.
func (d *Device) aim(peers []Peer) map[wgtypes.Key]netip.AddrPort {
	aimed := make(map[wgtypes.Key]*Peer, len(peers))
	for i := range peers {
		aimed[peers[i].PublicKey] = &peers[i]
	}
	wanted := map[wgtypes.Key]netip.AddrPort{}
	d.peers = slices.Clone(d.peers)
	for i := range d.peers {
		if to := aimed[d.peers[i].PublicKey]; to != nil {
			d.peers[i].Endpoint, d.peers[i].Host = to.Endpoint, to.Host
		}
	}
	d.resolver.set(hostsOf(d.peers))
	for _, peer := range d.resolver.resolved(d.peers) {
		if aimed[peer.PublicKey] != nil && peer.Endpoint.IsValid() {
			wanted[peer.PublicKey] = peer.Endpoint
		}
	}
	if d.written == nil {
		d.written = map[wgtypes.Key]netip.AddrPort{}
	}
	return wanted
}

// SetCluster makes prefixes what Config.Cluster was. It changes nothing on Linux.
func (d *Device) SetCluster(ctx context.Context, prefixes []netip.Prefix) error {
	if err := d.lock(ctx); err != nil {
		return fmt.Errorf("set cluster of %s: %w", d.cfg.Name, err)
	}
	defer notify(d.kick)
	defer d.unlock()
	d.cfg.Cluster = slices.Clone(prefixes)
	if err := d.pass(ctx); err != nil {
		return fmt.Errorf("set cluster of %s: %w", d.cfg.Name, err)
	}
	return nil
}

// SetMTU changes the link's MTU.
func (d *Device) SetMTU(ctx context.Context, mtu int) error {
	if err := checkMTU(mtu, d.backend); err != nil {
		return fmt.Errorf("set MTU of %s: %w", d.cfg.Name, err)
	}
	if err := d.lock(ctx); err != nil {
		return fmt.Errorf("set MTU of %s: %w", d.cfg.Name, err)
	}
	defer d.unlock()
	d.mtu.Store(int32(mtu))
	if err := d.pass(ctx); err != nil {
		return fmt.Errorf("set MTU of %s: %w", d.cfg.Name, err)
	}
	return nil
}

// Endpoints returns where the peers are meant to be reached, host names as they
// were last resolved, without those that are not known.
func (d *Device) Endpoints(ctx context.Context) ([]netip.Addr, error) {
	if err := d.lock(ctx); err != nil {
		return nil, fmt.Errorf("list endpoints of %s: %w", d.cfg.Name, err)
	}
	defer d.unlock()
	var addrs []netip.Addr
	for _, peer := range d.resolver.resolved(d.peers) {
		if peer.Endpoint.IsValid() {
			addrs = append(addrs, peer.Endpoint.Addr())
		}
	}
	return addrs, nil
}

// Status reads the device.
func (d *Device) Status(ctx context.Context) (Status, error) {
	if err := d.lock(ctx); err != nil {
		return Status{}, fmt.Errorf("read %s: %w", d.cfg.Name, err)
	}
	defer d.unlock()
	status := Status{
		Device: d.cfg.Name, Backend: d.backend, PublicKey: d.cfg.PrivateKey.PublicKey(),
		ListenPort: d.cfg.ListenPort, MTU: d.MTU(), Addresses: d.cfg.Addresses, Fault: d.partial,
	}
	device, err := d.wg.Device(d.cfg.Name)
	if err != nil {
		return Status{}, fmt.Errorf("read %s: %w", d.cfg.Name, err)
	}
	status.ListenPort = device.ListenPort
	status.Peers = peerStatus(d.peers, device.Peers)
	return status, nil
}
