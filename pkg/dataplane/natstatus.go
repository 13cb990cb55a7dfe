package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
)

// NATStatus is what is known of ways through NATs. The counters begin with the
// process.
type NATStatus struct {
	// Enabled tells whether ways are looked for. Without, all below is zero.
	Enabled bool
	// Mapping is "endpoint-independent" or "symmetric", empty while it is not known.
	Mapping string
	// Candidates are those of this node, best first.
	Candidates []NATCandidate
	// Peers are those for which a way was looked for, in the order of their names.
	Peers []NATPath
	// Checks counts the packets by which ways are tried.
	Checks NATChecks
	// Relay is this node's own relay, nil if it relays for nobody.
	Relay *RelayStatus
}

// NATCandidate is an address at which this node may be reached.
type NATCandidate struct {
	Candidate nat.Candidate
	// Since is when it was found.
	Since time.Time
}

// Connection says how a peer is reached.
type Connection string

// The kinds of connections.
const (
	// Direct needs nobody's help.
	Direct Connection = "direct"
	// HolePunched goes through mappings that both ends opened.
	HolePunched Connection = "hole-punched"
	// Relayed goes by a relay.
	Relayed Connection = "relayed"
)

// Connections are all kinds.
func Connections() []Connection { return []Connection{Direct, HolePunched, Relayed} }

// NATPath is the way to one peer of the cluster's device.
type NATPath struct {
	// Node is the peer's name, PublicKey its key.
	Node      string
	PublicKey wgtypes.Key
	// Connection is empty while there is no way.
	Connection Connection
	// Endpoint is the peer's address on this way, zero while there is none.
	Endpoint netip.AddrPort
	// RTT is the round trip of the last check of this way, 0 if none was answered.
	RTT time.Duration
	// Since is when the way was taken.
	Since time.Time
}

// NATChecks counts checks of ways to peers.
type NATChecks struct {
	// Sent are those of this node, Answered those of them that had an answer.
	Sent, Answered uint64
	// Refused are STUN packets that nobody had a reason to send: malformed, without
	// a peer's key, or answers that are late or not from where was asked.
	Refused uint64
	// Dropped are STUN packets that were not looked at, because there were too many.
	Dropped uint64
}

// RelayStatus counts what this node relays for others.
type RelayStatus struct {
	// Offer says how it is reached, as Node.Relay does.
	Offer string
	// Sessions are the allocations that stand now.
	Sessions int
	// Bytes were passed on, in either direction.
	Bytes uint64
	// Refused counts by reason the requests that were refused, and the packets that
	// were not passed on.
	Refused map[string]uint64
}

// RefusedInAll is the sum over all reasons.
func (s RelayStatus) RefusedInAll() uint64 {
	var sum uint64
	for _, n := range s.Refused {
		sum += n
	}
	return sum
}

// natTraversal finds ways through NATs. Safe for concurrent use.
type natTraversal interface {
	// Status returns what is known now, without waiting for anybody.
	Status() NATStatus
	// Candidates returns those of Status.
	Candidates() []nat.Candidate
	// Path returns the way to a peer, and false if none was looked for.
	Path(peer wgtypes.Key) (NATPath, bool)
	// Tick does at once what else is done at intervals: it asks the servers, and
	// looks for better ways. It returns when the servers have answered or not.
	Tick(ctx context.Context) error
}

// traversal returns what finds ways through NATs, nil while that is off.
func (d *Dataplane) traversal() natTraversal {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.nat
}

// NATStatus returns what is known of ways through NATs.
func (d *Dataplane) NATStatus() NATStatus {
	traversal := d.traversal()
	if traversal == nil {
		return NATStatus{}
	}
	return traversal.Status()
}

// NATTick does one round of upkeep of ways through NATs, of which there is none
// while that is off.
func (d *Dataplane) NATTick(ctx context.Context) error {
	traversal := d.traversal()
	if traversal == nil {
		return nil
	}
	if err := traversal.Tick(ctx); err != nil {
		return fmt.Errorf("look for ways through NATs: %w", err)
	}
	return nil
}

// Candidates are the addresses at which this node may be reached, for others to
// know. Config.OnCandidates tells when they change.
func (d *Dataplane) Candidates() []nat.Candidate {
	traversal := d.traversal()
	if traversal == nil {
		return nil
	}
	return traversal.Candidates()
}

// shown is the address to show for a peer that the device reaches at endpoint. For
// one that is reached by a relay that is an address of this node, where the
// relay's client listens.
func (p NATPath) shown(endpoint netip.AddrPort) netip.AddrPort {
	if p.Connection == Relayed && p.Endpoint.IsValid() && endpoint.Addr().IsLoopback() {
		return p.Endpoint
	}
	return endpoint
}

// natPaths are the ways that were looked for, by public key.
func (d *Dataplane) natPaths() map[wgtypes.Key]NATPath {
	paths := map[wgtypes.Key]NATPath{}
	for _, path := range d.NATStatus().Peers {
		paths[path.PublicKey] = path
	}
	return paths
}
