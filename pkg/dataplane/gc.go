package dataplane

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

// gcWidth is how many sandboxes a GC detaches at a time. Those share the
// kernel's wait for a link's end.
const gcWidth = 64

// Moment counts the Attach calls that have been answered: of two moments, the
// later one is not the lesser.
type Moment uint64

// end is after every Moment.
const end Moment = math.MaxUint64

// Now is the Moment between the Attach calls that have been answered and those
// that will be.
func (d *Dataplane) Now() Moment { return d.answered.moment() }

// GCRequest says what is stale.
type GCRequest struct {
	// Network is the one that Valid speaks for; empty means attachments without one.
	Network string
	// Valid are the sandboxes to keep.
	Valid []attach.Key
	// Since is the Moment at which the request came. What was attached later stays.
	Since Moment
}

// GC detaches the sandboxes of a network that are not among the valid ones. It
// goes on after an error and reports them all.
//
// Whoever made the list did so before the request came, so an attachment that
// Attach answered since then stays, also if its Attach began earlier or only
// repeated an older one. About attachments that were answered before, and after
// the list was made, nothing is known here: they go.
func (d *Dataplane) GC(ctx context.Context, req GCRequest) error {
	parts := d.current()
	if parts == nil {
		return fmt.Errorf("collect stale attachments: %s: %w", d.whyWaiting(), ErrNotReady)
	}
	if err := failpoint.Hit("dataplane/collecting"); err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, key := range req.Valid {
		keep[key.ID()] = true
	}
	all := parts.attacher.List()
	errs := make([]error, len(all))
	var group errgroup.Group
	group.SetLimit(gcWidth)
	for i, attached := range all {
		if attached.OfNetwork(req.Network) && !keep[attached.Key.ID()] {
			group.Go(func() error {
				errs[i] = d.detach(ctx, attached.Key, req.Since)
				return nil
			})
		}
	}
	_ = group.Wait() // no function above returns an error
	return errors.Join(errs...)
}

// history knows when attachments were last answered. The zero value is ready.
type history struct {
	mu   sync.Mutex // guards all below
	now  Moment
	last map[string]Moment // by key ID; none for what an earlier process attached
}

func (h *history) moment() Moment {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

// note enters an answer. The caller holds the sandbox's lock, as for the others.
func (h *history) note(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == nil {
		h.last = map[string]Moment{}
	}
	h.now++
	h.last[id] = h.now
}

// after tells whether the sandbox was answered later than since.
func (h *history) after(id string, since Moment) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last[id] > since
}

func (h *history) forget(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.last, id)
}
