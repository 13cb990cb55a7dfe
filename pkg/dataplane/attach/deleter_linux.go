package attach

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

const (
	// deleteAtOnce is how many requests may be taking links down. One holds the kernel's lock, the next waits for it;
	// what comes later shares the one after.
	deleteAtOnce = 2
	// deleteThreads bounds the requests that the kernel has not answered. It answers some 20 ms after the links are
	// gone, when their memory is free.
	deleteThreads = 8
	// deleteLinks bounds the links of one request, some 0.6 ms each, for which the kernel's lock keeps all others waiting.
	deleteLinks = 16
)

// deleter removes links. The first goes at once; those that come while the
// kernel is busy share a request by link group. A link is gone when the kernel
// announces it or, if nobody listens, when it answers the request. Safe for
// concurrent use.
type deleter struct {
	host *rtnl.Host

	mu      sync.Mutex // guards all below
	known   map[int]*removal
	queue   []*removal
	active  int // requests whose links are not all gone
	threads int // requests that are not answered
	idle    []*rtnl.Socket
	working sync.WaitGroup
}

// removal is one link on its way out.
type removal struct {
	index int
	batch *deleteBatch
	err   error
	done  chan struct{} // closed when the link is gone, or err says why not
}

// deleteBatch is the links of one request.
type deleteBatch struct {
	links []*removal
	left  int // links that are not gone
}

func newDeleter(host *rtnl.Host) *deleter {
	return &deleter{host: host, known: map[int]*removal{}}
}

// delete removes a link and returns when it is gone. When ctx ends first, the
// removal goes on.
func (d *deleter) delete(ctx context.Context, index int) error {
	r := d.start(index)
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the kernel to remove a link: %w", ctx.Err())
	}
}

// start has a link removed, once however often it is called meanwhile.
func (d *deleter) start(index int) *removal {
	d.mu.Lock()
	defer d.mu.Unlock()
	if underway, found := d.known[index]; found {
		return underway
	}
	r := &removal{index: index, done: make(chan struct{})}
	d.known[index] = r
	d.queue = append(d.queue, r)
	d.nextLocked()
	return r
}

// knows tells whether a link is being removed.
func (d *deleter) knows(index int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, found := d.known[index]
	return found
}

// gone takes the kernel's word that a link is gone, and tells whether it was
// being removed.
func (d *deleter) gone(index int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, found := d.known[index]
	if found {
		d.finishLocked(r, nil)
	}
	return found
}

// nextLocked starts requests for what waits, as many as may run.
func (d *deleter) nextLocked() {
	for len(d.queue) > 0 && d.active < deleteAtOnce && d.threads < deleteThreads {
		size := min(len(d.queue), deleteLinks)
		batch := &deleteBatch{links: d.queue[:size:size], left: size}
		d.queue = d.queue[size:]
		for _, r := range batch.links {
			r.batch = batch
		}
		d.active++
		d.threads++
		d.working.Go(func() { d.work(batch) })
	}
}

// work carries out one request.
func (d *deleter) work(batch *deleteBatch) {
	refused := d.request(batch)
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, r := range batch.links {
		d.finishLocked(r, refused[i])
	}
	d.threads--
	d.nextLocked()
}

// finishLocked settles one link, once.
func (d *deleter) finishLocked(r *removal, err error) {
	if d.known[r.index] != r {
		return
	}
	delete(d.known, r.index)
	r.err = err
	close(r.done)
	batch := r.batch
	if batch == nil { // gone by itself while it waited
		d.queue = slices.DeleteFunc(d.queue, func(waiting *removal) bool { return waiting == r })
		return
	}
	batch.left--
	if batch.left == 0 {
		d.active--
		d.nextLocked()
	}
}

// request asks the kernel to remove the links and returns what it refused, by
// place.
func (d *deleter) request(batch *deleteBatch) map[int]error {
	socket, err := d.socket()
	if err != nil {
		return all(batch, fmt.Errorf("open netlink: %w", err))
	}
	defer d.put(socket)
	var b rtnl.Batch
	if len(batch.links) > 1 {
		group := LinkGroup + 1 + rand.Uint32N(0xffff)
		for _, r := range batch.links {
			setGroup(&b, r.index, group)
		}
		deleteGroup(&b, group)
		if err := socket.Do(&b, nil); err == nil {
			return nil
		}
	}
	refused := map[int]error{} // one by one, to know which
	for i, r := range batch.links {
		deleteLink(&b, r.index)
		if err := socket.Do(&b, nil); err != nil {
			refused[i] = err
		}
	}
	return refused
}

func all(batch *deleteBatch, err error) map[int]error {
	refused := map[int]error{}
	for i := range batch.links {
		refused[i] = err
	}
	return refused
}

func (d *deleter) socket() (*rtnl.Socket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last := len(d.idle) - 1; last >= 0 {
		s := d.idle[last]
		d.idle = d.idle[:last]
		return s, nil
	}
	return d.host.Socket()
}

func (d *deleter) put(s *rtnl.Socket) {
	if s.Broken() {
		_ = s.Close() // the next request opens another
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.idle = append(d.idle, s)
}

// wait returns when no request is under way.
func (d *deleter) wait() { d.working.Wait() }

func (d *deleter) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, s := range d.idle {
		errs = append(errs, s.Close())
	}
	d.idle = nil
	return errors.Join(errs...)
}
