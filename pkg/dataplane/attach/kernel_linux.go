package attach

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// slots is how many calls work on the kernel at once. It has one lock for
// links, addresses and routes, so more would only wait there, each with a
// thread, instead of here, where a context can end the wait.
const slots = 4

// kernel hands out the right to change the host, with a socket to do it. Calls
// get it in the order they came. Safe for concurrent use.
type kernel struct {
	host  *rtnl.Host
	slots *semaphore.Weighted

	mu   sync.Mutex // guards idle
	idle []*slot
}

// slot is one call's right, its socket, and a batch to fill.
type slot struct {
	*rtnl.Socket
	rtnl.Batch
	kernel *kernel
	weight int64
}

func newKernel(host *rtnl.Host) *kernel {
	return &kernel{host: host, slots: semaphore.NewWeighted(slots)}
}

// enter waits for a slot until ctx ends.
func (k *kernel) enter(ctx context.Context) (*slot, error) { return k.acquire(ctx, 1) }

// enterAlone waits until nobody else has a slot, and keeps others out.
func (k *kernel) enterAlone(ctx context.Context) (*slot, error) { return k.acquire(ctx, slots) }

func (k *kernel) acquire(ctx context.Context, weight int64) (*slot, error) {
	if err := k.slots.Acquire(ctx, weight); err != nil {
		return nil, fmt.Errorf("wait for a turn at the kernel: %w", err)
	}
	s, err := k.take()
	if err != nil {
		k.slots.Release(weight)
		return nil, err
	}
	s.weight = weight
	return s, nil
}

func (k *kernel) take() (*slot, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if last := len(k.idle) - 1; last >= 0 {
		s := k.idle[last]
		k.idle = k.idle[:last]
		return s, nil
	}
	socket, err := k.host.Socket()
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &slot{Socket: socket, kernel: k}, nil
}

// leave gives the slot back, without requests that nobody handed over: they
// would go out with the next call's.
func (s *slot) leave() {
	k, weight := s.kernel, s.weight
	s.Reset()
	if s.Broken() {
		_ = s.Close() // nothing to save; the next call opens another
	} else {
		k.mu.Lock()
		k.idle = append(k.idle, s)
		k.mu.Unlock()
	}
	k.slots.Release(weight)
}

// do hands the slot's batch to the kernel.
func (s *slot) do() error { return s.Do(&s.Batch, nil) }

// read hands the slot's batch to the kernel and returns the links that answer
// each of its requests.
func (s *slot) read() (map[int]rtnl.Link, error) {
	links := map[int]rtnl.Link{}
	err := s.Do(&s.Batch, func(i int, m rtnl.Message) {
		if link, ok := rtnl.ParseLink(m); ok {
			links[i] = link
		}
	})
	return links, err
}

// make hands over the batch, whose only request makes a link, and returns what
// the kernel made of it.
func (s *slot) make(name string) (rtnl.Link, error) {
	links, err := s.read()
	if link, echoed := links[0]; echoed || err != nil {
		return link, err
	}
	link, found, err := s.link(0, name) // kernels before 6.2 echo nothing
	if err == nil && !found {
		err = fmt.Errorf("link %s vanished", name)
	}
	return link, err
}

// link reads one link by number or, if that is 0, by name.
func (s *slot) link(index int, name string) (rtnl.Link, bool, error) {
	getLink(&s.Batch, index, name)
	links, err := s.read()
	link, found := links[0]
	return link, found, err
}

func (k *kernel) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, s := range k.idle {
		errs = append(errs, s.Close())
	}
	k.idle = nil
	return errors.Join(errs...)
}
