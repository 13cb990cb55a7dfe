package nat

import (
	"container/heap"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	// lookInterval is how often the device is looked at if a peer may need
	// something, and busyInterval how often if the device was or may be switched.
	lookInterval = 5 * time.Second
	busyInterval = time.Second
	// roundGap is the least time between two rounds, and roundShare how many times
	// as long as it took the pause is if nothing is expected, up to
	// lookLongest: with thousands of peers a round takes a while.
	roundGap    = 100 * time.Millisecond
	roundShare  = 50
	lookLongest = 15 * time.Second
	// deviceTime bounds one round of the device.
	deviceTime = 10 * time.Second
	// answerTime is how long an answer to a check is waited for.
	answerTime = 10 * time.Second
	// derivations bounds how many peers' keys are derived for one packet of an
	// unknown sender, each some 60 us.
	derivations = 64
)

// engine decides. It belongs to the goroutine of Run, except for what goes
// through channels.
type engine struct {
	*Agent
	config Config
	key    wgtypes.Key
	direct Way
	log    *slog.Logger

	now        time.Time
	peers      map[wgtypes.Key]*peer
	byName     map[string]*peer // by the username of their checks
	underived  []*peer          // those not in byName yet
	queue      queue
	asked      map[TransactionID]asked
	askedOrder []TransactionID
	searching  int // peers with a search

	overlay    []netip.Prefix
	hosts      []netip.AddrPort     // this node's own addresses
	reflexive  [families]Reflection // what servers say
	seen       []netip.AddrPort     // what peers say
	relays     []wayIn
	translated [families]bool // a translator is at this end, for a family
	someNatted bool           // or at any peer's, or a peer has a relay or other families

	device     rounds
	refresh    refreshing
	news       []PathNews
	ownChanged bool // candidates changed

	listening bool // as was told last
}

// asked is a check that waits for an answer.
type asked struct {
	peer *peer
	path path
	at   time.Time
}

func newEngine(a *Agent) *engine {
	return &engine{
		Agent: a, config: a.options.Config, key: a.options.Key, direct: a.options.Direct, log: a.options.Log,
		peers: map[wgtypes.Key]*peer{}, byName: map[string]*peer{}, asked: map[TransactionID]asked{},
		device:  rounds{reports: make(chan sight)},
		refresh: refreshing{found: make(chan found), wanted: true, servers: NewDiscoverer(a.options.Direct.Send, a.options.Resolve)},
	}
}

// run decides until ctx ends.
func (e *engine) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			e.now = time.Now()
		case <-e.wake:
			e.now = time.Now()
			e.take(e.wishes.swap())
		case in := <-e.inbox.packets:
			e.now = time.Now()
			e.learnOverlay()
			e.receive(in)
		case r := <-e.device.reports:
			e.now = time.Now()
			e.looked(r)
		case f := <-e.refresh.found:
			e.now = time.Now()
			e.learnOverlay()
			e.discovered(f)
		}
		e.due()
		e.startRefresh(ctx)
		e.startRound(ctx)
		e.tell()
		timer.Reset(e.next().Sub(e.now))
	}
}

// learnOverlay has isInside know what the overlay is now.
func (e *engine) learnOverlay() {
	if e.options.Overlay != nil {
		e.overlay = e.options.Overlay()
	}
}

// due steps the peers whose time has come.
func (e *engine) due() {
	for len(e.queue) > 0 && !e.queue[0].wake.After(e.now) {
		p := e.queue[0]
		heap.Remove(&e.queue, 0)
		e.step(p)
		if !p.wake.IsZero() && !p.wake.After(e.now) { // never twice at one moment
			p.wake = e.now.Add(time.Millisecond)
			e.queue.put(p)
		}
	}
}

// next is when something is due.
func (e *engine) next() time.Time {
	next := e.refresh.next
	if e.refresh.running {
		next = e.now.Add(e.config.RefreshInterval) // its end is news enough
	}
	if len(e.queue) > 0 && e.queue[0].wake.Before(next) {
		next = e.queue[0].wake
	}
	if look := e.nextLook(); !look.IsZero() && look.Before(next) {
		next = look
	}
	return next
}

// take takes in what was asked for.
func (e *engine) take(w wishes) {
	e.learnOverlay()
	if w.peers != nil {
		e.setPeers(*w.peers)
	}
	if !slices.Equal(e.relays, w.relays) {
		e.relays = w.relays
		e.judgeOwn()
	}
	if w.changed {
		e.networkChanged()
	}
	if len(w.ticks) > 0 {
		e.refresh.wanted = true
		e.refresh.ticks = append(e.refresh.ticks, w.ticks...)
	}
}

// setPeers replaces the peers. Those that stay as they are notice nothing.
func (e *engine) setPeers(wanted []Peer) {
	kept := make(map[wgtypes.Key]bool, len(wanted))
	for _, w := range wanted {
		if w.Key == e.key || kept[w.Key] {
			continue
		}
		kept[w.Key] = true
		e.setPeer(w)
	}
	for key, p := range e.peers {
		if !kept[key] {
			e.forget(p)
		}
	}
	e.underived = slices.DeleteFunc(e.underived, func(p *peer) bool { return e.peers[p.Key] != p })
	e.judgePeers()
	e.stepAll()
}

// judgePeers finds out whether any peer may need something.
func (e *engine) judgePeers() {
	e.someNatted = false
	for _, p := range e.peers {
		e.someNatted = e.someNatted || natted(p.Candidates) || hasKind(p.Candidates, Relayed) || e.mixed(p)
	}
}

func (e *engine) setPeer(w Peer) {
	w.Candidates = slices.DeleteFunc(slices.Clone(w.Candidates), func(c Candidate) bool { return c.Validate() != nil || e.isInside(c.Addr) })
	Sort(w.Candidates)
	w.Candidates = slices.Compact(w.Candidates)
	for len(w.Candidates) > MaxCandidates {
		w.Candidates = dropOne(w.Candidates)
	}
	p, known := e.peers[w.Key]
	if !known {
		p = &peer{Peer: w, index: -1, first: slices.Compare(e.key[:], w.Key[:]) < 0}
		e.peers[w.Key] = p
		e.underived = append(e.underived, p)
		e.look()
		return
	}
	same := p.Endpoint == w.Endpoint && slices.Equal(p.Candidates, w.Candidates)
	if p.Endpoint != w.Endpoint {
		p.held = netip.AddrPort{} // the device was told of that, and not to go back
	}
	p.Peer = w
	if !same {
		e.renew(p)
	}
}

func (e *engine) forget(p *peer) {
	delete(e.peers, p.Key)
	e.setSearch(p, nil)
	if p.pair != nil {
		delete(e.byName, p.pair.PeerUsername())
	}
	e.queue.remove(p)
	e.hide(p)
}

// judgeOwn finds out what this node's candidates are now, and has paths looked
// for anew if they changed.
func (e *engine) judgeOwn() {
	now := e.candidates()
	e.translated = [families]bool{}
	for _, c := range now {
		if c.Kind == Reflexive && !slices.Contains(e.hosts, c.Addr) {
			e.translated[family(c.Addr.Addr())] = true
		}
	}
	if !e.setOwn(now, e.isNatted()) {
		e.stepAll() // a way may have gone without its candidate
		return
	}
	e.ownChanged = true
	for _, p := range e.peers {
		e.renew(p)
	}
	e.stepAll()
}

// isNatted reports whether a translator is at this end. A relay is none: peers
// that are reached without it need no checks because others are not.
func (e *engine) isNatted() bool { return e.translated != [families]bool{} }

// candidates are this node's own, sorted.
func (e *engine) candidates() []Candidate {
	var all []Candidate
	add := func(kind Kind, addrs ...netip.AddrPort) {
		for _, addr := range addrs {
			c := Candidate{kind, addr}
			if c.Validate() == nil && !e.isInside(addr) && !slices.Contains(all, c) {
				all = append(all, c)
			}
		}
	}
	add(Host, e.hosts...)
	add(Reflexive, e.reflexive[0].Addrs...)
	add(Reflexive, e.reflexive[1].Addrs...)
	add(Reflexive, e.seen...)
	for _, r := range e.relays {
		add(Relayed, r.relayed)
	}
	Sort(all)
	return all
}

// isInside reports whether an address is one of the overlay's.
func (e *engine) isInside(addr netip.AddrPort) bool { return Inside(e.overlay, addr) }

// Inside reports whether an address lies in any of overlay.
func Inside(overlay []netip.Prefix, addr netip.AddrPort) bool {
	return slices.ContainsFunc(overlay, func(p netip.Prefix) bool { return p.Contains(addr.Addr().Unmap()) })
}

func (e *engine) isOwn(addr netip.AddrPort) bool { return slices.Contains(e.hosts, addr) }

// has reports whether a way is still there.
func (e *engine) has(way Way) bool {
	return way == e.direct || slices.ContainsFunc(e.relays, func(r wayIn) bool { return r.way == way })
}

// stepAll steps the peers for which there may be something to do.
func (e *engine) stepAll() {
	for _, p := range e.peers {
		e.stepIfBusy(p)
	}
}

func (e *engine) stepIfBusy(p *peer) {
	if e.needs(p) || p.search != nil || p.inUse != nil || p.trial != nil || p.invited || !p.unanswered.IsZero() || p.shown.Path == "" || p.shown.Path == Unreached {
		e.step(p)
	}
}

// setSearch begins or ends a peer's search.
func (e *engine) setSearch(p *peer, s *search) {
	if p.search != nil {
		e.searching--
	}
	if p.search = s; s != nil {
		e.searching++
	}
}

// pairWith makes the key of checks with a peer, if there is none yet.
func (e *engine) pairWith(p *peer) error {
	if p.pair != nil {
		return nil
	}
	secret, err := e.options.Shared(p.Key)
	if err != nil {
		return err
	}
	pair := NewPair(secret, e.key, p.Key)
	p.pair = &pair
	e.byName[pair.PeerUsername()] = p
	return nil
}

// sender is the peer whose requests have a username, or nil. As long as not
// every peer's is known, some more are made: the check will come again.
func (e *engine) sender(name string) *peer {
	if p := e.byName[name]; p != nil {
		return p
	}
	for range min(derivations, len(e.underived)) {
		last := len(e.underived) - 1
		p := e.underived[last]
		e.underived = e.underived[:last]
		if err := e.pairWith(p); err != nil {
			e.log.Warn("no checks with a node", "node", p.Node, "peer", short(p.Key), "err", err)
		}
	}
	return e.byName[name]
}

// short is enough of a public key to tell it by.
func short(key wgtypes.Key) string {
	const digits = 8
	return key.String()[:digits]
}

// tell calls those who want to know, in the goroutine of Run.
func (e *engine) tell() {
	if e.ownChanged && e.options.OnCandidates != nil {
		e.options.OnCandidates()
	}
	if e.options.OnPath != nil {
		for _, n := range e.news {
			e.options.OnPath(n)
		}
	}
	e.ownChanged, e.news = false, nil
	e.tellListening()
}
