package attach

import (
	"context"
	"fmt"
	"sync"
)

// locks keeps work on one sandbox in a row; different sandboxes don't wait for
// each other. The zero value is ready.
type locks struct {
	mu   sync.Mutex               // guards held
	held map[string]chan struct{} // closed when given back
}

// lock waits for the name until ctx ends.
func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy, taken := l.held[name]
		if !taken {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			free := make(chan struct{})
			l.held[name] = free
			l.mu.Unlock()
			return func() { l.unlock(name, free) }, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for earlier work on the sandbox: %w", ctx.Err())
		}
	}
}

// busy tells whether somebody works under the name.
func (l *locks) busy(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, taken := l.held[name]
	return taken
}

func (l *locks) unlock(name string, free chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, name)
	close(free)
}
