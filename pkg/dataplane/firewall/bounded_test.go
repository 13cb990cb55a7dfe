package firewall

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A call that hangs ends the wait at its deadline, and keeps others out until it
// comes back.
func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turn, hang := newBoundedTurn(), make(chan struct{})
		start := time.Now()
		got, err := bounded(t.Context(), turn, func() (int, error) { <-hang; return 1, nil })
		if !errors.Is(err, context.DeadlineExceeded) || got != 0 || time.Since(start) != boundedTime {
			t.Errorf("after %v: %d, %v", time.Since(start), got, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := bounded(ctx, turn, func() (int, error) { t.Error("it overtook"); return 2, nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("behind one that hangs: %v", err)
		}
		close(hang)
		synctest.Wait()
		broken := errors.New("broken")
		if got, err := bounded(t.Context(), turn, func() (int, error) { return 3, broken }); got != 3 || !errors.Is(err, broken) {
			t.Errorf("when it is back: %d, %v", got, err)
		}
	})
}
