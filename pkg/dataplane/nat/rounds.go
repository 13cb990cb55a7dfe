package nat

import (
	"context"
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
	// Use has the device send to a peer at endpoint from now on, until the peer
	// is heard from elsewhere. The zero value goes back to what the node set says.
	Use(ctx context.Context, peer wgtypes.Key, endpoint netip.AddrPort) error
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
	// expect is until when the device is looked at often.
	expect time.Time
	moves  map[wgtypes.Key]netip.AddrPort
	rouse  map[wgtypes.Key]bool
	broken bool
}

// sight is what a round brought.
type sight struct {
	round  uint64
	moved  time.Time // when the peers were switched
	failed map[wgtypes.Key]error
	peers  []PeerState
	err    error
}

// point has the device send to a peer at endpoint, and returns the round that
// does.
func (e *engine) point(p *peer, endpoint netip.AddrPort) uint64 {
	if e.device.moves == nil {
		e.device.moves = map[wgtypes.Key]netip.AddrPort{}
	}
	e.device.moves[p.Key] = endpoint
	return e.look()
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
	if d.running || !e.isNatted && !e.someNatted && len(e.queue) == 0 && len(d.moves) == 0 && len(d.rouse) == 0 {
		return time.Time{}
	}
	switch {
	case d.soon:
		return d.last.Add(roundGap)
	case e.now.Before(d.expect):
		return d.last.Add(busyInterval)
	}
	return d.last.Add(lookInterval)
}

// startRound begins a round if one is due.
func (e *engine) startRound(ctx context.Context) {
	d := &e.device
	if next := e.nextLook(); next.IsZero() || next.After(e.now) {
		return
	}
	moves, rouse := d.moves, slices.Collect(maps.Keys(d.rouse))
	d.moves, d.rouse, d.soon, d.running = nil, nil, false, true
	d.begun++
	round := d.begun
	e.beside.Go(func() {
		r := e.round(ctx, moves, rouse)
		r.round = round
		select {
		case d.reports <- r:
		case <-ctx.Done():
		}
	})
}

// round does one round beside the engine. It looks before it rouses, so that
// what comes in after the look came by where the device sends now.
func (e *engine) round(ctx context.Context, moves map[wgtypes.Key]netip.AddrPort, rouse []wgtypes.Key) sight {
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	r := sight{failed: map[wgtypes.Key]error{}}
	for key, endpoint := range moves {
		if err := e.options.Device.Use(ctx, key, endpoint); err != nil {
			r.failed[key] = err
		}
	}
	r.moved = time.Now()
	r.peers, r.err = e.options.Device.Peers(ctx)
	if len(rouse) > 0 {
		e.options.Device.Rouse(ctx, rouse)
	}
	return r
}

// looked takes in what a round brought.
func (e *engine) looked(r sight) {
	d := &e.device
	d.running, d.last = false, e.now
	if broken := r.err != nil; broken != d.broken {
		d.broken = broken
		if broken {
			e.log.Warn("device cannot be looked at", "err", r.err)
		}
	}
	for key, err := range r.failed {
		if p := e.peers[key]; p != nil {
			e.log.Warn("device was not switched", "node", p.Node, "peer", short(key), "err", err)
			e.unable(p)
		}
	}
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
		if t := p.trial; t != nil && !t.applied && r.round >= t.round {
			t.applied, t.moved, t.rx = true, r.moved, s.RxBytes
		}
	}
	for key, p := range e.peers {
		p.known = there[key]
	}
	e.stepAll()
	e.answerTicks()
}

// unable ends a trial for which the device could not be switched.
func (e *engine) unable(p *peer) {
	if p.trial == nil {
		return
	}
	e.shun(p, p.trial.path)
	p.trial = nil
}
