package attach

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/zlayer/zlayer-cni/internal/keylock"
)

// hcnPending is how many calls HCN may have at a time, those that hang among
// them: each holds a thread of the system.
const hcnPending = 16

// hcnCalls gives calls into HCN the deadline that they do not have. A call that
// does not come back in time is left to itself; its object stays locked until
// it does, so that nothing overtakes it: the removal of what is still being
// made waits for that. late is called when such a call comes back.
type hcnCalls struct {
	timeout time.Duration
	late    func()
	objects keylock.Lock
	slots   *semaphore.Weighted
}

func newHCNCalls(timeout time.Duration, late func()) *hcnCalls {
	return &hcnCalls{timeout: timeout, late: late, slots: semaphore.NewWeighted(hcnPending)}
}

// hcnAnswer is what a call returned.
type hcnAnswer[T any] struct {
	value T
	err   error
}

// hcnCall runs one call about one object: what says what it does, id names the
// object, in either case.
func hcnCall[T any](ctx context.Context, c *hcnCalls, what, id string, call func() (T, error)) (T, error) {
	return hcnMake(ctx, c, what, id, call, func(T) {})
}

// hcnMake is hcnCall for a call that makes something. What comes when nobody waits
// for it any more is given to orphan, before anybody else may do something with
// the object.
func hcnMake[T any](ctx context.Context, c *hcnCalls, what, id string, call func() (T, error), orphan func(T)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	unlock, err := c.objects.Lock(ctx, strings.ToLower(id))
	if err != nil {
		return none, fmt.Errorf("%s %s: %w", what, id, err)
	}
	if err := c.slots.Acquire(ctx, 1); err != nil {
		unlock()
		return none, fmt.Errorf("%s %s: HCN has %d calls that it does not answer: %w", what, id, hcnPending, err)
	}
	var settled atomic.Bool // by whoever is first: the answer, or the end of the wait for it
	answers := make(chan hcnAnswer[T], 1)
	go func() {
		value, err := survive(call)
		inTime := settled.CompareAndSwap(false, true)
		if !inTime && err == nil {
			_, _ = survive(func() (T, error) { orphan(value); return value, nil })
		}
		c.slots.Release(1)
		unlock()
		if inTime {
			answers <- hcnAnswer[T]{value, err}
		} else {
			c.late()
		}
	}()
	select {
	case <-ctx.Done():
		if settled.CompareAndSwap(false, true) {
			return none, fmt.Errorf("%s %s: no answer from HCN: %w", what, id, ctx.Err())
		}
		return (<-answers).named(what, id)
	case answer := <-answers:
		return answer.named(what, id)
	}
}

// survive turns a panic into an error. hcsshim panics when it makes an error of a
// function that computenetwork.dll does not have (hcn.new, of a DLLError), and
// what does without HCN goes on.
func survive[T any](call func() (T, error)) (value T, err error) {
	defer func() {
		if why := recover(); why != nil {
			err = fmt.Errorf("the call panicked: %v", why)
		}
	}()
	return call()
}

// busy tells whether a call about the object has not come back, or one waits for
// it to.
func (c *hcnCalls) busy(id string) bool { return c.objects.Busy(strings.ToLower(id)) }

func (a hcnAnswer[T]) named(what, id string) (T, error) {
	if a.err != nil {
		return a.value, fmt.Errorf("%s %s: %w", what, id, a.err)
	}
	return a.value, nil
}

// hcnDo is hcnCall for calls that only succeed or fail.
func hcnDo(ctx context.Context, c *hcnCalls, what, id string, call func() error) error {
	_, err := hcnCall(ctx, c, what, id, func() (struct{}, error) { return struct{}{}, call() })
	return err
}
