package firewall

import (
	"context"
	"fmt"
	"time"
)

// boundedTime is how long a call into Windows may take. A rule takes some
// milliseconds, and a service that does not answer would hold up every sandbox.
const boundedTime = 30 * time.Second

// boundedTurn lets one call at a time into what takes no context.
type boundedTurn chan struct{}

func newBoundedTurn() boundedTurn { return make(boundedTurn, 1) }

// bounded runs call and waits for it no longer than ctx and boundedTime. A call that
// does not come back is left to itself, with its result; the turn stays its own, so
// that nothing overtakes it.
func bounded[T any](ctx context.Context, turn boundedTurn, call func() (T, error)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeout(ctx, boundedTime)
	defer cancel()
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("an earlier call into Windows has not come back: %w", context.Cause(ctx))
	}
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		value, err := call()
		<-turn
		done <- outcome{value, err}
	}()
	select {
	case result := <-done:
		return result.value, result.err
	case <-ctx.Done():
		return none, fmt.Errorf("no answer from Windows: %w", context.Cause(ctx))
	}
}
