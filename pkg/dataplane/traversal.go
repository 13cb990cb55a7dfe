package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

const (
	// natPurpose tells the secrets of two nodes for NAT traversal from others.
	natPurpose = "zlayer nat 1"
	// relayPurpose does so for the use of relays.
	relayPurpose = "zlayer relay 1"
	// natRetry is the pause after a part of NAT traversal has ended.
	natRetry = 10 * time.Second
	// rouseTime bounds the wait for answers to what only has to be sent.
	rouseTime = 500 * time.Millisecond
)

// traversal has the cluster's device reach peers through NATs: it joins that
// device, the node set and a nat.Agent, which decides.
type traversal struct {
	plane  *Dataplane
	stun   hearing
	parts  *parts
	agent  *nat.Agent
	server *nat.RelayServer // nil if this node relays for nobody
	offer  string           // what others are told of it while it serves
	look   chan struct{}    // whether a relay is needed may have changed

	serving atomic.Bool // the own relay

	mu     sync.Mutex // guards the fields below
	paths  map[wgtypes.Key]netip.AddrPort
	since  map[nat.Candidate]time.Time
	offers []relay // of peers
	// published is where the node set said that peers are, when it was last told.
	published map[wgtypes.Key]published
}

// published is where a peer is as the node set says, by address or by name.
type published struct {
	endpoint netip.AddrPort
	host     string
}

// newTraversal returns nil if ways through NATs are not looked for. The device of
// made is opened afterwards, and hands STUN packets to it.
func (d *Dataplane) newTraversal(made *parts) (*traversal, error) {
	if !made.nat.Enabled {
		return nil, nil
	}
	t := &traversal{
		plane: d, parts: made, look: make(chan struct{}, 1), stun: newHearing(),
		paths: map[wgtypes.Key]netip.AddrPort{}, since: map[nat.Candidate]time.Time{},
	}
	var err error
	t.agent, err = nat.New(nat.Options{
		Config: nat.Config{
			STUNServers: made.nat.STUNServers, HolePunchTimeout: made.nat.HolePunchTimeout,
			RefreshInterval: made.nat.STUNRefresh, MaxCandidatePairs: made.nat.MaxCandidatePairs,
		},
		Key:    d.key.PublicKey(),
		Shared: t.shared, Direct: t, Device: t,
		Hosts:      func() ([]netip.Addr, error) { return nat.HostAddrs(d.clusterPrefixes()) },
		Overlay:    d.clusterPrefixes,
		ListenPort: func() int { return made.port },
		Published: func() netip.AddrPort {
			own, _ := netip.ParseAddrPort(d.ownEndpoint()) // a host name is of both families
			return own
		},
		Resolve: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
		OnCandidates: t.noteCandidates,
		OnPath:       t.tellPath,
		OnListen:     t.stun.want,
		Log:          d.log,
	})
	if err != nil {
		return nil, err
	}
	t.server, t.offer = d.newRelayServer(made, func() { t.setServing(true) })
	return t, nil
}

// shared is the secret of this node and a peer.
func (t *traversal) shared(peer wgtypes.Key) ([]byte, error) {
	return t.plane.key.Shared(peer, natPurpose)
}

// onSTUN is what the device calls, nil without a traversal.
func (t *traversal) onSTUN() func(at netip.Addr, from netip.AddrPort, packet []byte) {
	if t == nil {
		return nil
	}
	return func(at netip.Addr, from netip.AddrPort, packet []byte) { t.agent.DeliverAt(t, at, from, packet) }
}

// run looks for ways until ctx ends.
func (t *traversal) run(ctx context.Context) error {
	t.hearServers(ctx)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.agent.Run(ctx) })
	group.Go(func() error { t.followHearing(ctx); return nil })
	group.Go(func() error { t.followRelays(ctx); return nil })
	t.again(ctx, group, "network watch", func(ctx context.Context) error { return nat.WatchNetwork(ctx, t.agent.Changed) })
	if t.server != nil {
		t.again(ctx, group, "relay", t.serveRelay)
	}
	return group.Wait()
}

// again runs a part without which the rest goes on, and tries anew when it ends
// before ctx does.
func (t *traversal) again(ctx context.Context, group *errgroup.Group, what string, run func(context.Context) error) {
	group.Go(func() error {
		for {
			err := run(ctx)
			if ctx.Err() != nil {
				return nil
			}
			t.plane.log.Warn("part of NAT traversal ended, will try again", "op", "nat", "part", what, "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(natRetry):
			}
		}
	})
}

// Send implements nat.Way: by the device's own port.
func (t *traversal) Send(packet []byte, to netip.AddrPort) error {
	return t.SendFrom(packet, netip.Addr{}, to)
}

// SendFrom implements nat.Homed.
func (t *traversal) SendFrom(packet []byte, from netip.Addr, to netip.AddrPort) error {
	return t.parts.device.SendSTUN(packet, from, to)
}

// Endpoint implements nat.Way.
func (t *traversal) Endpoint(to netip.AddrPort) (netip.AddrPort, error) { return to, nil }

// Remote implements nat.Way.
func (t *traversal) Remote(endpoint netip.AddrPort) (netip.AddrPort, bool) {
	return endpoint, endpoint.IsValid() && !endpoint.Addr().IsLoopback()
}

// Peers implements nat.Device.
func (t *traversal) Peers(ctx context.Context) ([]nat.PeerState, error) {
	status, err := t.parts.device.Status(ctx)
	if err != nil {
		return nil, err
	}
	states := make([]nat.PeerState, len(status.Peers))
	for i, peer := range status.Peers {
		states[i] = nat.PeerState{
			Key: peer.PublicKey, Endpoint: peer.Endpoint, LastHandshake: peer.LastHandshake,
			RxBytes: peer.RxBytes, TxBytes: peer.TxBytes,
		}
	}
	return states, nil
}

// Use implements nat.Device.
func (t *traversal) Use(ctx context.Context, endpoints map[wgtypes.Key]netip.AddrPort) error {
	return t.point(ctx, endpoints, t.parts.device.Redirect)
}

// Hold implements nat.Device.
func (t *traversal) Hold(ctx context.Context, endpoints map[wgtypes.Key]netip.AddrPort) error {
	return t.point(ctx, endpoints, t.parts.device.Hold)
}

// point notes where peers are, and tells the device. If that fails, nothing has
// changed. The MTU follows at once: another way may be by the other family, over
// which packets that were full before do not fit.
func (t *traversal) point(ctx context.Context, endpoints map[wgtypes.Key]netip.AddrPort, tell func(context.Context, []wireguard.Peer) error) error {
	unlock, err := t.plane.setNodes.take(ctx)
	if err != nil {
		return fmt.Errorf("point to peers: %w", err)
	}
	defer unlock()
	t.mu.Lock()
	before := maps.Clone(t.paths)
	for key, endpoint := range endpoints {
		if endpoint.IsValid() {
			t.paths[key] = endpoint
		} else {
			delete(t.paths, key)
		}
	}
	var peers []wireguard.Peer
	for _, peer := range t.plane.currentPeers() {
		if _, named := endpoints[peer.PublicKey]; named {
			peers = append(peers, t.steered(peer))
		}
	}
	t.mu.Unlock()
	if err := tell(ctx, peers); err != nil {
		t.mu.Lock()
		t.paths = before
		t.mu.Unlock()
		return err
	}
	if err := t.plane.followMTU(ctx, t.parts); err != nil && ctx.Err() == nil {
		t.plane.log.Warn("MTU does not follow the paths to peers, will try again", "op", "nat", "err", err)
	}
	return nil
}

// steered is a peer with the endpoint that was found. The caller holds mu.
func (t *traversal) steered(peer wireguard.Peer) wireguard.Peer {
	if endpoint, found := t.paths[peer.PublicKey]; found {
		peer.Endpoint, peer.Host = endpoint, ""
	}
	return peer
}

// Rouse implements nat.Device.
func (t *traversal) Rouse(ctx context.Context, peers []wgtypes.Key) {
	targets := map[wgtypes.Key]netip.Addr{}
	for _, peer := range t.plane.currentPeers() {
		if slices.Contains(peers, peer.PublicKey) && len(peer.AllowedIPs) > 0 {
			targets[peer.PublicKey] = nodeAddress(peer.AllowedIPs[0])
		}
	}
	ctx, cancel := context.WithTimeout(ctx, rouseTime)
	defer cancel()
	if _, err := t.parts.device.Probe(ctx, targets); err != nil && !errors.Is(err, wireguard.ErrClosed) && ctx.Err() == nil {
		t.plane.log.Debug("rouse peers", "op", "nat", "err", err)
	}
}

// steer returns peers with the endpoints that were found, and tells the agent
// of all that may need a way. The caller holds Dataplane.setNodes.
func (t *traversal) steer(peers []wireguard.Peer) []wireguard.Peer {
	if t == nil {
		return peers
	}
	nodes, overlay := t.plane.nodesByName(), t.plane.clusterPrefixes()
	told := make([]nat.Peer, 0, len(peers))
	steered := slices.Clone(peers)
	said := make(map[wgtypes.Key]published, len(peers))
	t.mu.Lock()
	t.offers = nil
	for i := range steered {
		peer := &steered[i]
		said[peer.PublicKey] = published{peer.Endpoint, peer.Host}
		if before, known := t.published[peer.PublicKey]; known && before != said[peer.PublicKey] {
			delete(t.paths, peer.PublicKey) // it moved, so what was found may well be void
		}
		if offer, err := nat.ParseRelayOffer(nodes[peer.Node].Relay); err == nil && !insideAny(overlay, offer) {
			t.offers = append(t.offers, relay{name: peer.Node, offer: offer, key: peer.PublicKey})
		}
		if node, is := nodes[peer.Node]; !is || !mayNeedWay(node) {
			delete(t.paths, peer.PublicKey) // nobody looks after it any more
		} else {
			told = append(told, nat.Peer{Key: peer.PublicKey, Node: peer.Node, Endpoint: peer.Endpoint, Candidates: candidatesOf(node)})
		}
		*peer = t.steered(*peer)
	}
	t.published = said
	maps.DeleteFunc(t.paths, func(key wgtypes.Key, _ netip.AddrPort) bool { _, known := said[key]; return !known })
	t.mu.Unlock()
	t.agent.SetPeers(told)
	if t.server != nil {
		t.server.SetForbidden(t.plane.notRelayed(t.parts))
		t.server.SetPeers(relayPeers(nodes, told))
	}
	return steered
}

// relays are those that this node may use, best first.
func (t *traversal) relays() []relay {
	t.mu.Lock()
	defer t.mu.Unlock()
	return relaysOf(t.plane.cfg.Node, t.offers, t.parts.nat.TURNServers)
}

// mayNeedWay leaves out peers that AddPeer added without a word of ways: they may
// be anything.
func mayNeedWay(node Node) bool {
	return node.Name != addedName(node.PublicKey) || len(node.Candidates) > 0 || node.Relay != ""
}

// candidatesOf leaves out those that make no sense: whoever read them has told
// of that.
func candidatesOf(node Node) []nat.Candidate {
	var candidates []nat.Candidate
	for _, text := range node.Candidates {
		if candidate, err := nat.ParseCandidate(text); err == nil {
			candidates = append(candidates, candidate)
		}
	}
	nat.Sort(candidates)
	return candidates
}

// noteCandidates remembers since when this node's candidates are known, and
// passes on that they changed.
func (t *traversal) noteCandidates() {
	now := time.Now()
	own := t.agent.Candidates()
	t.mu.Lock()
	for _, candidate := range own {
		t.since[candidate] = cmp.Or(t.since[candidate], now)
	}
	maps.DeleteFunc(t.since, func(candidate nat.Candidate, _ time.Time) bool { return !slices.Contains(own, candidate) })
	t.mu.Unlock()
	if t.plane.cfg.OnCandidates != nil {
		t.plane.cfg.OnCandidates()
	}
}

// tellPath logs and passes on how a peer is reached from now on.
func (t *traversal) tellPath(news nat.PathNews) {
	t.plane.log.Info("path to peer", "op", "nat", "node", news.Node, "path", news.Path, "remote", news.Remote, "before", news.Was)
	if t.plane.cfg.OnPeer != nil {
		t.plane.cfg.OnPeer(PeerNews{Node: news.Node, PublicKey: news.Key, Endpoint: news.Remote, Connection: connectionOf(news.Path)})
	}
	t.lookAgain()
}

// Tick implements natTraversal.
func (t *traversal) Tick(ctx context.Context) error { return t.agent.Tick(ctx) }

// Status implements natTraversal.
func (t *traversal) Status() NATStatus {
	known := t.agent.Status()
	status := NATStatus{Enabled: true, Checks: NATChecks{Sent: known.Sent, Answered: known.Answered, Refused: known.Refused, Dropped: known.Dropped}}
	if known.Mapping != nat.MappingUnknown {
		status.Mapping = string(known.Mapping)
	}
	t.mu.Lock()
	for _, candidate := range known.Candidates {
		status.Candidates = append(status.Candidates, NATCandidate{Candidate: candidate, Since: t.since[candidate]})
	}
	t.mu.Unlock()
	for _, peer := range known.Peers {
		if path, looked := pathOf(peer); looked {
			status.Peers = append(status.Peers, path)
		}
	}
	if t.server != nil {
		status.Relay = relayStatus(t.server.Stats())
		status.Relay.Offer = t.relayOffer()
	}
	slices.SortFunc(status.Peers, func(a, b NATPath) int { return cmp.Compare(a.Node, b.Node) })
	return status
}

// Candidates implements natTraversal.
func (t *traversal) Candidates() []nat.Candidate { return t.agent.Candidates() }

// Path implements natTraversal.
func (t *traversal) Path(peer wgtypes.Key) (NATPath, bool) { return pathOf(t.agent.Path(peer)) }

// pathOf translates the way to a peer, false if none was looked for.
func pathOf(peer nat.PeerStatus) (NATPath, bool) {
	if peer.Path == "" || peer.Path == nat.Direct && peer.RTT == 0 {
		return NATPath{}, false
	}
	return NATPath{Node: peer.Node, PublicKey: peer.Key, Connection: connectionOf(peer.Path), Endpoint: peer.Remote, RTT: peer.RTT, Since: peer.Since}, true
}

// connectionOf is empty for a peer that is not reached.
func connectionOf(path nat.PathKind) Connection {
	if path == nat.Unreached {
		return ""
	}
	return Connection(path)
}

// currentPeers are those of the cluster's device, without guests.
func (d *Dataplane) currentPeers() []wireguard.Peer {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.peers
}

// nodesByName are those of the node set, and what AddPeer added to the cluster's
// device.
func (d *Dataplane) nodesByName() map[string]Node {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.added.behind(d.nodes, "", nil)
	nodes := make(map[string]Node, len(all))
	for _, node := range all {
		nodes[node.Name] = node
	}
	return nodes
}
