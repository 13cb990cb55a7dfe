package nat

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	// pace is the least time between two checks of one search (Ta of RFC 8445).
	pace = 50 * time.Millisecond
	// maxSearches bounds the searches at a time, for as many checks each 50 ms.
	// As many again are for peers that wait.
	maxSearches = 64
	// grace is how long a proved path waits for a better one.
	grace = 300 * time.Millisecond
	// headStart is how long the end that does not choose waits for the other, if
	// no path is in use. It is less than the 5 s for which WireGuard begins no second
	// handshake: the other's may have just gone where nobody answers, and nothing but
	// time makes it begin another, while this end's goes out at once.
	headStart = 1500 * time.Millisecond
	// trialTime is how long a path may carry nothing after the device was switched
	// to it, if there was another that worked; trialTimeIdle if there was none:
	// WireGuard begins at most one handshake each 5 s.
	trialTime     = 5 * time.Second
	trialTimeIdle = 8 * time.Second
	// upgradeTime is how long something better than a working path is looked for.
	upgradeTime = 5 * time.Second
	// divertTime is how long packets are kept off a relay while the device is
	// switched: until the peer has followed, and what was under way has arrived. If
	// the better path carries nothing, they are lost.
	divertTime = time.Second
	// keepInterval is how often a path is checked that would close otherwise, less
	// than the 30 s for which translators remember, and keepAgain how soon an
	// unanswered check is repeated, up to maxMisses.
	keepInterval = 15 * time.Second
	keepAgain    = 3 * time.Second
	maxMisses    = 3
	// firstShun doubles up to lastShun while a path carries nothing.
	firstShun = 5 * time.Minute
	lastShun  = time.Hour
	// firstBackOff doubles up to lastBackOff while searches find nothing, and up
	// to idleBackOff if nothing is sent to the peer either: it may be switched off.
	// All are the first times a power of two, so that both ends begin together.
	firstBackOff = 30 * time.Second
	lastBackOff  = 4 * time.Minute
	idleBackOff  = 16 * time.Minute
	// Others may have a search begin before its time hastes times in a row, and
	// once each hasteInterval: a node that changes its candidates again and again
	// must not have all others send to where it likes.
	hastes        = 10
	hasteInterval = time.Minute
	// upgradeInterval is how often a relayed path that carries something is
	// checked for something better, after the first few times.
	upgradeInterval = time.Minute
	// sessionTime is how long WireGuard uses a session (REJECT_AFTER_TIME).
	sessionTime = 3 * time.Minute
	// silenceNew and silenceOld are how long the device may send without an
	// answer: to begin a session, and in one, where a peer may take 10 s to say
	// that it heard (KEEPALIVE_TIMEOUT).
	silenceNew = 5 * time.Second
	silenceOld = 12 * time.Second
	// keepaliveLen is what a keepalive of WireGuard's costs, which nobody answers.
	keepaliveLen = 32
	// strangerTime is how long an address is remembered that a check came from.
	strangerTime = time.Minute
)

// Peer is another node as this one is told of it.
type Peer struct {
	// Key is its WireGuard key, and Node its name.
	Key  wgtypes.Key
	Node string
	// Endpoint is what the node set says, or the zero value.
	Endpoint netip.AddrPort
	// Candidates are those that the peer publishes. Those that are not valid
	// are left out.
	Candidates []Candidate
}

// peer is a Peer, and what is known and being done about it. It belongs to
// the goroutine of Run.
type peer struct {
	Peer
	pair  *Pair // nil until it is needed
	first bool  // this node's key is the smaller one

	known       bool // the device has it
	state       PeerState
	unanswered  time.Time      // since when the device sends and hears nothing
	sent        time.Time      // when it last did
	moved       bool           // bytes went to or fro since the last search for something better
	held        netip.AddrPort // where the device was last told that the peer is
	inUse       *use
	trial       *trial
	search      *search
	invited     bool // the peer checks, so it needs a path
	nextSearch  time.Time
	backOff     time.Duration
	hastened    time.Time // when all hastes are there again
	upgrades    int
	nextUpgrade time.Time // zero: never
	strangers   []stranger
	shunned     []shunned
	observed    [families]observation
	replays     replays

	shown PeerStatus
	wake  time.Time // when to look at it again
	index int       // in the queue of peers to look at, or -1
}

// use is the path that the device takes and that works.
type use struct {
	path
	since  time.Time
	rtt    time.Duration
	mapped netip.AddrPort // what the peer sees of us
	heard  time.Time      // when WireGuard heard something by it
	check  time.Time      // when to send the next check
	misses int
}

// trial is a switch of the device that has not shown yet that it works.
type trial struct {
	path
	endpoint netip.AddrPort
	former   netip.AddrPort // to be put back
	ends     time.Time
	round    uint64 // of the device that makes the switch
	applied  bool
	moved    time.Time // when the device was switched
	rx       uint64    // what it had received then
	again    int
}

// shunned is a path that was proved and then carried nothing.
type shunned struct {
	path
	until time.Time
	wait  time.Duration
}

// stranger is an address that a check of the peer came from.
type stranger struct {
	addr netip.AddrPort
	at   time.Time
}

// at has the peer looked at not later than t.
func (p *peer) at(t time.Time) {
	if p.wake.IsZero() || t.Before(p.wake) {
		p.wake = t
	}
}

// step does what is due for a peer. It may be called at any time.
func (e *engine) step(p *peer) {
	p.wake = time.Time{}
	e.judgeTrial(p)
	e.judgeUse(p)
	e.seek(p)
	e.choose(p)
	e.keep(p)
	e.show(p)
	e.queue.put(p)
}

// needs reports whether a translator is between this node and a peer, as far as
// either tells.
func (e *engine) needs(p *peer) bool { return e.isNatted() || natted(p.Candidates) }

// natted reports whether a node with such candidates is behind a translator, or
// cannot tell and has a relay. One that servers see come from its own address may have
// a relay for others' sake, and is looked for by it only if it is silent.
func natted(candidates []Candidate) bool {
	return isTranslated(candidates) || hasKind(candidates, Relayed) && !hasKind(candidates, Reflexive)
}

func hasKind(candidates []Candidate, kind Kind) bool {
	return slices.ContainsFunc(candidates, func(c Candidate) bool { return c.Kind == kind })
}

// isTranslated reports whether a host with these candidates looks otherwise from outside.
func isTranslated(candidates []Candidate) bool {
	return slices.ContainsFunc(candidates, func(c Candidate) bool {
		return c.Kind == Reflexive && !slices.Contains(candidates, Candidate{Host, c.Addr})
	})
}

// silent reports whether the device sends to a peer without an answer, for
// longer than WireGuard takes if all is well.
func (e *engine) silent(p *peer) bool {
	limit := silenceNew
	if e.inSession(p) {
		limit = silenceOld
	}
	return !p.unanswered.IsZero() && p.sent.Sub(p.unanswered) >= limit
}

func (e *engine) inSession(p *peer) bool { return e.now.Sub(p.state.LastHandshake) < sessionTime }

// observe takes in what the device says of a peer.
func (e *engine) observe(p *peer, s PeerState) {
	was, first := p.state, !p.known
	p.state, p.known = s, true
	heard := s.LastHandshake.After(was.LastHandshake) || s.RxBytes > was.RxBytes
	if first { // what came before this agent did
		heard = e.inSession(p)
	} else {
		e.listen(p, was, heard)
	}
	if !heard || p.trial != nil {
		if !heard {
			e.insist(p, was)
		}
		return
	}
	if !e.needs(p) && p.search == nil && p.inUse == nil {
		p.backOff, p.invited = 0, false // WireGuard manages alone
		return
	}
	x, ok := e.pathOf(s.Endpoint)
	if ok && (p.inUse == nil || p.inUse.path != x) {
		e.adopt(p, x)
	}
	if ok {
		p.inUse.heard = e.now
		e.hold(p, s.Endpoint)
	}
}

// insist has the device send by the path in use again, if it was changed by
// something else than the peer.
func (e *engine) insist(p *peer, was PeerState) {
	if p.inUse == nil || p.trial != nil || !p.held.IsValid() || p.state.Endpoint == p.held || p.state.Endpoint == was.Endpoint {
		return
	}
	if _, moves := e.device.moves[p.Key]; !moves {
		e.point(p, p.held)
	}
}

// listen compares what the device sent to a peer with what it heard.
func (e *engine) listen(p *peer, was PeerState, heard bool) {
	sent := int64(p.state.TxBytes - was.TxBytes) //nolint:gosec // counters begin anew with a device
	if heard || sent > 0 {
		p.moved = true
	}
	switch {
	case heard:
		p.unanswered = time.Time{}
	case sent > keepaliveLen:
		begins := e.now.Sub(p.sent) > missedTime
		p.sent = e.now
		if begins && p.inUse == nil && p.nextSearch.After(e.now) {
			e.hasten(p)
		}
		if p.unanswered.IsZero() {
			p.unanswered = e.now
		}
	}
}

// adopt takes note that the device uses a path that works.
func (e *engine) adopt(p *peer, x path) {
	p.inUse = &use{path: x, since: e.now, check: e.now}
	p.unanswered, p.backOff, p.invited = time.Time{}, 0, false
	p.upgrades, p.nextUpgrade = 0, time.Time{}
	e.hold(p, p.state.Endpoint)
	if e.improvable(p) {
		p.nextUpgrade = e.upgradeAt(p)
	}
}

// judgeTrial ends a trial that succeeded or took too long.
func (e *engine) judgeTrial(p *peer) {
	t := p.trial
	if t == nil {
		return
	}
	heard := t.applied && (p.state.RxBytes > t.rx || p.state.LastHandshake.After(t.moved))
	here := p.state.Endpoint == t.endpoint
	switch {
	case heard && here:
		p.trial = nil
		e.adopt(p, t.path)
	case heard && (!t.former.IsValid() || !e.chooses(p)): // no path worked, and the peer took another one, or has chosen
		p.trial = nil
		if x, ok := e.pathOf(p.state.Endpoint); ok {
			e.adopt(p, x)
		}
	case e.now.Before(t.ends):
		if heard && t.again < maxAgain { // packets that were on their way by the former path took the device back there
			t.again++
			e.divert(p, t.path)
			t.applied, t.round = false, e.point(p, t.endpoint)
		}
		p.at(t.ends)
	default:
		e.fail(p, heard)
	}
}

// maxAgain bounds how often a trial switches the device.
const maxAgain = 8

// fail ends a trial that did not work, and has the device send to where it did
// before.
func (e *engine) fail(p *peer, heard bool) {
	t := p.trial
	p.trial = nil
	e.shun(p, t.path)
	p.unanswered = time.Time{} // what the trial sent
	back := t.former
	if heard {
		back = p.state.Endpoint // it works where the device is by now
	}
	e.log.Debug("path carries nothing", "node", p.Node, "peer", short(p.Key), "remote", t.remote)
	e.point(p, back)
}

// shun has a path not tried again in this search, nor for some time in another
// one while there is one that works: each trial costs what is sent meanwhile.
func (e *engine) shun(p *peer, x path) {
	if p.search != nil {
		if t := p.search.find(x); t != nil {
			t.failed = true
		}
	}
	if p.inUse == nil {
		return
	}
	wait := firstShun
	p.shunned = slices.DeleteFunc(p.shunned, func(s shunned) bool {
		if s.path == x {
			wait = min(lastShun, 2*s.wait)
		}
		return s.path == x || e.now.Sub(s.until) > lastShun
	})
	if len(p.shunned) == maxStrangers {
		p.shunned = p.shunned[1:]
	}
	p.shunned = append(p.shunned, shunned{x, e.now.Add(wait), wait})
}

// newTry is a try of a path, which has failed already if it is shunned.
func (e *engine) newTry(p *peer, x path) *try {
	failed := p.inUse != nil && slices.ContainsFunc(p.shunned, func(s shunned) bool { return s.path == x && e.now.Before(s.until) })
	return &try{path: x, sort: sort{x.way == e.direct, p.kindOf(x.remote)}, score: e.score(p, x), failed: failed}
}

// judgeUse gives up a path that works no more.
func (e *engine) judgeUse(p *peer) {
	u := p.inUse
	if u == nil || p.trial != nil {
		return
	}
	switch {
	case !e.has(u.way):
	case u.misses >= maxMisses && !e.now.Before(u.check) && e.now.Sub(u.heard) > keepInterval:
	case e.silent(p):
	default:
		return
	}
	e.lose(p)
}

// lose has a path looked for anew.
func (e *engine) lose(p *peer) {
	if p.inUse.way == e.direct {
		e.refreshSoon() // perhaps our own mapping is gone
	}
	p.inUse = nil
	e.hold(p, netip.AddrPort{})
	e.setSearch(p, nil)
	p.unanswered = time.Time{}
	p.backOff, p.nextSearch = 0, e.now
	p.invited = true // whoever had a path needs one
}

// renew has a path looked for soon, because candidates or the network changed.
func (e *engine) renew(p *peer) {
	if !e.hasten(p) {
		return
	}
	p.backOff = 0
	if p.inUse == nil && p.trial == nil {
		e.setSearch(p, nil)
	}
}

// hasten has the next search begin at once, or when that may be, and reports
// whether it is at once.
func (e *engine) hasten(p *peer) bool {
	full := p.hastened
	if full.Before(e.now) {
		full = e.now
	}
	begin := full.Add(-(hastes - 1) * hasteInterval)
	now := !begin.After(e.now)
	if now {
		begin, p.hastened = e.now, full.Add(hasteInterval)
	}
	next := &p.nextSearch
	if p.inUse != nil {
		next, p.moved = &p.nextUpgrade, true
	}
	if next.IsZero() || begin.Before(*next) {
		*next = begin
	}
	return now
}

// seek begins, continues or ends a search.
func (e *engine) seek(p *peer) {
	if p.search == nil && !e.begin(p) {
		return
	}
	s := p.search
	if !e.now.Before(s.ends) && p.trial == nil || p.inUse != nil && p.trial == nil && !e.worthwhile(p) {
		e.end(p)
		return
	}
	e.probe(p)
}

// worthwhile reports whether a search may find better than what is in use.
func (e *engine) worthwhile(p *peer) bool {
	score := e.score(p, p.inUse.path)
	best := p.search.best()
	return p.search.hopes(score, false) || e.chooses(p) && best != nil && best.score > score
}

// begin begins a search if it is time for one.
func (e *engine) begin(p *peer) bool {
	due, length := p.nextSearch, e.config.HolePunchTimeout
	switch {
	case p.trial != nil:
		return false
	case !p.known:
		if p.invited { // nobody else may have a reason to look
			e.look()
			p.at(e.now.Add(lookInterval))
		}
		return false
	case p.inUse == nil && (e.needs(p) || p.invited || e.silent(p)):
	case p.inUse != nil && !p.nextUpgrade.IsZero():
		due, length = p.nextUpgrade, min(upgradeTime, length)
	default:
		return false
	}
	if e.now.Before(due) {
		p.at(due)
		return false
	}
	if p.inUse != nil && p.upgrades > len(upgradeSteps()) && !p.moved {
		p.nextUpgrade = e.upgradeAt(p)
		p.at(p.nextUpgrade)
		return false
	}
	limit := maxSearches
	if p.invited || !p.unanswered.IsZero() {
		limit *= 2
	}
	if e.searching >= limit {
		p.at(e.now.Add(time.Second))
		return false
	}
	if err := e.pairWith(p); err != nil {
		e.log.Warn("no checks with a node", "node", p.Node, "peer", short(p.Key), "err", err)
		p.nextSearch = e.now.Add(lastBackOff)
		return false
	}
	p.strangers = slices.DeleteFunc(p.strangers, func(s stranger) bool { return e.now.Sub(s.at) > strangerTime })
	e.setSearch(p, &search{ends: e.now.Add(length), tries: e.paths(p)})
	p.moved = false
	return true
}

// end ends a search, and says when the next begins.
func (e *engine) end(p *peer) {
	e.setSearch(p, nil)
	p.invited = false
	if p.inUse == nil {
		last := idleBackOff
		if e.now.Sub(p.sent) < missedTime {
			last = lastBackOff
		}
		p.backOff = min(last, max(firstBackOff, 2*p.backOff))
		p.nextSearch = e.inStep(p, p.backOff)
		p.at(p.nextSearch)
		return
	}
	p.nextUpgrade = time.Time{}
	if e.improvable(p) {
		p.nextUpgrade = e.upgradeAt(p)
		p.at(p.nextUpgrade)
	}
}

// improvable reports whether something better than the path in use is worth
// another search: than one by a relay always, than one through a translator a few
// times, if there may be a path without any. The device may be led back to the
// former path by packets that were under way.
func (e *engine) improvable(p *peer) bool {
	switch e.pathKind(p, p.inUse.path) {
	case ByRelay:
		return true
	case HolePunched:
		return p.upgrades < len(upgradeSteps()) && slices.ContainsFunc(p.remotes(), func(remote netip.AddrPort) bool { return e.isOpen(p, remote) })
	}
	return false
}

// isOpen reports whether public addresses are at both ends of the path to remote.
func (e *engine) isOpen(p *peer, remote netip.AddrPort) bool {
	own := func(addr netip.AddrPort) bool { return family(addr.Addr()) == family(remote.Addr()) }
	return !remote.Addr().IsPrivate() && e.pathKind(p, path{e.direct, remote}) == Direct && slices.ContainsFunc(e.hosts, own)
}

// upgradeSteps are how soon the first searches for something better than a
// relayed path follow one another.
func upgradeSteps() []time.Duration {
	return []time.Duration{2 * time.Second, 5 * time.Second, 15 * time.Second, 30 * time.Second}
}

// upgradeAt says when to look for something better than a relayed path.
func (e *engine) upgradeAt(p *peer) time.Time {
	steps := upgradeSteps()
	p.upgrades++
	if p.upgrades <= len(steps) {
		return e.now.Add(steps[p.upgrades-1])
	}
	return e.inStep(p, upgradeInterval)
}

// inStep is a time from half to one and a half periods from now at which the peer's
// agent begins too, if both clocks show the same: both ends have to send for a
// hole to open. The pair's keys say when in the period that is, so that not all
// peers are due at once.
func (e *engine) inStep(p *peer, period time.Duration) time.Time {
	own, other := binary.BigEndian.Uint32(e.key[:]), binary.BigEndian.Uint32(p.Key[:])
	phase := time.Duration(own^other) % firstBackOff
	next := e.now.Add(-phase).Truncate(period).Add(period + phase)
	if next.Sub(e.now) < period/2 {
		next = next.Add(period)
	}
	return next
}

// probe sends the next check of a search.
func (e *engine) probe(p *peer) {
	s := p.search
	p.at(s.ends)
	var next *try
	for _, t := range s.tries {
		if t.proved.IsZero() && !t.failed && (next == nil || t.next.Before(next.next)) {
			next = t
		}
	}
	switch {
	case next == nil:
	case e.now.Before(s.paced):
		p.at(s.paced)
	case e.now.Before(next.next):
		p.at(next.next)
	default:
		e.check(p, next.path)
		next.sends++
		next.next = e.now.Add(retransmission(next.sends - 1))
		s.paced = e.now.Add(pace)
		p.at(s.paced)
	}
}

// chooses reports whether this end decides which path is taken: the one with
// the smaller key, but away from a relay the one whose relay it is, since only
// that can divert what goes by it.
func (e *engine) chooses(p *peer) bool {
	if u := p.inUse; u != nil {
		ours, theirs := u.way != e.direct, p.kindOf(u.remote) == Relayed
		if ours != theirs {
			return ours
		}
	}
	return p.first
}

// choose has the device use the best path that is proved, if this end is the
// one to choose, or the other does not.
func (e *engine) choose(p *peer) {
	if p.search == nil || p.trial != nil {
		return
	}
	best := p.search.best()
	if best == nil || p.inUse != nil && (!e.chooses(p) || best.score <= e.score(p, p.inUse.path)) {
		return
	}
	wait := best.proved
	switch {
	case !e.chooses(p):
		wait = wait.Add(headStart)
	case p.search.hopes(best.score, true):
		wait = wait.Add(grace)
	}
	if e.now.Before(wait) {
		p.at(wait)
		return
	}
	e.turn(p, best)
}

// turn switches the device to a proved path.
func (e *engine) turn(p *peer, best *try) {
	endpoint, err := best.way.Endpoint(best.remote)
	if err != nil {
		best.failed = true
		e.log.Debug("path has no endpoint", "node", p.Node, "peer", short(p.Key), "remote", best.remote, "err", err)
		return
	}
	t := &trial{path: best.path, endpoint: endpoint, ends: e.now.Add(trialTimeIdle)}
	if p.inUse != nil {
		t.former, t.ends = p.state.Endpoint, e.now.Add(trialTime)
		e.divert(p, best.path)
	}
	if p.state.Endpoint != endpoint {
		t.round = e.point(p, endpoint)
	} else {
		t.round = e.look()
	}
	e.rouse(p)
	e.device.expect = t.ends
	p.trial = t
	p.at(t.ends)
}

// divert has what the device sends by the path in use go by another one, while it is
// switched there.
func (e *engine) divert(p *peer, x path) {
	if p.inUse == nil {
		return
	}
	if d, ok := p.inUse.way.(Diverter); ok {
		d.Divert(p.inUse.remote, x.way, x.remote, divertTime)
	}
}

// keep checks the path in use if that has to be kept open.
func (e *engine) keep(p *peer) {
	u := p.inUse
	if u == nil || !e.kept(p, u.path) {
		return
	}
	if !e.now.Before(u.check) {
		if err := e.pairWith(p); err != nil { // a search has told of it
			return
		}
		if u.misses == 1 {
			e.refreshSoon() // perhaps our own mapping is gone
		}
		e.check(p, u.path)
		u.misses++
		u.check = e.now.Add(keepAgain)
		if u.misses > maxMisses { // WireGuard hears the peer, but its agent does not answer
			u.check = e.now.Add(keepInterval)
		}
	}
	p.at(u.check)
}

// answered takes note that a path was answered.
func (e *engine) answered(p *peer, x path, rtt time.Duration, mapped netip.AddrPort) {
	if u := p.inUse; u != nil && u.path == x {
		if u.mapped.IsValid() && u.mapped != mapped && x.way == e.direct {
			e.rouse(p) // the peer has to hear where we are now
		}
		u.rtt, u.mapped, u.misses, u.check = rtt, mapped, 0, e.now.Add(keepInterval)
	}
	if p.search != nil {
		if t := p.search.find(x); t != nil && t.proved.IsZero() {
			t.proved = e.now
			e.device.expect = e.now.Add(trialTimeIdle)
		}
	}
	if x.way == e.direct && p.kindOf(x.remote) != Relayed {
		p.observed[family(x.remote.Addr())] = observation{mapped, x.remote.Addr(), e.now}
	}
}

// invite takes note that the peer checks a path, which so works in one
// direction at least.
func (e *engine) invite(p *peer, x path) {
	if p.inUse != nil && p.inUse.path == x {
		return
	}
	better := p.inUse == nil || e.score(p, x) > e.score(p, p.inUse.path)
	e.meet(p, x.remote)
	switch {
	case p.search != nil:
		if t := p.search.find(x); t != nil {
			t.next = time.Time{} // now is the time to try it
		} else if p.search.strangers < maxStrangers {
			p.search.strangers++
			p.search.add(e.newTry(p, x))
		}
	case p.inUse == nil:
		p.invited = true
		if p.nextSearch.After(e.now) {
			e.hasten(p)
		}
	case better:
		e.setSearch(p, &search{ends: e.now.Add(upgradeTime), tries: []*try{e.newTry(p, x)}})
	}
}

// meet remembers an address that a check came from, unless it is a candidate.
func (e *engine) meet(p *peer, addr netip.AddrPort) {
	if addr == p.Endpoint || slices.ContainsFunc(p.Candidates, func(c Candidate) bool { return c.Addr == addr }) {
		return
	}
	p.strangers = slices.DeleteFunc(p.strangers, func(s stranger) bool { return s.addr == addr })
	if len(p.strangers) == maxStrangers {
		p.strangers = p.strangers[1:]
	}
	p.strangers = append(p.strangers, stranger{addr, e.now})
}
