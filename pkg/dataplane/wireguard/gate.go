package wireguard

import (
	"sync/atomic"
	"time"
)

// gateStall is how long nothing may leave a full gate before what is inside
// counts as stuck. It is longer than a loaded machine keeps a thread waiting.
const gateStall = 50 * time.Millisecond

// gate bounds the packets on their way through wireguard-go in one direction.
// Each of them sits in a buffer of 64 KiB whatever its length, and the queues in
// between hold thousands, so without a bound a window of TCP fills hundreds of
// megabytes, and they stay in pools afterwards.
//
// wireguard-go does not say when it drops a packet, and it keeps packets for a
// peer that does not answer. So every buffer carries a mark that tells which
// gate it is in: a buffer that comes back without having left was dropped. What
// is inside when a full gate stands still is stuck, and the bound applies to
// what comes on top of that. Safe for concurrent use.
type gate struct {
	mark   byte
	limit  int64
	inside atomic.Int64
	stuck  atomic.Int64
	left   atomic.Uint64 // batches that have left, to tell standing still from slow
	wake   chan struct{}
}

// The marks of the two directions; zero is no mark.
const (
	markOut byte = 1
	markIn  byte = 2
)

// bufferSize is the size of all buffers that wireguard-go pools. No packet
// reaches the last byte, where the mark is: the longest that it joins together,
// for a UDP datagram over IPv6, is eight bytes shorter.
const bufferSize = 1<<16 - 1

func newGate(mark byte, limit int64) *gate {
	return &gate{mark: mark, limit: limit, wake: make(chan struct{}, 1)}
}

// markOf returns the place of the mark of the buffer that buf is the beginning
// of, or nil if buf is of another kind, as handshakes are.
func markOf(buf []byte) *byte {
	if cap(buf) != bufferSize {
		return nil
	}
	return &buf[:bufferSize][bufferSize-1]
}

// enter counts bufs in. Those that were dropped since they entered last leave
// the gate they were in, which is this one or other.
func (g *gate) enter(bufs [][]byte, other *gate) {
	entered, dropped := 0, 0
	for _, buf := range bufs {
		mark := markOf(buf)
		switch {
		case mark == nil || *mark == g.mark:
			continue
		case *mark == other.mark:
			dropped++
		}
		*mark = g.mark
		entered++
	}
	g.inside.Add(int64(entered))
	if dropped > 0 {
		other.release(dropped)
	}
}

// leave counts bufs out.
func (g *gate) leave(bufs [][]byte) {
	left := 0
	for _, buf := range bufs {
		if mark := markOf(buf); mark != nil && *mark == g.mark {
			*mark = 0
			left++
		}
	}
	g.left.Add(1)
	g.release(left)
}

func (g *gate) release(n int) {
	now := g.inside.Add(-int64(n))
	stuck := g.stuck.Load()
	if now < stuck {
		g.stuck.CompareAndSwap(stuck, max(now, 0)) // whoever comes between does the same
	}
	if now < g.limit+stuck && now+int64(n) >= g.limit {
		notify(g.wake)
	}
}

func (g *gate) open() bool { return g.inside.Load() < g.limit+g.stuck.Load() }

// wait returns true as soon as there is room, and false when stop is closed
// before.
func (g *gate) wait(stop <-chan struct{}) bool {
	if g.open() {
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
				g.stuck.Store(g.inside.Load())
			}
			timer.Reset(gateStall)
		}
		if g.open() {
			notify(g.wake) // the other family's receiver may wait here too
			return true
		}
	}
}
