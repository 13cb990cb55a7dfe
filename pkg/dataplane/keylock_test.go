package dataplane

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestKeyLockAdmitsOneAtATime(t *testing.T) {
	var locks keyLock
	var wg sync.WaitGroup
	inside := 0 // unguarded on purpose: the race detector watches it
	for range 100 {
		wg.Go(func() {
			unlock, err := locks.lock(t.Context(), "a")
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
	if len(locks.held) != 0 {
		t.Errorf("%d keys are still held", len(locks.held))
	}
}

func TestKeyLockLetsOtherKeysPass(t *testing.T) {
	var locks keyLock
	unlockA, err := locks.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer unlockA()
	unlockB, err := locks.lock(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	unlockB()
}

func TestKeyLockGivesUpWithItsContext(t *testing.T) {
	var locks keyLock
	unlock, err := locks.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := locks.lock(ended, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("lock of a held key with an ended context: %v", err)
	}
	unlock()
	if len(locks.held) != 0 {
		t.Errorf("%d keys are still held", len(locks.held))
	}
}
