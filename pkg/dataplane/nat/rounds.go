package nat

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// PeerState is a peer of the device as it is at a moment.
type PeerState struct {
	// Key is the peer's.
	Key wgtypes.Key
	// Endpoint is where the device sends to, or the zero value.
	Endpoint netip.AddrPort
	// LastHandshake is when the last session began, or the zero value.
	LastHandshake time.Time
	// RxBytes and TxBytes count what was received and sent, keepalives and
	// handshakes included.
	RxBytes, TxBytes uint64
}

// Device is what an [Agent] needs of the WireGuard device. Its methods are
// called one at a time.
type Device interface {
	// Peers returns the device's peers as they are now.
	Peers(ctx context.Context) ([]PeerState, error)
	// Use has the device send to peers at endpoints from now on, until they are
	// heard from elsewhere. The zero value goes back to what the node set says.
	// After an error everything is as it was.
	Use(ctx context.Context, endpoints map[wgtypes.Key]netip.AddrPort) error
	// Hold tells where the device sends to peers by now, because they were heard
	// from there. It switches nothing, but has the device not go back to what the node
	// set says or Use said when nothing is heard for long. The zero value takes
	// that back.
	Hold(ctx context.Context, endpoints map[wgtypes.Key]netip.AddrPort) error
	// Rouse has the device send something to peers that they answer, through the
	// tunnel and at once, so that a handshake begins or an answer comes.
	Rouse(ctx context.Context, peers []wgtypes.Key)
}

// rounds are what is to be done with the device, one round at a time: switch
// peers, look at all of them, rouse some.
type rounds struct {
	reports chan sight
	begun   uint64
	running bool
	soon    bool // begin one at once
	last    time.Time
	took    time.Duration // the last look
	// expect is until when the device is looked at often.
	expect time.Time
	moves  map[wgtypes.Key]netip.AddrPort
	holds  map[wgtypes.Key]netip.AddrPort
	rouse  map[wgtypes.Key]bool
	broken bool
}

// sight is what a round brought.
type sight struct {
	round uint64
	moves map[wgtypes.Key]netip.AddrPort // what was to be switched
	holds map[wgtypes.Key]netip.AddrPort // and what the device was told
	moved time.Time                      // when the peers were switched
	stuck error                          // why they were not
	peers []PeerState
	took  time.Duration
	err   error
}

// point has the device send to a peer at endpoint, and returns the round that
// does.
func (e *engine) point(p *peer, endpoint netip.AddrPort) uint64 {
	if e.device.moves == nil {
		e.device.moves = map[wgtypes.Key]netip.AddrPort{}
	}
	e.device.moves[p.Key] = endpoint
	delete(e.device.holds, p.Key)
	return e.look()
}

// hold tells the device where a peer is, unless it was told that last.
func (e *engine) hold(p *peer, endpoint netip.AddrPort) {
	if _, moves := e.device.moves[p.Key]; moves {
		return
	}
	delete(e.device.holds, p.Key)
	if p.held == endpoint || !p.held.IsValid() && endpoint == p.Endpoint {
		return
	}
	if e.device.holds == nil {
		e.device.holds = map[wgtypes.Key]netip.AddrPort{}
	}
	e.device.holds[p.Key] = endpoint
}

// rouse has the device send something to a peer.
func (e *engine) rouse(p *peer) {
	if e.device.rouse == nil {
		e.device.rouse = map[wgtypes.Key]bool{}
	}
	e.device.rouse[p.Key] = true
	e.look()
}

// look has the device looked at, and returns the round that does.
func (e *engine) look() uint64 {
	e.device.soon = true
	return e.device.begun + 1
}

// nextLook is when the next round is due, or the zero value if none is.
func (e *engine) nextLook() time.Time {
	d := &e.device
	if d.running || !e.isNatted() && !e.someNatted && len(e.relays) == 0 && len(e.queue) == 0 && len(d.moves)+len(d.holds)+len(d.rouse) == 0 {
		return time.Time{}
	}
	switch {
	case d.soon:
		return d.last.Add(roundGap)
	case e.now.Before(d.expect):
		return d.last.Add(busyInterval)
	}
	return d.last.Add(max(lookInterval, min(lookLongest, roundShare*d.took)))
}

// startRound begins a round if one is due.
func (e *engine) startRound(ctx context.Context) {
	d := &e.device
	if next := e.nextLook(); next.IsZero() || next.After(e.now) {
		return
	}
	moves, holds, rouse := d.moves, d.holds, slices.Collect(maps.Keys(d.rouse))
	d.moves, d.holds, d.rouse, d.soon, d.running = nil, nil, nil, false, true
	d.begun++
	round := d.begun
	e.beside.Go(func() {
		r := e.round(ctx, moves, holds, rouse)
		r.round = round
		select {
		case d.reports <- r:
		case <-ctx.Done():
		}
	})
}

// round does one round beside the engine. It looks before it rouses, so that
// what comes in after the look came by where the device sends now.
func (e *engine) round(ctx context.Context, moves, holds map[wgtypes.Key]netip.AddrPort, rouse []wgtypes.Key) sight {
	r := sight{moves: moves, holds: holds}
	if len(moves) > 0 {
		r.stuck = timed(ctx, func(ctx context.Context) error { return e.options.Device.Use(ctx, moves) })
	}
	r.moved = time.Now()
	if len(holds) > 0 {
		if err := timed(ctx, func(ctx context.Context) error { return e.options.Device.Hold(ctx, holds) }); err != nil {
			e.log.Debug("device was not told where peers are", "peers", len(holds), "err", err)
			r.holds = nil // the next look at the device shows them again
		}
	}
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	began := time.Now()
	r.peers, r.err = e.options.Device.Peers(ctx)
	r.took = time.Since(began)
	if len(rouse) > 0 {
		e.options.Device.Rouse(ctx, rouse)
	}
	return r
}

// timed gives a part of a round its time.
func timed(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	return do(ctx)
}

// looked takes in what a round brought.
func (e *engine) looked(r sight) {
	d := &e.device
	d.running, d.last, d.took = false, e.now, r.took
	if broken := r.err != nil; broken != d.broken {
		d.broken = broken
		if broken {
			e.log.Warn("device cannot be looked at", "err", r.err)
		}
	}
	e.switched(r)
	defer e.answerTicks(r.err)
	if r.err != nil {
		e.stepAll()
		return
	}
	there := make(map[wgtypes.Key]bool, len(r.peers))
	for _, s := range r.peers {
		p := e.peers[s.Key]
		if p == nil {
			continue
		}
		there[s.Key] = true
		s.Endpoint = netip.AddrPortFrom(s.Endpoint.Addr().Unmap(), s.Endpoint.Port())
		e.observe(p, s)
		if p.shown.Path == Direct && p.shown.Heard != e.inSession(p) {
			e.show(p) // which nothing else may have a reason to
		}
		if t := p.trial; t != nil && !t.applied && r.round >= t.round {
			t.applied, t.switched, t.rx = true, r.moved, s.RxBytes
		}
	}
	for key, p := range e.peers {
		p.known = there[key]
	}
	e.stepAll()
}

// switched takes note of what the device was told in a round.
func (e *engine) switched(r sight) {
	if r.stuck != nil {
		e.log.Warn("device was not switched", "peers", len(r.moves), "err", r.stuck)
	}
	for key, endpoint := range r.moves {
		switch p := e.peers[key]; {
		case p == nil:
		case r.stuck == nil:
			p.held = endpoint
		case p.trial != nil && p.trial.round == r.round:
			e.unable(p, r.stuck)
		}
	}
	for key, endpoint := range r.holds {
		if p := e.peers[key]; p != nil {
			p.held = endpoint
		}
	}
}

// unable ends a trial for which the device could not be switched. That it took
// too long says nothing against the path.
func (e *engine) unable(p *peer, why error) {
	if !errors.Is(why, context.DeadlineExceeded) {
		e.shun(p, p.trial.path)
	}
	p.trial = nil
}
