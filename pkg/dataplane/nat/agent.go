package nat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Options are what an [Agent] works with.
type Options struct {
	// Config says what to look for, and how long.
	Config Config
	// Key is this node's public WireGuard key.
	Key wgtypes.Key
	// Shared returns the secret of this node and a peer, the same at both ends.
	Shared func(peer wgtypes.Key) ([]byte, error)
	// Direct is the WireGuard port.
	Direct Way
	// Device is the WireGuard device.
	Device Device
	// Hosts returns the addresses of this node at which it may be reached.
	Hosts func() ([]netip.Addr, error)
	// Overlay returns the prefixes of the cluster's tunnels, at whose addresses no
	// node is: packets to them would wind up in the tunnel again. It may be nil.
	Overlay func() []netip.Prefix
	// Published returns where the node set says that this node is, or the zero
	// value. It may be nil.
	Published func() netip.AddrPort
	// ListenPort returns the WireGuard port, or 0 if there is none yet.
	ListenPort func() int
	// Resolve looks up the names of STUN servers. It is not needed without any.
	Resolve Resolve
	// OnCandidates, if not nil, is called when [Agent.Candidates] changed. OnPath
	// is called when a peer's path did. Neither may block: nothing else is done
	// meanwhile.
	OnCandidates func()
	OnPath       func(PathNews)
	// OnListen, if not nil, is called when packets that come to the WireGuard port
	// are of interest from now on, or no longer. They are not at first. It may not
	// block either.
	OnListen func(listen bool)
	// Log may be nil.
	Log *slog.Logger
}

// Agent finds and keeps paths to peers. All methods are safe for concurrent use,
// and none but Run and Tick waits for anything.
//
// For a peer without a translator at either end it does nothing but look at the
// device, and not even that if nobody's candidates tell of one. For all others it
// searches: both ends send checks over the pairs of a way of theirs and an
// address of the other's, and a pair that was answered is proved. The end with the
// smaller key has its device switched to the best one, and takes that back
// if it carries nothing. The other follows, as WireGuard does. A path
// through a translator or a relay is checked each 15 s, and given up after three
// checks without an answer if WireGuard hears nothing either; one by a relay is
// given up for a better one.
//
// What peers see this node come from is a candidate of it, too, while they say
// so: if two at different addresses see the same one, or if there is only one who
// sees any and no server answers for the address family. A mapping that differs
// from peer to peer is of no use to others and is not published. It is decided
// at each refresh, and for at most two addresses a family.
type Agent struct {
	options Options
	inbox   *inbox
	wake    chan struct{}
	wishes  mailbox
	// Checks: sent, answered, and packets refused.
	sent, answers, refused atomic.Uint64
	beside                 sync.WaitGroup // what Run has started

	mu         sync.Mutex // guards all below
	running    bool
	own        []Candidate
	translated bool
	mapping    Mapping
	shown      map[wgtypes.Key]PeerStatus
	reach      Reach // of shown
}

// New returns an agent that does nothing until Run. It returns an error if the
// configuration is wrong.
func New(o Options) (*Agent, error) {
	if err := o.Config.Validate(); err != nil {
		return nil, fmt.Errorf("NAT traversal: %w", err)
	}
	o.Config = o.Config.withDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Agent{
		options: o, inbox: newInbox(), wake: make(chan struct{}, 1),
		mapping: MappingUnknown, shown: map[wgtypes.Key]PeerStatus{},
	}, nil
}

// Run does everything there is to do until ctx ends, and returns when nothing of
// it runs any more. The device stays as it is. It may be called once.
func (a *Agent) Run(ctx context.Context) error {
	a.mu.Lock()
	again := a.running
	a.running = true
	a.mu.Unlock()
	if again {
		return errors.New("run NAT traversal: it runs already, or did")
	}
	newEngine(a).run(ctx)
	a.beside.Wait()
	return nil
}

// SetPeers replaces the peers by the whole wanted set. Paths of those that stay
// are not touched.
func (a *Agent) SetPeers(peers []Peer) {
	peers = slices.Clone(peers)
	a.wish(func(w *wishes) { w.peers = &peers })
}

// Deliver takes in a STUN packet that came by a way. It copies the packet and
// does not block; if there are too many, packets are dropped.
func (a *Agent) Deliver(way Way, from netip.AddrPort, packet []byte) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	a.inbox.put(inbound{way: way, from: from, packet: packet}, time.Now())
}

// DeliverAt is Deliver for a packet that came to one of this node's addresses,
// from which it is answered.
func (a *Agent) DeliverAt(way Homed, at netip.Addr, from netip.AddrPort, packet []byte) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	a.inbox.put(inbound{way: way, at: at.Unmap(), from: from, packet: packet}, time.Now())
}

// AddWay adds an allocation at a relay, which has a relayed address. A way that
// is added again has the new address.
func (a *Agent) AddWay(way Way, relayed netip.AddrPort) {
	a.wish(func(w *wishes) {
		w.relays = append(w.withoutWay(way), wayIn{way, relayed})
	})
}

// RemoveWay removes what AddWay added. Paths by it are given up at once.
func (a *Agent) RemoveWay(way Way) {
	a.wish(func(w *wishes) { w.relays = w.withoutWay(way) })
}

// Changed has this node's candidates looked up and its paths checked at once,
// because the node's network changed.
func (a *Agent) Changed() { a.wish(func(w *wishes) { w.changed = true }) }

// Tick does one round of upkeep at once: it looks up this node's candidates and
// looks at the device. It returns when that is done, or ctx has ended. It is an
// error if the device could not be looked at; servers that do not answer are none.
func (a *Agent) Tick(ctx context.Context) error {
	done := make(chan error, 1)
	a.wish(func(w *wishes) { w.ticks = append(w.ticks, done) })
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("look at the device: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("refresh NAT candidates: %w", ctx.Err())
	}
}

// Candidates are this node's own, sorted. There may be more than are published.
func (a *Agent) Candidates() []Candidate {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.own)
}

// Path is how a peer is reached, the zero value if there is no such peer.
func (a *Agent) Path(peer wgtypes.Key) PeerStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.shown[peer]
}

// Reach sums up how peers are reached. It costs the same for any number of them.
func (a *Agent) Reach() Reach {
	a.mu.Lock()
	defer a.mu.Unlock()
	reach := a.reach
	reach.Mapping, reach.Translated = a.mapping, a.translated
	return reach
}

// showLocked replaces what is known of a peer.
func (a *Agent) showLocked(s PeerStatus) {
	a.reach.count(a.shown[s.Key], -1)
	a.reach.count(s, 1)
	a.shown[s.Key] = s
}

// Status is what is known at this moment.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Status{
		Candidates: slices.Clone(a.own), Translated: a.translated, Mapping: a.mapping, Peers: slices.Collect(maps.Values(a.shown)),
		Sent: a.sent.Load(), Answered: a.answers.Load(), Dropped: a.inbox.dropped.Load(), Refused: a.refused.Load(),
	}
	slices.SortFunc(s.Peers, func(x, y PeerStatus) int { return slices.Compare(x.Key[:], y.Key[:]) })
	return s
}

// wishes are what was asked for since the engine last looked, level and not
// edge: the last set of peers, and the ways as they are.
type wishes struct {
	peers   *[]Peer
	relays  []wayIn // not taken away
	changed bool
	ticks   []chan error
}

func (w *wishes) withoutWay(way Way) []wayIn {
	return slices.DeleteFunc(slices.Clone(w.relays), func(r wayIn) bool { return r.way == way })
}

// mailbox holds wishes. Nothing is called while it is locked, so that it may be
// used from anywhere.
type mailbox struct {
	mu     sync.Mutex
	wishes wishes
}

func (a *Agent) wish(change func(*wishes)) {
	a.wishes.mu.Lock()
	change(&a.wishes.wishes)
	a.wishes.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// swap returns what was asked for, and what stays.
func (m *mailbox) swap() wishes {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.wishes
	m.wishes = wishes{relays: w.relays}
	return w
}

// setOwn publishes this node's candidates and whether there is a translator, and
// reports whether the candidates changed.
func (a *Agent) setOwn(own []Candidate, translated bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.translated = translated
	if slices.Equal(a.own, own) {
		return false
	}
	a.own = own
	return true
}

func (a *Agent) setMapping(m Mapping) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mapping = m
}

// missedTime is how long a peer is missed to which something was sent.
// WireGuard tries 90 s.
const missedTime = 2 * time.Minute

// show publishes the path to a peer, and has its change told.
func (e *engine) show(p *peer) {
	s := PeerStatus{Key: p.Key, Node: p.Node, Path: Unreached, Since: p.shown.Since}
	switch {
	case p.inUse != nil:
		s.Path, s.Remote, s.RTT, s.Since = e.useKind(p), p.inUse.remote, p.inUse.rtt, p.inUse.since
	case !e.needs(p) && !p.invited && p.search == nil && p.backOff == 0:
		s.Path, s.Remote = Direct, p.Endpoint
	}
	if s.Since.IsZero() || p.inUse == nil && s.Path != p.shown.Path {
		s.Since = e.now
	}
	s.Missed = s.Path == Unreached && (p.invited || !p.unanswered.IsZero() && e.now.Sub(p.sent) < missedTime)
	s.Heard = p.inUse != nil || e.inSession(p)
	if s == p.shown {
		return
	}
	was := p.shown
	p.shown = s
	e.mu.Lock()
	e.showLocked(s)
	e.mu.Unlock()
	first := was.Path == "" && p.inUse == nil
	if !first && (was.Path != s.Path || was.Remote != s.Remote) {
		e.news = append(e.news, PathNews{s, was.Path})
	}
}

// hide removes a peer that is none any more.
func (e *engine) hide(p *peer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reach.count(e.shown[p.Key], -1)
	delete(e.shown, p.Key)
}
