//go:build linux || windows

package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// pass compares everything with what is wanted and puts it right, where the
// device is. Its error is the device's; what single peers and routes
// lack is kept as d.partial. The caller holds the lock.
func (d *Device) pass(ctx context.Context) error {
	var err, partial error
	if nsErr := d.do(func() error {
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

// ensureDevice sets key and port, and returns the device as it then is.
func (d *Device) ensureDevice() (*wgtypes.Device, error) {
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
