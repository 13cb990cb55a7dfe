package dataplane

import (
	"context"
	"sync/atomic"
)

// hearing is whether STUN is of interest to this node. It costs something, so the
// device does not hear it otherwise.
type hearing struct {
	wanted  *atomic.Bool
	changed chan struct{}
}

func newHearing() hearing { return hearing{wanted: new(atomic.Bool), changed: make(chan struct{}, 1)} }

// want takes note of it, and waits for nothing.
func (h hearing) want(wanted bool) {
	h.wanted.Store(wanted)
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// hearServers has the device hear STUN before the agent asks its servers.
func (t *traversal) hearServers(ctx context.Context) {
	if len(t.parts.nat.STUNServers) > 0 {
		t.hear(ctx, true)
	}
}

// followHearing has the device hear STUN while that is of interest, until ctx
// ends.
func (t *traversal) followHearing(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.stun.changed:
			t.hear(ctx, t.stun.wanted.Load())
		}
	}
}

func (t *traversal) hear(ctx context.Context, hear bool) {
	if err := t.parts.device.HearSTUN(ctx, hear); err != nil && ctx.Err() == nil {
		t.plane.log.Warn("device does not do as it should with STUN, will try again", "op", "nat", "hear", hear, "err", err)
	}
}
