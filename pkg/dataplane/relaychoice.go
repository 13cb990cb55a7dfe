package dataplane

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
)

const (
	// relayPatience is how long a relay may be away, or not be offered, before
	// another takes its place.
	relayPatience = 15 * time.Second
	// relayMute is for how long packets may go by a relay without any coming,
	// relayMuteSends how many of them at least.
	relayMute      = 30 * time.Second
	relayMuteSends = 10
	// relayLinger is how long two allocations stand beside each other: until the
	// peers know of the new one.
	relayLinger = 10 * time.Second
	// relayFirstShun doubles up to relayLastShun while a relay is of no use.
	relayFirstShun = time.Minute
	relayLastShun  = 30 * time.Minute
)

// relay is one that this node may use.
type relay struct {
	name  string
	offer nat.RelayOffer
	key   wgtypes.Key // of a node
	turn  *TURNServer // of none
}

// relaysOf are those that a node may use, in an order of its own, so that nodes
// spread over them; servers outside of the cluster come last.
func relaysOf(own string, peers []relay, servers []TURNServer) []relay {
	all := slices.Clone(peers)
	slices.SortFunc(all, func(a, b relay) int { return strings.Compare(rank(own, a.name), rank(own, b.name)) })
	for i := range servers {
		all = append(all, relay{name: servers[i].Address, turn: &servers[i]})
	}
	return all
}

// insideAny reports whether an offer names any address of the overlay, where no
// relay is.
func insideAny(overlay []netip.Prefix, offer nat.RelayOffer) bool {
	return nat.Inside(overlay, offer.UDP) || nat.Inside(overlay, offer.TCP) || nat.Inside(overlay, offer.TLS)
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
func needsRelay(reach nat.Reach) bool {
	return reach.Mapping == nat.Symmetric || reach.Relayed > 0 || reach.Missed > 0 && (reach.Translated || reach.Unaided == 0)
}

// allocation is this node's place at a relay.
type allocation struct {
	relay relay
	stop  context.CancelFunc
	done  chan struct{}

	mu   sync.Mutex // guards all below
	down time.Time  // since when there is none; zero while there is one
	up   time.Time  // since when there is one
	sent int        // packets by it since any came
	mute time.Time  // when the first of them was
}

func newAllocation(r relay, stop context.CancelFunc) *allocation {
	return &allocation{relay: r, stop: stop, done: make(chan struct{}), down: time.Now()}
}

func (a *allocation) setDown(since time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if since.IsZero() && !a.down.IsZero() {
		a.up, a.sent = time.Now(), 0
	}
	if a.down.IsZero() || since.IsZero() {
		a.down = since
	}
}

// send notes that a packet leaves by the relay, and hear that one came.
func (a *allocation) send() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sent == 0 {
		a.mute = time.Now()
	}
	a.sent++
}

func (a *allocation) hear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent = 0
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

// standing is how long there has been a place, 0 if there is none.
func (a *allocation) standing() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.down.IsZero() {
		return 0
	}
	return time.Since(a.up)
}

// isMute reports whether nothing comes by the relay although packets go by it, as
// where the relay's ports are closed.
func (a *allocation) isMute() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.down.IsZero() && a.sent >= relayMuteSends && time.Since(a.mute) >= relayMute
}

func (a *allocation) end() {
	a.stop()
	<-a.done
}

// relayWay is a relay's client that notes whether anything comes by it.
type relayWay struct {
	*nat.RelayClient
	allocation *allocation
}

var _ nat.Diverter = (*relayWay)(nil)

// Send implements nat.Way.
func (w *relayWay) Send(packet []byte, to netip.AddrPort) error {
	w.allocation.send()
	return w.RelayClient.Send(packet, to)
}

// relayChoice keeps a place at one of the relays: at the first one while that is
// offered, there, and of use. Another takes its place only once it stands. It
// belongs to one goroutine.
type relayChoice struct {
	// open begins to use a relay.
	open func(context.Context, relay) (*allocation, error)
	log  *slog.Logger

	current   *allocation
	withdrawn time.Time   // since when current's relay is not offered
	next      *allocation // is to take the place of current
	shunned   map[string]relayShun
}

// relayShun keeps a relay from being tried again soon.
type relayShun struct {
	until time.Time
	wait  time.Duration
}

func newRelayChoice(open func(context.Context, relay) (*allocation, error), log *slog.Logger) *relayChoice {
	return &relayChoice{open: open, log: log, shunned: map[string]relayShun{}}
}

// step does what is due, where all are the relays to choose from, best first: none
// if none is needed. Missed says that a peer is not reached that should be.
func (c *relayChoice) step(ctx context.Context, all []relay, missed bool) {
	if len(all) == 0 {
		c.end()
		return
	}
	c.noteOffered(all)
	fault := c.fault(missed)
	if c.next != nil {
		c.judgeNext(all, fault)
	}
	if c.next == nil && (c.current == nil || fault != "") {
		c.seek(ctx, all)
	}
}

func (c *relayChoice) noteOffered(all []relay) {
	switch {
	case c.current == nil || slices.Contains(all, c.current.relay):
		c.withdrawn = time.Time{}
	case c.withdrawn.IsZero():
		c.withdrawn = time.Now()
	}
}

// fault is what is wrong with the current relay, empty for nothing.
func (c *relayChoice) fault(missed bool) string {
	switch {
	case c.current == nil:
		return ""
	case !c.withdrawn.IsZero() && time.Since(c.withdrawn) >= relayPatience:
		return "it is not offered any more"
	case c.current.away() >= relayPatience:
		return "it is away"
	case missed && c.current.isMute():
		return "nothing comes by it"
	}
	return ""
}

// judgeNext has the next allocation take the place of the current one if it
// stands, or gives it up.
func (c *relayChoice) judgeNext(all []relay, fault string) {
	offered := slices.Contains(all, c.next.relay)
	switch standing := c.next.standing(); {
	case !offered, c.current != nil && fault == "": // the current one is well again
		c.next.end()
		c.next = nil
	case c.next.away() >= relayPatience:
		c.shun(c.next.relay, "it is away")
		c.next.end()
		c.next = nil
	case standing == 0, !c.withdrawn.IsZero() && c.current.standing() > 0 && standing < relayLinger:
	default:
		if c.withdrawn.IsZero() {
			c.shun(c.current.relay, fault)
		}
		c.current.end()
		c.current, c.next, c.withdrawn = c.next, nil, time.Time{}
	}
}

// seek tries the best relay that is not shunned: as the current one if there is
// none.
func (c *relayChoice) seek(ctx context.Context, all []relay) {
	for _, r := range all {
		if c.current != nil && r == c.current.relay || time.Now().Before(c.shunned[r.name].until) {
			continue
		}
		opened, err := c.open(ctx, r)
		switch {
		case err != nil:
			c.shun(r, err.Error())
			continue
		case c.current == nil:
			c.current = opened
		default:
			c.next = opened
		}
		return
	}
}

// shun keeps a relay from being tried again for a time.
func (c *relayChoice) shun(r relay, why string) {
	wait := relayFirstShun
	if before, known := c.shunned[r.name]; known && time.Since(before.until) < relayLastShun {
		wait = min(relayLastShun, 2*before.wait)
	}
	c.shunned[r.name] = relayShun{time.Now().Add(wait), wait}
	c.log.Warn("relay left alone for a time", "op", "nat", "relay", r.name, "wait", wait, "why", why)
}

// end gives up all places.
func (c *relayChoice) end() {
	for _, a := range []*allocation{c.current, c.next} {
		if a != nil {
			a.end()
		}
	}
	c.current, c.next = nil, nil
}
