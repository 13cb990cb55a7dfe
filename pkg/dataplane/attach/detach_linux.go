package attach

import (
	"context"
	"errors"
	"fmt"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/internal/linkalias"
)

// Detach takes a sandbox off its segment. It needs no namespace; a sandbox that
// is not attached is no error. When it returns nil, link, routes and neighbours
// are gone. When ctx ends first, the removal goes on, and Detach may be called
// again to wait for it.
func (a *Attacher) Detach(ctx context.Context, key Key) error {
	if err := a.detach(ctx, key); err != nil {
		return fmt.Errorf("detach sandbox %s: %w", key, err)
	}
	return nil
}

func (a *Attacher) detach(ctx context.Context, key Key) error {
	if err := a.load(ctx); err != nil {
		return err
	}
	unlock, err := a.keys.Lock(ctx, key.ID())
	if err != nil {
		return err
	}
	defer unlock()
	e, found := a.table.get(key.ID())
	if !found {
		return nil
	}
	return a.detachEntry(ctx, e)
}

// detachEntry removes an attachment; the caller holds its lock. Routes go
// first: a link without them is whole again after a restart, routes without
// their link would be anyone's.
func (a *Attacher) detachEntry(ctx context.Context, e entry) error {
	if err := failpoint.Hit(failBeforeDetach); err != nil {
		return err
	}
	if err := a.unrouteEntry(ctx, e); err != nil {
		return err
	}
	if err := failpoint.Hit(failUnrouted); err != nil {
		return err
	}
	if err := a.deleter.delete(ctx, e.PortIndex); err != nil {
		return err
	}
	if err := failpoint.Hit(failDeleted); err != nil {
		return err
	}
	a.table.remove(e)
	return nil
}

// unrouteEntry takes an attachment out of the host's routes and neighbours, and
// out of what Reconcile mends.
func (a *Attacher) unrouteEntry(ctx context.Context, e entry) error {
	slot, err := a.kernel.enter(ctx)
	if err != nil {
		return err
	}
	defer slot.leave()
	a.table.set(e, detaching)
	if s, found := a.table.segment(e.Segment); found {
		unroute(&slot.Batch, e.Attachment, s.index)
	}
	if err := slot.do(); err != nil {
		a.table.set(e, attached)
		return err
	}
	return nil
}

// Teardown removes everything of ours from the host, finished or not. The
// Attacher is as new afterwards. No other call may run meanwhile.
func (a *Attacher) Teardown(ctx context.Context) error {
	if err := a.teardown(ctx); err != nil {
		return fmt.Errorf("tear down segments: %w", err)
	}
	return nil
}

func (a *Attacher) teardown(ctx context.Context) error {
	if err := a.load(ctx); err != nil {
		return err
	}
	slot, err := a.kernel.enterAlone(ctx)
	if err != nil {
		return err
	}
	defer slot.leave()
	entries, segments := a.table.all(), a.table.allSegments()
	a.table.clear() // from here on links that vanish are nobody's loss
	for _, e := range entries {
		if s, found := find(segments, e.Segment); found {
			unroute(&slot.Batch, e.Attachment, s.index)
		}
		a.deleter.start(e.PortIndex)
	}
	errs := []error{slot.do()}
	for _, e := range entries {
		errs = append(errs, a.deleter.delete(ctx, e.PortIndex))
	}
	for _, s := range segments {
		removeBridge(&slot.Batch, s)
	}
	errs = append(errs, slot.do())
	return errors.Join(errs...)
}

func find(segments []segment, name string) (segment, bool) {
	for _, s := range segments {
		if linkalias.Digest(s.name) == linkalias.Digest(name) {
			return s, true
		}
	}
	return segment{}, false
}
