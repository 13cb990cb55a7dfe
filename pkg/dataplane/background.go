package dataplane

import (
	"context"
	"sync"
)

// background runs what comes and goes while a Dataplane runs. What starts
// before open waits for it. The zero value is ready.
type background struct {
	mu      sync.Mutex // guards all below
	ctx     context.Context
	waiting map[*task]struct{}
	running sync.WaitGroup
}

type task struct {
	f      func(context.Context)
	cancel context.CancelFunc
	done   chan struct{}
}

// start has f called, with a context that stop ends. stop returns when f has.
func (b *background) start(f func(context.Context)) (stop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := &task{f: f, done: make(chan struct{})}
	if b.ctx != nil {
		b.launchLocked(t)
	} else {
		if b.waiting == nil {
			b.waiting = map[*task]struct{}{}
		}
		b.waiting[t] = struct{}{}
	}
	return func() { b.stop(t) }
}

func (b *background) launchLocked(t *task) {
	ctx, cancel := context.WithCancel(b.ctx)
	t.cancel = cancel
	b.running.Go(func() {
		defer close(t.done)
		t.f(ctx)
	})
}

func (b *background) stop(t *task) {
	b.mu.Lock()
	if _, waits := b.waiting[t]; waits {
		delete(b.waiting, t)
		b.mu.Unlock()
		return
	}
	b.mu.Unlock()
	t.cancel()
	<-t.done
}

// run starts what waits, and returns when ctx has ended and everything with it.
func (b *background) run(ctx context.Context) {
	b.mu.Lock()
	b.ctx = ctx
	for t := range b.waiting {
		b.launchLocked(t)
	}
	b.waiting = nil
	b.mu.Unlock()
	<-ctx.Done()
	b.running.Wait()
}
