// Package keylock serializes work on one thing and lets work on others pass. A
// Lock is safe for concurrent use.
package keylock

import (
	"context"
	"fmt"
	"sync"
)

// Lock is a lock for each key. The zero value is ready.
type Lock struct {
	mu   sync.Mutex // guards held
	held map[string]*holder
}

type holder struct {
	turn  chan struct{} // holds one token while nobody works on the key
	users int           // holders and waiters
}

// Lock waits for the key's turn and returns the function that passes it on,
// which is to be called once. The error is the context's.
func (l *Lock) Lock(ctx context.Context, key string) (unlock func(), err error) {
	h := l.join(key)
	select {
	case <-h.turn:
		return func() {
			h.turn <- struct{}{}
			l.leave(key, h)
		}, nil
	case <-ctx.Done():
		l.leave(key, h)
		return nil, fmt.Errorf("wait for earlier work on it: %w", ctx.Err())
	}
}

// Busy tells whether somebody works on the key or waits to.
func (l *Lock) Busy(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[key] != nil
}

func (l *Lock) join(key string) *holder {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = map[string]*holder{}
	}
	h := l.held[key]
	if h == nil {
		h = &holder{turn: make(chan struct{}, 1)}
		h.turn <- struct{}{}
		l.held[key] = h
	}
	h.users++
	return h
}

func (l *Lock) leave(key string, h *holder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.users--
	if h.users == 0 {
		delete(l.held, key)
	}
}
