package nat

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

const (
	// pace is the least time between two checks of one search (Ta of RFC 8445).
	pace = 50 * time.Millisecond
	// maxSearches bounds the searches at a time, for as many checks each 50 ms.
	// As many again are for peers that wait.
	maxSearches = 64
	// upgradeTime is how long something better than a working path is looked for.
	upgradeTime = 5 * time.Second
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
	// strangerTime is how long an address is remembered that a check came from.
	strangerTime = time.Minute
)

// stranger is an address that a check of the peer came from.
type stranger struct {
	addr netip.AddrPort
	at   time.Time
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
		next, p.carried = &p.nextUpgrade, true
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
	if p.inUse != nil && p.upgrades > len(upgradeSteps()) && !p.carried {
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
	p.carried = false
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

// upgradeSteps are how soon the first searches for something better than the
// path in use follow one another.
func upgradeSteps() []time.Duration {
	return []time.Duration{2 * time.Second, 5 * time.Second, 15 * time.Second, 30 * time.Second}
}

// upgradeAt says when to look for something better than the path in use.
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
