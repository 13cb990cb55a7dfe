package wireguard

import (
	"sync/atomic"
	"time"
)

const (
	// gateLook is how often the one that waits at a full gate looks whether
	// anything has left.
	gateLook = 10 * time.Millisecond
	// gateStall is after how many looks in vain the packets inside count as
	// stuck. On a machine without time to spare, looks come late like everything
	// else, so that a wait of many looks is more than a lack of time.
	gateStall = 8
)

// gate bounds the packets on their way through wireguard-go in one direction.
// Each of them sits in a buffer of 64 KiB whatever its length, and the queues in
// between hold thousands, so without a bound a window of TCP fills hundreds of
// megabytes, and they stay in pools afterwards.
//
// wireguard-go does not say when it drops a packet, and it keeps packets for a
// peer that does not answer. So every buffer carries a mark that tells which
// gate it is in: a buffer that comes back without having left was dropped. What
// is inside when a full gate stands still is stuck, and the bound applies to
// what comes on top of that; what then leaves after all was not stuck. Safe for
// concurrent use.
type gate struct {
	direction byte
	limit     int64
	inside    atomic.Int64
	stuck     atomic.Int64  // how many of those inside do not count
	stalls    atomic.Uint32 // part of the mark: whether a packet entered before the last stall
	left      atomic.Uint64 // batches that have left, to tell standing still from slow
	wake      chan struct{}
}

// A mark is a direction and the number of stalls so far; zero is no mark.
const (
	markOut       byte = 0x40
	markIn        byte = 0x80
	markDirection      = markOut | markIn
)

// bufferSize is the size of all buffers that wireguard-go pools. No packet
// reaches the last byte, where the mark is: the longest that it joins together,
// for a UDP datagram over IPv6, is eight bytes shorter.
const bufferSize = 1<<16 - 1

func newGate(direction byte, limit int64) *gate {
	return &gate{direction: direction, limit: limit, wake: make(chan struct{}, 1)}
}

// markOf returns the place of the mark of the buffer that buf is the beginning
// of, or nil if buf is of another kind, as handshakes are.
func markOf(buf []byte) *byte {
	if cap(buf) != bufferSize {
		return nil
	}
	return &buf[:bufferSize][bufferSize-1]
}

// mark is what packets that enter now get.
func (g *gate) mark() byte { return g.direction | byte(g.stalls.Load())&^markDirection }

// enter counts bufs in. Those that were dropped since they entered last leave
// the gate they were in, which is this one or other.
func (g *gate) enter(bufs [][]byte, other *gate) {
	entered, dropped := 0, 0
	current := g.mark()
	for _, buf := range bufs {
		mark := markOf(buf)
		if mark == nil {
			continue
		}
		switch *mark & markDirection {
		case g.direction:
		case other.direction:
			dropped++
			fallthrough
		default:
			entered++
		}
		*mark = current
	}
	g.inside.Add(int64(entered))
	if dropped > 0 {
		other.release(dropped, 0)
	}
}

// leave counts bufs out.
func (g *gate) leave(bufs [][]byte) {
	left, loose := 0, 0
	current := g.mark()
	for _, buf := range bufs {
		mark := markOf(buf)
		if mark == nil || *mark&markDirection != g.direction {
			continue
		}
		left++
		if *mark != current {
			loose++
		}
		*mark = 0
	}
	g.left.Add(1)
	g.release(left, loose)
}

// release counts n packets out, some of which had counted as stuck.
func (g *gate) release(n, loose int) {
	now := g.inside.Add(-int64(n))
	for {
		stuck := g.stuck.Load()
		fewer := max(min(stuck-int64(loose), now), 0)
		if fewer == stuck || g.stuck.CompareAndSwap(stuck, fewer) {
			break
		}
	}
	if now+int64(n) > g.limit-g.limit/4 && g.drained() {
		notify(g.wake)
	}
}

func (g *gate) open() bool { return g.inside.Load() < g.limit+g.stuck.Load() }

// drained reports whether a gate that was full may open. It does so at three
// quarters, or every single packet that leaves would wake the one that waits.
func (g *gate) drained() bool { return g.inside.Load() <= g.limit-g.limit/4+g.stuck.Load() }

// wait returns true as soon as there is room, and false when stop is closed
// before.
func (g *gate) wait(stop <-chan struct{}) bool {
	if g.open() {
		return true
	}
	timer := time.NewTimer(gateLook)
	defer timer.Stop()
	seen, looks := g.left.Load(), 0
	for {
		select {
		case <-stop:
			return false
		case <-g.wake:
		case <-timer.C:
			timer.Reset(gateLook)
			if looks++; g.left.Load() != seen {
				seen, looks = g.left.Load(), 0
			}
			if looks == gateStall {
				looks = 0
				g.stalls.Add(1)
				g.stuck.Store(g.inside.Load())
			}
		}
		if g.drained() {
			notify(g.wake) // the other family's receiver may wait here too
			return true
		}
	}
}
