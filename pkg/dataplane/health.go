package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

const (
	// healthInterval is Config's default.
	healthInterval = 10 * time.Second
	// probeTimeout bounds the wait for answers through a tunnel.
	probeTimeout = 2 * time.Second
)

// PeerNews is what changed of a peer, of the cluster's device or a service's:
// either whether it answers, or how it is reached.
type PeerNews struct {
	// Node is the peer's name, PublicKey its key.
	Node      string
	PublicKey wgtypes.Key
	// Health says whether it answers, if Answers says that this is what changed.
	Health  wireguard.PeerHealth
	Answers bool
	// Endpoint is where it is reached now, the zero value if at none. By a relay of
	// this node that is the peer's address, too.
	Endpoint netip.AddrPort
	// Connection says how, if ways through NATs were looked for.
	Connection Connection
}

// healthWatch is what is known of the peers of all devices. Safe for concurrent
// use.
type healthWatch struct {
	mu       sync.Mutex // guards all
	trackers map[string]*healthTracker
}

// healthTracker follows the peers of one device.
type healthTracker struct {
	health    *wireguard.Health
	endpoints map[wgtypes.Key]netip.AddrPort // of the one goroutine that looks
}

// tracker returns that of a device.
func (w *healthWatch) tracker(device string) *healthTracker {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.trackers == nil {
		w.trackers = map[string]*healthTracker{}
	}
	if w.trackers[device] == nil {
		w.trackers[device] = &healthTracker{health: wireguard.NewHealth(), endpoints: map[wgtypes.Key]netip.AddrPort{}}
	}
	return w.trackers[device]
}

// keep forgets all devices but these.
func (w *healthWatch) keep(devices []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for device := range w.trackers {
		if !slices.Contains(devices, device) {
			delete(w.trackers, device)
		}
	}
}

// peers are those of a device by key, as they were last looked at.
func (w *healthWatch) peers(device string) map[wgtypes.Key]wireguard.PeerHealth {
	known := map[wgtypes.Key]wireguard.PeerHealth{}
	for _, peer := range w.tracker(device).health.Peers() {
		known[peer.PublicKey] = peer
	}
	return known
}

// watched is a device and the peers that it should have.
type watched struct {
	device *wireguard.Device
	peers  []wireguard.Peer
	// probed are the addresses of those that answer echo requests.
	probed map[wgtypes.Key]netip.Addr
}

// watchHealth looks at the peers again and again until ctx ends.
func (d *Dataplane) watchHealth(ctx context.Context, parts *parts) {
	ticker := time.NewTicker(d.cfg.HealthInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var devices []string
		for _, one := range d.watchedDevices(parts) {
			devices = append(devices, one.device.Name())
			if err := d.lookAt(ctx, parts, one); err != nil && ctx.Err() == nil && !errors.Is(err, wireguard.ErrClosed) {
				d.log.Debug("look at peers, will try again", "op", "health", "iface", one.device.Name(), "err", err)
			}
		}
		parts.health.keep(devices)
		if err := d.noteGuests(ctx, parts); err != nil && ctx.Err() == nil {
			d.log.Warn("guests not noted, will try again", "op", "health", "err", err)
		}
	}
}

// watchedDevices are the cluster's and those of services. Nodes are probed at
// their own overlay address. Others need not answer: a service that is cut off
// does not, a guest may not, and what an agent added may be anything.
func (d *Dataplane) watchedDevices(parts *parts) []watched {
	d.mu.Lock()
	nodes, peers := d.nodes, d.peers
	d.mu.Unlock()
	cluster := watched{device: parts.device, peers: slices.Concat(peers, d.guests.peers()), probed: map[wgtypes.Key]netip.Addr{}}
	isNode := make(map[string]bool, len(nodes))
	for _, node := range nodes {
		isNode[node.Name] = true
	}
	for _, peer := range peers {
		if isNode[peer.Node] && len(peer.AllowedIPs) > 0 {
			cluster.probed[peer.PublicKey] = nodeAddress(peer.AllowedIPs[0])
		}
	}
	all := []watched{cluster}
	for _, s := range parts.services.copies() {
		if s.device != nil {
			all = append(all, watched{device: s.device, peers: s.peers})
		}
	}
	return all
}

// lookAt looks at the peers of one device, and tells what changed.
func (d *Dataplane) lookAt(ctx context.Context, parts *parts, w watched) error {
	tracker := parts.health.tracker(w.device.Name())
	tracker.health.SetPeers(w.peers)
	targets := map[wgtypes.Key]netip.Addr{}
	for _, key := range tracker.health.Suspects(time.Now()) {
		if addr, probed := w.probed[key]; probed {
			targets[key] = addr
		}
	}
	var results map[wgtypes.Key]wireguard.ProbeResult
	if len(targets) > 0 {
		probing, cancel := context.WithTimeout(ctx, probeTimeout)
		var err error
		results, err = w.device.Probe(probing, targets)
		cancel()
		if err != nil {
			return err
		}
	}
	status, err := w.device.Status(ctx)
	if err != nil {
		return err
	}
	d.tellPeers(tracker.news(tracker.health.Observe(time.Now(), status.Peers, results), status.Peers))
	return nil
}

// news is what is worth telling: a peer that does not answer, one that does
// (again), and one that is reached elsewhere.
func (t *healthTracker) news(changes []wireguard.HealthChange, peers []wireguard.PeerStatus) []PeerNews {
	var news []PeerNews
	for _, change := range changes {
		silent := change.State == wireguard.Unhealthy
		heard := change.State == wireguard.Healthy && change.Before != wireguard.Idle
		if silent || heard {
			news = append(news, PeerNews{Node: change.Node, PublicKey: change.PublicKey, Health: change.PeerHealth, Answers: true})
		}
	}
	present := make(map[wgtypes.Key]bool, len(peers))
	for _, peer := range peers {
		present[peer.PublicKey] = true
		before, known := t.endpoints[peer.PublicKey]
		if !peer.Endpoint.IsValid() || before == peer.Endpoint {
			continue
		}
		t.endpoints[peer.PublicKey] = peer.Endpoint
		if known {
			news = append(news, PeerNews{Node: peer.Node, PublicKey: peer.PublicKey, Endpoint: peer.Endpoint})
		}
	}
	for key := range t.endpoints {
		if !present[key] {
			delete(t.endpoints, key)
		}
	}
	return news
}

// tellPeers logs and passes on what changed. Where peers are for which a way
// through NATs is looked for, traversal tells: it knows it sooner.
func (d *Dataplane) tellPeers(news []PeerNews) {
	for _, one := range news {
		switch {
		case !one.Answers && d.traversed(one):
			continue
		case !one.Answers:
			d.log.Info("peer is reached elsewhere", "op", "health", "node", one.Node, "endpoint", one.Endpoint)
		case one.Health.State == wireguard.Unhealthy:
			d.log.Warn("peer does not answer", "op", "health", "node", one.Node, "reason", one.Health.Reason)
		default:
			d.log.Info("peer answers", "op", "health", "node", one.Node)
		}
		if d.cfg.OnPeer != nil {
			d.cfg.OnPeer(one)
		}
	}
}

// traversed tells whether a peer's endpoint is a matter of NAT traversal. At a
// loopback address is a relay's client.
func (d *Dataplane) traversed(news PeerNews) bool {
	traversal := d.traversal()
	if traversal == nil {
		return false
	}
	_, looked := traversal.Path(news.PublicKey)
	return looked || news.Endpoint.Addr().IsLoopback()
}

// SilentNodes are the nodes that do not answer, in the order of the node set.
func (d *Dataplane) SilentNodes() []string {
	parts := d.current()
	if parts == nil {
		return nil
	}
	d.mu.Lock()
	nodes := d.nodes
	d.mu.Unlock()
	silent := map[string]bool{}
	for _, peer := range parts.health.peers(parts.device.Name()) {
		silent[peer.Node] = peer.State == wireguard.Unhealthy
	}
	var names []string
	for _, node := range nodes {
		if silent[node.Name] {
			names = append(names, node.Name)
		}
	}
	return names
}
