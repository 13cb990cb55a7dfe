package attach

import (
	"cmp"
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// attachAgain answers a request for a sandbox that is attached. again is false
// if the earlier attachment turned out to be gone or of another namespace, and
// is out of the way.
func (a *Attacher) attachAgain(ctx context.Context, before entry, spec Spec) (_ Attachment, again bool, err error) {
	link, netns, err := a.lookAt(ctx, before, spec)
	if err != nil {
		return Attachment{}, false, err
	}
	parsed, aliasErr := parsePortAlias(link.Alias)
	switch {
	case before.state != attached, link.Index == 0, link.PeerNS != netns, aliasErr != nil, parsed.Key.ID() != spec.Key.ID():
		return Attachment{}, false, a.detachEntry(ctx, before)
	}
	if err := sameRequest(before.Attachment, spec); err != nil {
		return Attachment{}, true, err
	}
	mended, err := a.mend(ctx, before, link.Peer, spec)
	return mended, true, err
}

// lookAt reads an attachment's host link, the zero Link if it is gone, and the
// number under which the host knows the request's namespace, none if it never
// had to do with it.
func (a *Attacher) lookAt(ctx context.Context, e entry, spec Spec) (link rtnl.Link, netns int, err error) {
	const none = -2 // -1 is a veth's half in the host's own namespace
	descriptor, err := rtnl.Descriptor(spec.Netns)
	if err != nil {
		return rtnl.Link{}, none, err
	}
	slot, err := a.kernel.enter(ctx)
	if err != nil {
		return rtnl.Link{}, none, err
	}
	defer slot.leave()
	netns = none
	getLink(&slot.Batch, e.PortIndex, "")
	getNetNS(&slot.Batch, descriptor)
	err = slot.Do(&slot.Batch, func(i int, m rtnl.Message) {
		if i == 0 {
			link, _ = rtnl.ParseLink(m)
		} else if number, ok := rtnl.ParseNetNS(m); ok {
			netns = number
		}
	})
	return link, netns, err
}

// mend writes both halves again; what is there stays as it is.
func (a *Attacher) mend(ctx context.Context, before entry, inside int, spec Spec) (_ Attachment, err error) {
	slot, err := a.kernel.enter(ctx)
	if err != nil {
		return Attachment{}, err
	}
	defer slot.leave()
	before.Key = spec.Key // its digest may be all that was known
	before.Network = cmp.Or(spec.Network, before.Network)
	if err := a.table.put(before); err != nil {
		return Attachment{}, err
	}
	w := &work{attacher: a, slot: slot, spec: spec, entry: before, inside: inside}
	if w.bridge, err = a.bridgeOf(slot, before.Segment); err != nil {
		return Attachment{}, err
	}
	if err := w.enterSandbox(); err != nil {
		return Attachment{}, err
	}
	defer func() { err = errors.Join(err, w.sandbox.Close()) }()
	if err := w.mendHost(); err != nil {
		return Attachment{}, err
	}
	for _, step := range []func(context.Context) error{w.beforeUp, w.addressSandbox, w.raiseSandbox} {
		if err := errors.Join(ctx.Err(), step(ctx)); err != nil {
			return Attachment{}, err
		}
	}
	return w.Attachment, nil
}

// mendHost is configureHost for a port that may have all of it.
func (w *work) mendHost() error {
	setMaster(&w.slot.Batch, w.PortIndex, w.bridge.index)
	if err := w.slot.do(); err != nil {
		return err
	}
	if err := w.writeHost(); !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return w.attacher.repair(w.slot, w.Key.ID())
}
