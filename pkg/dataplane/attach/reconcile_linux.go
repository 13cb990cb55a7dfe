package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// Recover reads what is attached from the kernel, removes what an earlier run
// did not finish, mends the rest, and returns it. Every other method does it
// first if nobody has.
func (a *Attacher) Recover(ctx context.Context) ([]Attachment, error) {
	if err := a.reconcile(ctx, a.adopt); err != nil {
		return nil, fmt.Errorf("recover attachments: %w", err)
	}
	return a.List(), nil
}

// Reconcile compares everything of ours with the kernel and writes the
// differences. Attachments whose link is gone are given to Run's callback.
func (a *Attacher) Reconcile(ctx context.Context) error {
	if err := a.load(ctx); err != nil {
		return err
	}
	if err := a.reconcile(ctx, nil); err != nil {
		return fmt.Errorf("reconcile attachments: %w", err)
	}
	return nil
}

// reconcile runs while no other call changes the kernel, so whatever is
// unfinished now will never be finished. adopt, if set, comes first.
func (a *Attacher) reconcile(ctx context.Context, adopt func(*slot) error) error {
	slot, err := a.kernel.enterAlone(ctx)
	if err != nil {
		return err
	}
	defer slot.leave()
	if adopt != nil && !a.loaded.Load() {
		if err := adopt(slot); err != nil {
			return err
		}
		a.loaded.Store(true)
	}
	if err := a.remakeBridges(slot); err != nil {
		return err
	}
	a.tryIPv6(slot)
	return a.repairAll(slot)
}

// repairAll is repair for all. A link may vanish between what is read and what
// is written, with its sandbox; then all is read again, and it is nobody's.
func (a *Attacher) repairAll(slot *slot) error {
	const tries = 10
	for try := 1; ; try++ {
		if err := a.repair(slot, ""); !errors.Is(err, unix.ENODEV) || try == tries {
			return err
		}
	}
}

// remakeBridges makes the bridges anew that someone removed. Their ports come
// back with the repairs.
func (a *Attacher) remakeBridges(slot *slot) error {
	links, err := readLinks(slot)
	if err != nil {
		return err
	}
	for _, s := range a.table.allSegments() {
		if link, found := links[s.index]; found && link.Kind == kindBridge {
			continue
		}
		a.log.Warn("bridge is gone, making it anew", "op", "reconcile", "iface", s.bridge)
		if _, err := a.makeBridge(slot, s.name, s.table); err != nil {
			return err
		}
	}
	return nil
}

// repair compares the kernel with the table and writes the differences of one
// owner, or of all and what is nobody's. For all, the caller holds all slots.
func (a *Attacher) repair(slot *slot, owner string) error {
	segments := a.table.allSegments()
	if e, found := a.table.get(owner); found {
		segments = a.segmentsOf(e)
	}
	have, err := readHost(slot, segments, a.table.all())
	if err != nil {
		return err
	}
	if owner == "" {
		a.dropVanished(have)
		if err := a.removeUnfinished(slot, have); err != nil {
			return err
		}
	}
	sources := onLink(a.cfg.Sources, have.addrs)
	a.sources.Store(&sources)
	p := plan{have: have, segments: segments, entries: a.table.all(), sources: sources, mtu: int(a.mtu.Load())}
	if owner != "" {
		p.entries = slices.DeleteFunc(p.entries, func(e entry) bool { return e.Key.ID() != owner })
	}
	var written []string
	for _, repair := range p.run() {
		if owner == "" || repair.owner == owner {
			repair.write(&slot.Batch)
			written = append(written, repair.what)
		}
	}
	if len(written) > 0 {
		a.log.Info("kernel differs from what is attached, mending", "op", "reconcile", "differences", len(written), "first", written[0])
	}
	return slot.do()
}

// segmentsOf is the segment of an attachment. Only that one is sure to be there
// while others are released.
func (a *Attacher) segmentsOf(e entry) []segment {
	s, found := a.table.segment(e.Segment)
	if !found {
		return nil
	}
	return []segment{s}
}

// dropVanished takes out attachments whose link is gone. Their routes and
// neighbours are nobody's then, and go with the repairs.
func (a *Attacher) dropVanished(have snapshot) {
	for _, e := range a.table.all() {
		if _, there := have.links[e.PortIndex]; there || e.state == attaching || a.deleter.knows(e.PortIndex) {
			continue
		}
		if e.state == detaching && a.keys.Busy(e.Key.ID()) {
			continue // its link is gone because a Detach has just removed it, which takes it out itself
		}
		a.table.remove(e)
		a.watch.report(e.Attachment)
	}
}

// removeUnfinished deletes ports that bear our mark except the alias: attaches
// that ended before they were complete.
func (a *Attacher) removeUnfinished(slot *slot, have snapshot) error {
	for _, link := range have.links {
		if _, known := a.table.at(link.Index); known || !unfinishedPort(link) || !a.table.isBridge(link.Master) {
			continue
		}
		a.log.Info("removing a port whose attach never finished", "op", "reconcile", "iface", link.Name)
		deleteLink(&slot.Batch, link.Index)
	}
	return slot.do()
}

// unfinishedPort tells whether a link has all of our mark but the alias.
func unfinishedPort(link rtnl.Link) bool {
	return link.Kind == kindVeth && link.Alias == "" && ourGroup(link.Group) && ourName(link.Name, portSuffix)
}

// tryIPv6 gives bridges the gateway of IPv6 that have none: it may have been
// switched on.
func (a *Attacher) tryIPv6(slot *slot) {
	for _, s := range a.table.allSegments() {
		if s.ipv6 {
			continue
		}
		if ok, err := addIPv6(slot, s); err == nil && ok {
			s.ipv6 = true
			a.table.putSegment(s)
		}
	}
}

// refreshSources finds out which of the wanted sources are on a link now.
func (a *Attacher) refreshSources(slot *slot) error {
	addrs, err := readAddrs(slot)
	if err != nil {
		return err
	}
	sources := onLink(a.cfg.Sources, addrs)
	a.sources.Store(&sources)
	return nil
}
