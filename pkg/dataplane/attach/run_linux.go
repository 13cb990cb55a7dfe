package attach

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

const (
	// settleTime gathers the changes that come together, as when a device with its address and all routes goes.
	settleTime = 20 * time.Millisecond
	// retryTime is the pause after an error of the kernel.
	retryTime = time.Second
)

// watch is what Run's goroutines tell each other.
type watch struct {
	poke chan struct{} // there is something to do; holds one

	mu       sync.Mutex   // guards all below
	vanished []int        // ports whose links are gone
	lost     []Attachment // attachments taken out of the table, not yet told
	stale    bool         // the kernel may differ from the table
}

// wake asks Run for a Reconcile.
func (w *watch) wake() {
	w.mu.Lock()
	w.stale = true
	w.mu.Unlock()
	w.ring()
}

// miss tells Run that a port's link is gone.
func (w *watch) miss(port int) {
	w.mu.Lock()
	w.vanished = append(w.vanished, port)
	w.mu.Unlock()
	w.ring()
}

// report has Run tell its caller of an attachment that is gone and out of the
// table.
func (w *watch) report(a Attachment) {
	w.mu.Lock()
	w.lost = append(w.lost, a)
	w.mu.Unlock()
	w.ring()
}

func (w *watch) ring() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

// take empties the list of things to do.
func (w *watch) take() (vanished []int, lost []Attachment, stale bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	vanished, lost, stale = w.vanished, w.lost, w.stale
	w.vanished, w.lost, w.stale = nil, nil, false
	return vanished, lost, stale
}

// Run follows the kernel until ctx ends, and returns nil then. It mends what
// foreign hands remove, and calls gone, one at a time, for every attachment
// whose link vanished other than by Detach, when routes and neighbours are
// gone too. Detach is faster while Run is alive. One Run at a time.
func (a *Attacher) Run(ctx context.Context, gone func(Attachment)) error {
	a.watch.wake() // for what happened before the subscription
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { a.listen(ctx); return nil })
	group.Go(func() error { a.tend(ctx, gone); return nil })
	err := group.Wait()
	a.deleter.wait()
	return err
}

// listen reads the kernel's announcements, and subscribes again when that
// ends.
func (a *Attacher) listen(ctx context.Context) {
	for ctx.Err() == nil {
		if err := a.listenOnce(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("lost the kernel's announcements, subscribing again", "op", "watch", "err", err)
			pause(ctx, retryTime)
		}
	}
}

func (a *Attacher) listenOnce(ctx context.Context) (err error) {
	subscription, err := a.host.Watch(
		[]uint16{
			unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
			unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
			unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE,
		},
		// Nearly all that happens is our own doing or nothing to us; what we want to know is what went, and a source that came.
		[]uint16{unix.RTM_DELLINK, unix.RTM_DELADDR, unix.RTM_NEWADDR, unix.RTM_DELROUTE, unix.RTM_DELRULE, unix.RTM_DELNEIGH},
	)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = subscription.Close() }) // ends Receive
	defer func() { stop(); err = errors.Join(err, subscription.Close()) }()
	a.watch.wake() // for what happened before
	for err == nil {
		err = subscription.Receive(a.notice)
	}
	if errors.Is(err, rtnl.ErrOverrun) {
		a.log.Info("too many changes at once, comparing everything", "op", "watch")
		return nil
	}
	return err
}

// notice decides what an announcement means to us.
func (a *Attacher) notice(m rtnl.Message) {
	switch m.Type {
	case unix.RTM_DELLINK:
		if link, ok := rtnl.ParseLink(m); ok {
			a.noticeLink(link)
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if addr, ok := rtnl.ParseAddr(m); ok && (a.isSource(addr) || m.Type == unix.RTM_DELADDR && a.table.isBridge(addr.Link)) {
			a.watch.wake()
		}
	case unix.RTM_DELROUTE:
		if route, ok := rtnl.ParseRoute(m); ok && route.Protocol == RouteProtocol && route.Dst.IsSingleIP() && a.table.owned(route.Dst.Addr()) {
			a.watch.wake()
		}
	case unix.RTM_DELRULE: // systemd-networkd, for one, removes rules that are not its own
		if rule, ok := rtnl.ParseRule(m); ok && a.wants(rule) {
			a.watch.wake()
		}
	case unix.RTM_DELNEIGH:
		if neighbour, ok := rtnl.ParseNeigh(m); ok && a.isOurNeighbour(neighbour) {
			a.watch.wake()
		}
	}
}

// wants tells whether a rule belongs to a segment.
func (a *Attacher) wants(rule rtnl.Rule) bool {
	return slices.ContainsFunc(a.table.allSegments(), func(s segment) bool { return slices.Contains(s.rules(rule.Family), rule) })
}

// noticeLink follows a link that is gone, or that left its bridge.
func (a *Attacher) noticeLink(link rtnl.Link) {
	e, port := a.table.at(link.Index)
	switch {
	case link.Family == unix.AF_BRIDGE:
		if port && e.state == attached {
			a.watch.wake()
		}
	case a.deleter.gone(link.Index): // asked for
	case port:
		a.watch.miss(link.Index)
	case a.table.isBridge(link.Index):
		a.watch.wake()
	}
}

func (a *Attacher) isSource(addr rtnl.Addr) bool {
	for _, source := range a.cfg.Sources {
		if source == addr.Prefix.Addr() {
			return true
		}
	}
	return false
}

// isOurNeighbour tells whether a neighbour or forwarding entry belongs to a
// finished attachment.
func (a *Attacher) isOurNeighbour(n rtnl.Neigh) bool {
	if n.Family == unix.AF_BRIDGE {
		e, found := a.table.at(n.Link)
		return found && e.state == attached && n.MAC.String() == e.MAC.String()
	}
	_, port := a.table.at(n.Link)
	return (port || a.table.isBridge(n.Link)) && a.table.owned(n.Dst)
}

// tend does what the announcements call for.
func (a *Attacher) tend(ctx context.Context, gone func(Attachment)) {
	for {
		select {
		case <-a.watch.poke:
		case <-ctx.Done():
			return
		}
		vanished, lost, stale := a.watch.take()
		for _, port := range vanished {
			if attachment, found := a.release(ctx, port); found {
				lost = append(lost, attachment)
			}
		}
		for _, attachment := range lost {
			a.log.Info("link of an attachment vanished", "op", "watch", "sandbox", attachment.Key.String(), "iface", attachment.Port)
			gone(attachment)
		}
		if stale {
			a.settle(ctx)
		}
	}
}

// settle reconciles when the changes that come together are there.
func (a *Attacher) settle(ctx context.Context) {
	pause(ctx, settleTime)
	if err := a.Reconcile(ctx); err != nil && ctx.Err() == nil {
		a.log.Warn("cannot mend yet, trying again", "op", "watch", "err", err)
		pause(ctx, retryTime)
		a.watch.wake()
	}
}

// release takes out an attachment whose link vanished, with its routes and
// neighbours. found is false if it has gone another way or was attached anew.
func (a *Attacher) release(ctx context.Context, port int) (_ Attachment, found bool) {
	e, found := a.table.at(port)
	if !found {
		return Attachment{}, false
	}
	unlock, err := a.keys.Lock(ctx, e.Key.ID())
	if err != nil {
		return Attachment{}, false
	}
	defer unlock()
	if e, found = a.table.at(port); !found {
		return Attachment{}, false
	}
	if err := a.unrouteEntry(ctx, e); err != nil {
		if ctx.Err() == nil {
			a.log.Warn("routes of a vanished link are left for the next comparison", "op", "watch", "err", err)
			a.watch.wake()
		}
		return Attachment{}, false
	}
	a.table.remove(e)
	return e.Attachment, true
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
