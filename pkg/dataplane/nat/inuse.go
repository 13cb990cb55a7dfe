package nat

import (
	"net/netip"
	"time"
)

const (
	// keepInterval is how often a path is checked that would close otherwise, less
	// than the 30 s for which translators remember, and keepAgain how soon an
	// unanswered check is repeated, up to maxMisses.
	keepInterval = 15 * time.Second
	keepAgain    = 3 * time.Second
	maxMisses    = 3
)

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

// adopt takes note that the device uses a path that works.
func (e *engine) adopt(p *peer, x path) {
	p.inUse = &use{path: x, since: e.now, check: e.now}
	if p.search != nil {
		if t := p.search.find(x); t != nil {
			p.inUse.mapped = t.mapped
		}
	}
	p.unanswered, p.backOff, p.invited = time.Time{}, 0, false
	p.upgrades, p.nextUpgrade = 0, time.Time{}
	e.hold(p, p.state.Endpoint)
	if e.improvable(p) {
		p.nextUpgrade = e.upgradeAt(p)
	}
}

// judgeUse gives up a path that works no more.
func (e *engine) judgeUse(p *peer) {
	u := p.inUse
	if u == nil || p.trial != nil {
		return
	}
	switch {
	case !e.has(u.way):
	case u.misses >= maxMisses && !e.now.Before(u.check) && e.device.last.Sub(u.heard) > keepInterval:
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

// keep checks the path in use if that has to be kept open.
func (e *engine) keep(p *peer) {
	u := p.inUse
	if u == nil || !e.kept(p, u.path) && e.useKind(p) == Direct {
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
			t.proved, t.mapped = e.now, mapped
			e.device.expect = e.now.Add(trialTimeIdle)
		}
	}
	if x.way == e.direct && p.kindOf(x.remote) != Relayed {
		p.observed[family(x.remote.Addr())] = observation{mapped, x.remote.Addr(), e.now}
	}
}
