package dataplane

import (
	"context"
	"sync"
)

// keyLock serializes work on one key and lets other keys pass. The zero value
// is ready.
type keyLock struct {
	mu   sync.Mutex // guards held
	held map[string]*keyHolder
}

type keyHolder struct {
	turn  chan struct{} // holds one token while nobody works on the key
	users int           // holders and waiters
}

// lock waits for the key's turn and returns the function that passes it on, or
// the context's error.
func (l *keyLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*keyHolder{}
	}
	holder := l.held[key]
	if holder == nil {
		holder = &keyHolder{turn: make(chan struct{}, 1)}
		holder.turn <- struct{}{}
		l.held[key] = holder
	}
	holder.users++
	l.mu.Unlock()

	select {
	case <-holder.turn:
		return func() {
			holder.turn <- struct{}{}
			l.leave(key, holder)
		}, nil
	case <-ctx.Done():
		l.leave(key, holder)
		return nil, ctx.Err()
	}
}

func (l *keyLock) leave(key string, holder *keyHolder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	holder.users--
	if holder.users == 0 {
		delete(l.held, key)
	}
}
