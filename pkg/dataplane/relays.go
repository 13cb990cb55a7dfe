package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
	// relayKept is how long an allocation stays that nothing needs any more.
	relayKept = 10 * time.Minute
)

// newRelayServer makes this node's own relay and what others are told of it, nil
// if it is none. A relay that cannot be made costs only itself.
func (d *Dataplane) newRelayServer(made *parts, onServing func()) (*nat.RelayServer, string) {
	server, offer, err := d.makeRelayServer(made, onServing)
	if err != nil {
		d.log.Error("this node relays for nobody", "op", "nat", "err", err)
		return nil, ""
	}
	return server, offer
}

func (d *Dataplane) makeRelayServer(made *parts, onServing func()) (*nat.RelayServer, string, error) {
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
		Forbidden: d.notRelayed(made), OnServing: onServing,
		Shared: func(peer wgtypes.Key) ([]byte, error) { return d.key.Shared(peer, relayPurpose) }, Log: d.log,
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

// notRelayed are the prefixes to which this node's relay passes nothing on, as the
// node set has them now.
func (d *Dataplane) notRelayed(made *parts) []netip.Prefix {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Concat(made.slices, d.cluster, d.serviceCIDRs, made.nat.Relay.Forbidden)
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

// followRelays keeps an allocation at a relay while this node needs one, until
// ctx ends.
func (t *traversal) followRelays(ctx context.Context) {
	ticker := time.NewTicker(relayLook)
	defer ticker.Stop()
	choice := newRelayChoice(t.allocate, t.plane.log)
	defer choice.end()
	var needed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-t.look:
		}
		reach := t.agent.Reach()
		if needsRelay(reach) {
			needed = time.Now()
		}
		var all []relay
		if !needed.IsZero() && time.Since(needed) < relayKept {
			all = t.relays()
		}
		choice.step(ctx, all, reach.Missed > 1) // one may be switched off
	}
}

// lookAgain has the need of a relay, and the choice of one, looked at.
func (t *traversal) lookAgain() {
	select {
	case t.look <- struct{}{}:
	default:
	}
}

// serveRelay runs this node's own relay. It is offered while it serves; who ends
// with the daemon will soon be there again.
func (t *traversal) serveRelay(ctx context.Context) error {
	err := t.server.Run(ctx)
	if ctx.Err() == nil {
		t.setServing(false)
	}
	return err
}

// setServing notes whether this node's relay serves, and passes that on.
func (t *traversal) setServing(serving bool) {
	if t.serving.Swap(serving) != serving && t.plane.cfg.OnCandidates != nil {
		t.plane.cfg.OnCandidates()
	}
}

// relayOffer is what others are told of this node's relay, empty while none serves.
func (t *traversal) relayOffer() string {
	if !t.serving.Load() {
		return ""
	}
	return t.offer
}

// allocate begins to use a relay.
func (t *traversal) allocate(ctx context.Context, r relay) (*allocation, error) {
	ctx, stop := context.WithCancel(ctx)
	a := newAllocation(r, stop)
	log := t.plane.log.With("op", "nat", "relay", r.name)
	way := &relayWay{allocation: a}
	config := nat.RelayClientConfig{
		Self: t.plane.key.PublicKey(), WireGuardPort: uint16(t.parts.port), Log: t.plane.log,
		Deliver: func(_ nat.Way, from netip.AddrPort, packet []byte) {
			a.hear()
			t.agent.Deliver(way, from, packet)
		},
	}
	if r.turn != nil {
		config.UDP, config.TCP = r.turn.Address, r.turn.Address
		config.Username, config.Credential = r.turn.Username, nat.NewSecret(string(r.turn.Credential))
	} else {
		config.UDP, config.TCP, config.TLS, config.Fingerprint = text(r.offer.UDP), text(r.offer.TCP), text(r.offer.TLS), r.offer.Fingerprint
		config.Relay = r.key
		config.Shared = func(peer wgtypes.Key) ([]byte, error) { return t.plane.key.Shared(peer, relayPurpose) }
	}
	config.Up = func(relayed netip.AddrPort) {
		a.setDown(time.Time{})
		t.agent.AddWay(way, relayed)
		log.Info("relay allocated", "address", relayed, "transport", way.Transport())
		t.lookAgain()
	}
	config.Down = func(err error) {
		if a.away() == 0 {
			log.Warn("relay is away", "err", err)
		}
		a.setDown(time.Now())
		t.agent.RemoveWay(way)
	}
	var err error
	if way.RelayClient, err = nat.NewRelayClient(config); err != nil {
		stop()
		return nil, err
	}
	go func() {
		defer close(a.done)
		if err := way.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			log.Warn("relay ended", "err", err)
		}
		t.agent.RemoveWay(way)
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
	status := &RelayStatus{
		Sessions: int(stats.Sessions.Load()), Bytes: stats.ToPeers.Load() + stats.ToClients.Load(), Refused: map[string]uint64{},
	}
	for reason, counter := range relayRefusals(stats) {
		status.Refused[reason] = counter.Load()
	}
	return status
}

// relayRefusals are the counters of what a relay refuses, by reason.
func relayRefusals(stats *nat.RelayStats) map[string]*atomic.Uint64 {
	return map[string]*atomic.Uint64{
		"malformed":      &stats.Malformed,
		"oversized":      &stats.Oversized,
		"expired":        &stats.Expired,
		"unknown":        &stats.Unknown,
		"wrong_password": &stats.WrongPassword,
		"replayed":       &stats.Replayed,
		"hasty":          &stats.Hasty,
		"amplifying":     &stats.Amplifying,
		"full":           &stats.Full,
		"unsupported":    &stats.Unsupported,
		"connections":    &stats.Connections,
		"forbidden_peer": &stats.ForbiddenPeer,
		"forbidden_self": &stats.ForbiddenSelf,
		"stranger":       &stats.Stranger,
		"foreign":        &stats.Foreign,
		"throttled":      &stats.Throttled,
	}
}

// RelayOffer says how this node's relay is reached, for others to know; it is
// empty while none serves. Config.OnCandidates tells when it changes.
func (d *Dataplane) RelayOffer() string {
	running := d.current()
	if running == nil || running.traversal == nil {
		return ""
	}
	return running.traversal.relayOffer()
}
