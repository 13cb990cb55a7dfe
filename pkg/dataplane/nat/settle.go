package nat

import (
	"context"
	"time"
)

// settleTime is how long changes are collected: a network that comes up makes
// many at once.
const settleTime = time.Second

// waitFor waits for an event and for those that come right after it. It
// returns false when ctx ends.
func waitFor(ctx context.Context, events <-chan struct{}) bool {
	select {
	case <-ctx.Done():
		return false
	case <-events:
	}
	timer := time.NewTimer(settleTime)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	}
	select { // what came meanwhile is about to be seen
	case <-events:
	default:
	}
	return true
}
