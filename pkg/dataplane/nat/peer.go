package nat

import (
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	// sessionTime is how long WireGuard uses a session (REJECT_AFTER_TIME).
	sessionTime = 3 * time.Minute
	// silenceNew and silenceOld are how long the device may send without an
	// answer: to begin a session, and in one, where a peer may take 10 s to say
	// that it heard (KEEPALIVE_TIMEOUT).
	silenceNew = 5 * time.Second
	silenceOld = 12 * time.Second
	// keepaliveLen is what a keepalive of WireGuard's costs, which nobody answers.
	keepaliveLen = 32
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
	carried     bool           // bytes went to or fro since the last search for something better
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
// either tells, or the node set tells of the peer in a family that this node lacks.
func (e *engine) needs(p *peer) bool {
	return e.isNatted() || natted(p.Candidates) || p.Endpoint.IsValid() && !e.speaks(p.Endpoint.Addr())
}

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
		p.carried = true
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
