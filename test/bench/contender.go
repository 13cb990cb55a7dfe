//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// contender is one way to attach a sandbox and to detach it again.
type contender interface {
	name() string
	// host is the namespace in which operations run.
	host() *netlab.NS
	// sandboxes are the contender's own, since settings may stay behind in one.
	sandboxes() []*sandbox
	// prepare makes an operation ready; what it returns is timed.
	prepare(verb verb, s *sandbox) (operation, error)
	// limits are how many operations, one after the other, make a round, and how
	// many at once it can bear.
	limits() (single, together int)
	close(ctx context.Context) error
}

// verb is what is done to a sandbox.
type verb string

const (
	add verb = "ADD"
	del verb = "DEL"
)

// sandbox is a namespace that is attached and detached again and again. Making
// and removing namespaces would disturb what is measured.
type sandbox struct {
	ns *netlab.NS
	// result is what the last ADD answered; a runtime passes it to DEL.
	result json.RawMessage
}

// operation is a prepared ADD or DEL.
type operation interface {
	// run does it, in the contender's namespace, and returns how long it took.
	run() (time.Duration, error)
	// done takes the result and frees what was prepared. It follows every run.
	done() error
}

// batch is what a number of operations at once took, in milliseconds.
type batch struct {
	// each operation, from the common start to its own end, so that waiting for
	// others counts.
	each []float64
	// all is the time from the common start to the last end.
	all float64
}

// runBatch does verb to n sandboxes at once.
func runBatch(c contender, verb verb, n int) (batch, error) {
	pool := c.sandboxes()
	if n > len(pool) {
		return batch{}, fmt.Errorf("%s has %d sandboxes, not %d", c.name(), len(pool), n)
	}
	b := batch{each: make([]float64, n)}
	errs := make([]error, n)
	var atLine, finished sync.WaitGroup
	gun := make(chan struct{})
	var started time.Time // written before gun is closed
	for i, s := range pool[:n] {
		atLine.Add(1)
		arrive := sync.OnceFunc(atLine.Done)
		finished.Go(func() {
			defer arrive() // also without a namespace to run in
			errs[i] = c.host().Do(func() error {
				op, err := c.prepare(verb, s)
				arrive()
				if err != nil {
					return err
				}
				<-gun
				_, err = op.run()
				b.each[i] = inMilliseconds(time.Since(started))
				return errors.Join(err, op.done())
			})
		})
	}
	atLine.Wait()
	started = time.Now()
	close(gun)
	finished.Wait()
	for i, err := range errs {
		if err != nil {
			return batch{}, fmt.Errorf("%s %s in sandbox %d of %d: %w", c.name(), verb, i, n, err)
		}
		b.all = max(b.all, b.each[i])
	}
	return b, nil
}

// runSerially does verb to n sandboxes one after the other.
func runSerially(c contender, verb verb, n int) (batch, error) {
	var b batch
	err := c.host().Do(func() error {
		for _, s := range c.sandboxes()[:n] {
			op, err := c.prepare(verb, s)
			if err != nil {
				return err
			}
			took, err := op.run()
			if err := errors.Join(err, op.done()); err != nil {
				return err
			}
			b.each = append(b.each, inMilliseconds(took))
			b.all += inMilliseconds(took)
		}
		return nil
	})
	if err != nil {
		return b, fmt.Errorf("%s %s: %w", c.name(), verb, err)
	}
	return b, nil
}

func inMilliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// newSandboxes makes n namespaces to attach.
func newSandboxes(prefix string, n int) ([]*sandbox, error) {
	var all []*sandbox
	for i := range n {
		ns, err := netlab.NewNS(fmt.Sprintf("%s-%d", prefix, i))
		if err != nil {
			return nil, err
		}
		all = append(all, &sandbox{ns: ns})
	}
	return all, nil
}
