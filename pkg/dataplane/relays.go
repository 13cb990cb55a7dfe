package dataplane

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
)

const (
	// certificatePurpose tells the seed of the relay's certificate from other secrets.
	certificatePurpose = "zlayer relay certificate 1"
	// relayLook is how often it is decided whether this node needs a relay.
	relayLook = 2 * time.Second
	// relayPatience is how long a relay may be away before another is tried.
	relayPatience = 15 * time.Second
	// relayKept is how long an allocation stays that nothing needs any more.
	relayKept = 10 * time.Minute
)

// newRelayServer makes this node's own relay and what others are told of it, nil
// if it is none. A relay that cannot be made costs only itself.
func (d *Dataplane) newRelayServer(made *parts) (*nat.RelayServer, string) {
	server, offer, err := d.makeRelayServer(made)
	if err != nil {
		d.log.Error("this node relays for nobody", "op", "nat", "err", err)
		return nil, ""
	}
	return server, offer
}

func (d *Dataplane) makeRelayServer(made *parts) (*nat.RelayServer, string, error) {
	relay := made.nat.Relay
	if relay == nil {
		return nil, "", nil
	}
	seed, err := d.key.Shared(d.key.PublicKey(), certificatePurpose) // which nobody else can compute
	if err != nil {
		return nil, "", fmt.Errorf("seed of the relay's certificate: %w", err)
	}
	certificate, err := nat.NewRelayCertificate(seed)
	if err != nil {
		return nil, "", err
	}
	fingerprint, err := nat.RelayFingerprint(certificate)
	if err != nil {
		return nil, "", err
	}
	server, err := nat.NewRelayServer(nat.RelayConfig{
		External: []netip.Addr{relay.External.Addr()}, ListenPort: relay.ListenPort, TCPPort: relay.ListenPort, TLSPort: relay.TLSPort,
		Certificate: &certificate, MaxSessions: relay.MaxSessions, WireGuardPort: uint16(made.port),
		Forbidden: slices.Concat(made.slices, d.clusterPrefixes()),
		Shared:    func(peer wgtypes.Key) ([]byte, error) { return d.key.Shared(peer, relayPurpose) }, Log: d.log,
	})
	if err != nil {
		return nil, "", err
	}
	offer := nat.RelayOffer{UDP: relay.External, TCP: relay.External}
	if relay.TLSPort != 0 {
		offer.TLS, offer.Fingerprint = netip.AddrPortFrom(relay.External.Addr(), relay.TLSPort), fingerprint
	}
	return server, offer.String(), nil
}

// relayPeers are the nodes that may use this node's relay.
func relayPeers(nodes map[string]Node, told []nat.Peer) []nat.RelayPeer {
	peers := make([]nat.RelayPeer, 0, len(told))
	for _, peer := range told {
		one := nat.RelayPeer{Key: peer.Key, Prefixes: nodes[peer.Node].Slices}
		if peer.Endpoint.IsValid() {
			one.Addrs = append(one.Addrs, peer.Endpoint)
		}
		for _, candidate := range peer.Candidates {
			one.Addrs = append(one.Addrs, candidate.Addr)
		}
		peers = append(peers, one)
	}
	return peers
}

// relay is one that this node may use.
type relay struct {
	name  string
	offer nat.RelayOffer
	key   wgtypes.Key // of a node
	turn  *TURNServer // of none
}

// relays are those that this node may use, in an order of its own, so that
// nodes spread over them.
func (t *traversal) relays() []relay {
	var all []relay
	nodes := t.plane.nodesByName()
	for _, peer := range t.plane.currentPeers() {
		offer, err := nat.ParseRelayOffer(nodes[peer.Node].Relay)
		if err == nil {
			all = append(all, relay{name: "node " + peer.Node, offer: offer, key: peer.PublicKey})
		}
	}
	own := t.plane.cfg.Node
	slices.SortFunc(all, func(a, b relay) int { return strings.Compare(rank(own, a.name), rank(own, b.name)) })
	for i := range t.parts.nat.TURNServers {
		server := &t.parts.nat.TURNServers[i]
		all = append(all, relay{name: server.Address, turn: server})
	}
	return all
}

// rank orders the relays for a node (rendezvous hashing).
func rank(node, relay string) string {
	sum := sha256.Sum256([]byte(node + "\x00" + relay))
	return string(sum[:])
}

// needsRelay tells whether peers cannot be reached, or will not be, without a
// relay of this node: it is the translator in front of a node that keeps others out,
// so one without leaves it to them, unless it reaches nobody. A peer that nobody
// sends to, and that does not look for a path either, may well be switched off.
func needsRelay(status nat.Status) bool {
	if status.Mapping == nat.Symmetric {
		return true
	}
	reached, missed := 0, 0
	for _, peer := range status.Peers {
		switch peer.Path {
		case nat.Unreached:
			if peer.Missed {
				missed++
			}
		case nat.ByRelay:
			return true
		default:
			reached++
		}
	}
	return missed > 0 && (status.Translated || reached == 0)
}

// allocation is this node's place at a relay.
type allocation struct {
	relay relay
	stop  context.CancelFunc
	done  chan struct{}

	mu   sync.Mutex // guards down
	down time.Time  // since when there is none; zero while there is one
}

func (a *allocation) setDown(since time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down.IsZero() || since.IsZero() {
		a.down = since
	}
}

// away is how long the relay has not been there.
func (a *allocation) away() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down.IsZero() {
		return 0
	}
	return time.Since(a.down)
}

func (a *allocation) end() {
	a.stop()
	<-a.done
}

// followRelays keeps an allocation at a relay while this node needs one, until
// ctx ends.
func (t *traversal) followRelays(ctx context.Context) {
	ticker := time.NewTicker(relayLook)
	defer ticker.Stop()
	var current *allocation
	defer func() {
		if current != nil {
			current.end()
		}
	}()
	var needed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-t.look:
		}
		if needsRelay(t.agent.Status()) {
			needed = time.Now()
		}
		current = t.nextAllocation(ctx, current, !needed.IsZero() && time.Since(needed) < relayKept)
	}
}

// nextAllocation returns the allocation to have from now on: the current one while
// its relay is offered and answers.
func (t *traversal) nextAllocation(ctx context.Context, current *allocation, needed bool) *allocation {
	var all []relay
	if needed {
		all = t.relays()
	}
	at := -1
	if current != nil {
		at = slices.IndexFunc(all, func(r relay) bool { return r == current.relay })
		if at >= 0 && (current.away() < relayPatience || len(all) == 1) {
			return current
		}
		current.end()
	}
	if len(all) == 0 {
		return nil
	}
	next, err := t.allocate(ctx, all[(at+1)%len(all)])
	if err != nil {
		t.plane.log.Warn("relay not used", "op", "nat", "relay", all[(at+1)%len(all)].name, "err", err)
		return nil
	}
	return next
}

// allocate begins to use a relay.
func (t *traversal) allocate(ctx context.Context, r relay) (*allocation, error) {
	ctx, stop := context.WithCancel(ctx)
	a := &allocation{relay: r, stop: stop, done: make(chan struct{}), down: time.Now()}
	log := t.plane.log.With("op", "nat", "relay", r.name)
	config := nat.RelayClientConfig{
		Self: t.plane.key.PublicKey(), WireGuardPort: uint16(t.parts.port), Deliver: t.agent.Deliver, Log: t.plane.log,
	}
	if r.turn != nil {
		config.UDP, config.TCP = r.turn.Address, r.turn.Address
		config.Username, config.Credential = r.turn.Username, nat.NewSecret(string(r.turn.Credential))
	} else {
		config.UDP, config.TCP, config.TLS, config.Fingerprint = text(r.offer.UDP), text(r.offer.TCP), text(r.offer.TLS), r.offer.Fingerprint
		config.Relay = r.key
		config.Shared = func(peer wgtypes.Key) ([]byte, error) { return t.plane.key.Shared(peer, relayPurpose) }
	}
	var client *nat.RelayClient
	config.Up = func(relayed netip.AddrPort) {
		a.setDown(time.Time{})
		t.agent.AddWay(client, relayed)
		log.Info("relay allocated", "address", relayed, "transport", client.Transport())
	}
	config.Down = func(err error) {
		if a.away() == 0 {
			log.Warn("relay is away", "err", err)
		}
		a.setDown(time.Now())
		t.agent.RemoveWay(client)
	}
	var err error
	if client, err = nat.NewRelayClient(config); err != nil {
		stop()
		return nil, err
	}
	go func() {
		defer close(a.done)
		if err := client.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			log.Warn("relay ended", "err", err)
		}
		t.agent.RemoveWay(client)
	}()
	return a, nil
}

// text is an address in words, empty for none.
func text(addr netip.AddrPort) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}

// relayStatus sums up what this node's relay counts.
func relayStatus(stats *nat.RelayStats) *RelayStatus {
	refused := []*atomic.Uint64{
		&stats.Malformed, &stats.Oversized, &stats.Expired, &stats.Unknown, &stats.WrongPassword, &stats.Replayed, &stats.Hasty, &stats.Amplifying,
		&stats.Full, &stats.Unsupported, &stats.Connections, &stats.ForbiddenPeer, &stats.ForbiddenSelf, &stats.Stranger, &stats.Foreign, &stats.Throttled,
	}
	status := &RelayStatus{Sessions: int(stats.Sessions.Load()), Bytes: stats.ToPeers.Load() + stats.ToClients.Load()}
	for _, counter := range refused {
		status.Refused += counter.Load()
	}
	return status
}

// RelayOffer says how this node's relay is reached, for others to know; it is
// empty if there is none, or not yet.
func (d *Dataplane) RelayOffer() string {
	running := d.current()
	if running == nil || running.traversal == nil {
		return ""
	}
	return running.traversal.offer
}
