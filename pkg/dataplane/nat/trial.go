package nat

import (
	"net/netip"
	"slices"
	"time"
)

const (
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
	// divertTime is how long packets are kept off a relay while the device is
	// switched: until the peer has followed, and what was under way has arrived. If
	// the better path carries nothing, they are lost.
	divertTime = time.Second
	// firstShun doubles up to lastShun while a path carries nothing.
	firstShun = 5 * time.Minute
	lastShun  = time.Hour
	// maxAgain bounds how often a trial switches the device.
	maxAgain = 8
)

// trial is a switch of the device that has not shown yet that it works.
type trial struct {
	path
	endpoint netip.AddrPort
	former   netip.AddrPort // to be put back
	ends     time.Time
	round    uint64 // of the device that makes the switch
	applied  bool
	switched time.Time // when the device was switched
	rx       uint64    // what it had received then
	again    int
}

// shunned is a path that was proved and then carried nothing.
type shunned struct {
	path
	until time.Time
	wait  time.Duration
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

// judgeTrial ends a trial that succeeded or took too long.
func (e *engine) judgeTrial(p *peer) {
	t := p.trial
	if t == nil {
		return
	}
	heard := t.applied && (p.state.RxBytes > t.rx || p.state.LastHandshake.After(t.switched))
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
