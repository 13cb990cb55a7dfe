package keylock

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestAdmitsOneAtATime(t *testing.T) {
	var locks Lock
	var wg sync.WaitGroup
	inside := 0 // unguarded on purpose: the race detector watches it
	for range 100 {
		wg.Go(func() {
			unlock, err := locks.Lock(t.Context(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			inside++
			unlock()
		})
	}
	wg.Wait()
	if inside != 100 {
		t.Errorf("counted %d of 100", inside)
	}
	if locks.Busy("a") {
		t.Error("the key is still held")
	}
}

func TestLetsOtherKeysPass(t *testing.T) {
	var locks Lock
	unlockA, err := locks.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer unlockA()
	if !locks.Busy("a") || locks.Busy("b") {
		t.Errorf("busy: a %v, b %v, want a", locks.Busy("a"), locks.Busy("b"))
	}
	unlockB, err := locks.Lock(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	unlockB()
}

func TestGivesUpWithItsContext(t *testing.T) {
	var locks Lock
	unlock, err := locks.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := locks.Lock(ended, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("lock of a held key with an ended context: %v", err)
	}
	unlock()
	if locks.Busy("a") {
		t.Error("the key is still held")
	}
}
