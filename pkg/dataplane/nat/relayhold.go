package nat

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// relayHoldPackets is how much of a remote's is held at most: a device takes
	// as much at once without losing any.
	relayHoldPackets = 1000
	// relayHoldBytes bounds what is held of all remotes.
	relayHoldBytes = 8 << 20
)

// relayHold keeps back what comes from a remote for the device.
type relayHold struct {
	remote *relayRemote
	timer  *time.Timer

	mu      sync.Mutex // guards all below
	ended   bool
	packets [][]byte
}

// Hold implements [Holder]. It does nothing for an address that no packets were
// exchanged with, or that is held already. A second is the most, and a hold for
// which there is no more room ends early, so that nothing is lost.
func (c *RelayClient) Hold(remote netip.AddrPort, atMost time.Duration) {
	if atMost <= 0 {
		return
	}
	c.mu.RLock() // so that the remote is not closed meanwhile
	defer c.mu.RUnlock()
	held := c.remotes[netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())]
	if held == nil {
		return
	}
	h := &relayHold{remote: held}
	h.mu.Lock() // end waits for the timer to be there
	defer h.mu.Unlock()
	if held.hold.CompareAndSwap(nil, h) {
		h.timer = time.AfterFunc(min(atMost, maxHold), h.end)
	}
}

// keep takes a copy of a packet, or reports that the hold has ended and all that
// came before has been passed on.
func (h *relayHold) keep(data []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return false
	}
	client, size := h.remote.client, int64(len(data))
	if client.held.Add(size) > relayHoldBytes || len(h.packets) == relayHoldPackets {
		client.held.Add(-size)
		h.endLocked()
		return false
	}
	h.packets = append(h.packets, slices.Clone(data))
	return true
}

// end passes on what was kept, and is the last to do so.
func (h *relayHold) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.endLocked()
}

func (h *relayHold) endLocked() {
	if h.ended {
		return
	}
	h.ended = true
	h.timer.Stop()
	for _, packet := range h.packets {
		_, _ = h.remote.conn.Write(packet) // the device may be away
		h.remote.client.held.Add(-int64(len(packet)))
	}
	h.packets = nil
	h.remote.hold.Store(nil)
}
