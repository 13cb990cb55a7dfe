package wireguard

import (
	"sync/atomic"
	"time"
)

// gateStall is how long a full gate may stand without a packet leaving before
// it takes the packets inside for lost. Workers that are merely late cost a few
// more buffers; a wait after loss costs throughput, so it is short.
const gateStall = 2 * time.Millisecond

// gate bounds the packets on their way through wireguard-go in one direction.
// Each of them sits in a buffer of 64 KiB whatever its length, and the queues in
// between hold thousands, so without a bound a window of TCP fills hundreds of
// megabytes, and they stay in pools afterwards.
//
// Packets that wireguard-go drops never leave. A gate that is full and lets
// nothing out for gateStall therefore starts at zero again. Safe for concurrent
// use.
type gate struct {
	limit  int64
	inside atomic.Int64
	left   atomic.Uint64 // batches that have left, to tell a stall from a slow flow
	wake   chan struct{}
}

func newGate(limit int64) *gate { return &gate{limit: limit, wake: make(chan struct{}, 1)} }

// enter counts n packets in.
func (g *gate) enter(n int) { g.inside.Add(int64(n)) }

// leave counts n packets out. Some, like handshakes, leave without having
// entered, so it does not count below zero.
func (g *gate) leave(n int) {
	g.left.Add(1)
	for {
		before := g.inside.Load()
		after := max(before-int64(n), 0)
		if !g.inside.CompareAndSwap(before, after) {
			continue
		}
		if before >= g.limit && after < g.limit {
			notify(g.wake)
		}
		return
	}
}

// wait returns true as soon as there is room, and false when stop is closed
// before.
func (g *gate) wait(stop <-chan struct{}) bool {
	if g.inside.Load() < g.limit {
		return true
	}
	timer := time.NewTimer(gateStall)
	defer timer.Stop()
	for {
		seen := g.left.Load()
		select {
		case <-stop:
			return false
		case <-g.wake:
		case <-timer.C:
			if g.left.Load() == seen {
				g.inside.Store(0)
			}
			timer.Reset(gateStall)
		}
		if g.inside.Load() < g.limit {
			notify(g.wake) // the other family's receiver may wait here too
			return true
		}
	}
}
