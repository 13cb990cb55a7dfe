package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

var (
	// ErrUnknownPeer means that AddPeer added no peer of that key.
	ErrUnknownPeer = errors.New("no such peer was added")
	// ErrUnknownService means that the service has no device on this node.
	ErrUnknownService = errors.New("no such dedicated service")
)

// AddedPeer is a peer that is none of the node set's. It stays, over restarts,
// until RemovePeer.
type AddedPeer struct {
	// Service is the dedicated service whose device it is a peer of; empty for the
	// cluster's.
	Service string `json:"service,omitempty"`
	// PublicKey tells peers of one device apart, base64.
	PublicKey string `json:"publicKey"`
	// Endpoint is HOST:PORT, empty if the peer has to begin.
	Endpoint string `json:"endpoint,omitempty"`
	// AllowedIPs are what it may send from and is sent, parts of the cluster.
	AllowedIPs []netip.Prefix `json:"allowedIPs"`
	// Keepalive is in nanoseconds, zero for none.
	Keepalive time.Duration `json:"keepalive,omitempty"`
	// Candidates and Relay are as a Node's, for the cluster's device alone. A peer
	// without either is left to WireGuard.
	Candidates []string `json:"candidates,omitempty"`
	Relay      string   `json:"relay,omitempty"`
}

func (p AddedPeer) recordName() string { return p.PublicKey + " " + p.Service }

// node is the peer as the planner takes it, behind all nodes.
func (p AddedPeer) node() Node {
	return Node{
		Name: addedName(p.PublicKey), PublicKey: p.PublicKey, Endpoint: p.Endpoint, Slices: p.AllowedIPs, Keepalive: p.Keepalive,
		Candidates: p.Candidates, Relay: p.Relay,
	}
}

// equal tells whether both say the same.
func (p AddedPeer) equal(o AddedPeer) bool {
	return p.recordName() == o.recordName() && p.node().Equal(o.node())
}

// maxAddedCandidates bounds what is read of a peer's candidates. A node may show
// more in its status than it tells others.
const maxAddedCandidates = 4 * nat.MaxCandidates

// setWays reads what a peer says of ways through NATs, and keeps as much as a node
// of the set may say. Packets to an address in the overlay would wind up in the
// tunnel again.
func (p *AddedPeer) setWays(cluster []netip.Prefix) error {
	if p.Service != "" && (len(p.Candidates) > 0 || p.Relay != "") {
		return fmt.Errorf("candidates, relay: a service's device is not taken through NATs: %w", ErrInvalid)
	}
	if len(p.Candidates) > maxAddedCandidates {
		return fmt.Errorf("candidates: %d of them, more than %d: %w", len(p.Candidates), maxAddedCandidates, ErrInvalid)
	}
	var candidates []nat.Candidate
	for i, text := range p.Candidates {
		candidate, err := nat.ParseCandidate(text)
		inside := func(prefix netip.Prefix) bool { return prefix.Contains(candidate.Addr.Addr()) }
		if err == nil && slices.ContainsFunc(cluster, inside) {
			err = fmt.Errorf("candidate %q lies in the overlay", text)
		}
		if err != nil {
			return fmt.Errorf("candidates: item %d: %w: %w", i, err, ErrInvalid)
		}
		candidates = append(candidates, candidate)
	}
	p.Candidates = nil
	if text := nat.FormatCandidates(candidates); text != "" {
		p.Candidates = strings.Split(text, ",")
	}
	if p.Relay != "" {
		if _, err := nat.ParseRelayOffer(p.Relay); err != nil {
			return fmt.Errorf("relay: %w: %w", err, ErrInvalid)
		}
	}
	return nil
}

// addedName names a peer that no node set names. No node's name has a space.
func addedName(publicKey string) string { return "peer " + publicKey }

// addedPeers are those of AddPeer. Safe for concurrent use.
type addedPeers struct {
	store records[AddedPeer]

	changing sync.Mutex // serializes changes; taken before all other locks

	mu  sync.Mutex // guards all
	all []AddedPeer
}

// loadAdded returns what an earlier run left, with the error of what could not
// be read.
func loadAdded(stateDir string) (*addedPeers, error) {
	a := &addedPeers{store: records[AddedPeer]{filepath.Join(stateDir, peersDir)}}
	var err error
	a.all, err = a.store.load()
	return a, err
}

// of are the peers of a service's device, or the cluster's. One that has lost
// all its addresses is none until it gets another.
func (a *addedPeers) of(service string) []Node {
	a.mu.Lock()
	defer a.mu.Unlock()
	var nodes []Node
	for _, peer := range a.all {
		if peer.Service == service && len(peer.AllowedIPs) > 0 {
			nodes = append(nodes, peer.node())
		}
	}
	return nodes
}

func (a *addedPeers) get(service, publicKey string) (AddedPeer, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, peer := range a.all {
		if peer.Service == service && peer.PublicKey == publicKey {
			return peer, true
		}
	}
	return AddedPeer{}, false
}

// set puts a peer in the place of the one that has its key, or takes that out.
func (a *addedPeers) set(peer AddedPeer, keep bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	write := func() error { return a.store.put(peer) }
	if !keep {
		write = func() error { return a.store.remove(peer.recordName()) }
	}
	if err := write(); err != nil {
		return err
	}
	a.all = slices.DeleteFunc(a.all, func(p AddedPeer) bool { return p.recordName() == peer.recordName() })
	if keep {
		a.all = append(a.all, peer)
	}
	return nil
}

// AddPeer adds a peer, or replaces the one with its key. A peer that the device
// cannot have beside the nodes' is refused, and nothing changes.
//
// Errors: ErrNotReady, ErrInvalid, ErrConflict for a key or addresses that a
// node or another peer has, ErrUnknownService.
func (d *Dataplane) AddPeer(ctx context.Context, peer AddedPeer) error {
	if len(peer.AllowedIPs) == 0 {
		return fmt.Errorf("add peer %s: it has no allowed IP: %w", peer.PublicKey, ErrInvalid)
	}
	if err := peer.setWays(d.clusterPrefixes()); err != nil {
		return fmt.Errorf("add peer %s: %w", peer.PublicKey, err)
	}
	d.added.changing.Lock()
	defer d.added.changing.Unlock()
	return d.addPeer(ctx, peer)
}

// addPeer is AddPeer for whoever holds d.added.changing.
func (d *Dataplane) addPeer(ctx context.Context, peer AddedPeer) error {
	before, known := d.added.get(peer.Service, peer.PublicKey)
	if known && before.equal(peer) {
		return nil
	}
	if err := d.changeAdded(ctx, peer, true); err != nil {
		return fmt.Errorf("add peer %s: %w", peer.PublicKey, err)
	}
	return nil
}

// RemovePeer removes a peer of AddPeer. An unknown one is none to remove; one
// that the node set names stays, with ErrConflict.
func (d *Dataplane) RemovePeer(ctx context.Context, service, publicKey string) error {
	d.added.changing.Lock()
	defer d.added.changing.Unlock()
	peer, known := d.added.get(service, publicKey)
	if !known && d.isPeer(service, publicKey) {
		return fmt.Errorf("remove peer %s: it is a node's, and goes with that: %w", publicKey, ErrConflict)
	}
	if !known {
		return nil
	}
	if err := d.changeAdded(ctx, peer, false); err != nil {
		return fmt.Errorf("remove peer %s: %w", publicKey, err)
	}
	return nil
}

// isPeer tells whether a service's device, or the cluster's, has a peer of that
// key.
func (d *Dataplane) isPeer(service, publicKey string) bool {
	is := func(p wireguard.Peer) bool { return p.PublicKey.String() == publicKey }
	if service == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		return slices.ContainsFunc(d.peers, is)
	}
	parts := d.current()
	if parts == nil {
		return false
	}
	found := false
	parts.services.change(func() {
		s := parts.services.all[service]
		found = s != nil && slices.ContainsFunc(s.peers, is)
	})
	return found
}

// SetAllowedIP adds a prefix to a peer of AddPeer, or takes it away. What is so
// already is fine. A peer without any stays known, but is let in no more.
//
// Errors: those of AddPeer, and ErrUnknownPeer.
func (d *Dataplane) SetAllowedIP(ctx context.Context, service, publicKey string, prefix netip.Prefix, allowed bool) error {
	d.added.changing.Lock()
	defer d.added.changing.Unlock()
	peer, known := d.added.get(service, publicKey)
	if !known && !allowed {
		return nil
	}
	if !known {
		return fmt.Errorf("add allowed IP %s to peer %s: %w", prefix, publicKey, ErrUnknownPeer)
	}
	if slices.Contains(peer.AllowedIPs, prefix) == allowed {
		return nil
	}
	peer.AllowedIPs = slices.DeleteFunc(slices.Clone(peer.AllowedIPs), func(p netip.Prefix) bool { return p == prefix })
	if allowed {
		peer.AllowedIPs = append(peer.AllowedIPs, prefix)
	}
	return d.addPeer(ctx, peer)
}

// changeAdded tries a change on the plan, keeps it, and applies it.
func (d *Dataplane) changeAdded(ctx context.Context, peer AddedPeer, keep bool) error {
	if peer.Service == "" {
		return d.changeClusterPeer(ctx, peer, keep)
	}
	return d.withService(ctx, peer.Service, func(parts *parts) error {
		s := parts.services.get(peer.Service)
		gone := s == nil || s.device == nil
		if gone && !keep {
			return d.added.set(peer, false)
		}
		if gone {
			return fmt.Errorf("service %s has no device on this node: %w", shorten(peer.Service), ErrUnknownService)
		}
		plan, _ := d.servicePlan(s, &peer)
		if err := d.keepAdded(plan, peer, keep); err != nil {
			return err
		}
		return d.setServicePeers(ctx, parts, s)
	})
}

func (d *Dataplane) changeClusterPeer(ctx context.Context, peer AddedPeer, keep bool) error {
	unlock, err := d.setNodes.take(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	running := d.current()
	if running == nil {
		return fmt.Errorf("%s: %w", d.whyWaiting(), ErrNotReady)
	}
	if err := d.keepAdded(d.clusterPlan(&peer), peer, keep); err != nil {
		return err
	}
	return d.setPeers(ctx, running, d.replan())
}

// keepAdded keeps a peer that the plan takes, or forgets it.
func (d *Dataplane) keepAdded(plan wireguard.PlanInput, peer AddedPeer, keep bool) error {
	if !keep {
		return d.added.set(peer, false)
	}
	_, problems := wireguard.Plan(plan)
	for _, problem := range problems {
		if problem.Node != addedName(peer.PublicKey) {
			continue
		}
		reason := ErrInvalid
		if errors.Is(problem.Err, wireguard.ErrDuplicateKey) || errors.Is(problem.Err, wireguard.ErrOverlappingSlice) {
			reason = ErrConflict
		}
		return fmt.Errorf("%w: %w", problem.Err, reason)
	}
	return d.added.set(peer, true)
}

// behind are the nodes of a device and what AddPeer added to it, as if peer were
// among that already.
func (a *addedPeers) behind(nodes []Node, service string, peer *AddedPeer) []Node {
	all := slices.Concat(nodes, a.of(service))
	if peer == nil {
		return all
	}
	all = slices.DeleteFunc(all, func(n Node) bool { return n.Name == addedName(peer.PublicKey) })
	if len(peer.AllowedIPs) > 0 {
		all = append(all, peer.node())
	}
	return all
}
