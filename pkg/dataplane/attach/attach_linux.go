package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// undoTimeout bounds the rollback of an attachment whose own time may be over.
const undoTimeout = 10 * time.Second

// Attach puts a sandbox on a segment. The same request again gives the same
// answer and mends what is missing; with another namespace, the earlier
// attachment is replaced. After an error, or when ctx ends, nothing is left.
//
// Errors: ErrInvalid, ErrExists, ErrConflict (another sandbox has an address
// or hardware address, this sandbox is attached otherwise, or a route of
// someone else is in the way).
func (a *Attacher) Attach(ctx context.Context, spec Spec) (Attachment, error) {
	attachment, err := a.attach(ctx, spec)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach sandbox %s to segment %s: %w", spec.Key, shorten(spec.Segment), err)
	}
	return attachment, nil
}

func (a *Attacher) attach(ctx context.Context, spec Spec) (Attachment, error) {
	if spec.MTU == 0 {
		spec.MTU = int(a.mtu.Load())
	}
	if err := spec.validate(); err != nil {
		return Attachment{}, err
	}
	switch own, err := a.host.IsHost(spec.Netns); {
	case err != nil:
		return Attachment{}, err
	case own:
		return Attachment{}, fmt.Errorf("the host's own network namespace is no sandbox: %w", ErrInvalid)
	}
	if err := a.load(ctx); err != nil {
		return Attachment{}, err
	}
	unlock, err := a.keys.Lock(ctx, spec.Key.ID())
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()
	before, found := a.table.get(spec.Key.ID())
	if found {
		attachment, again, err := a.attachAgain(ctx, before, spec)
		if again || err != nil {
			return attachment, err
		}
	}
	return a.attachNew(ctx, spec)
}

// attachNew attaches a sandbox that is not attached.
func (a *Attacher) attachNew(ctx context.Context, spec Spec) (_ Attachment, err error) {
	slot, err := a.kernel.enter(ctx)
	if err != nil {
		return Attachment{}, err
	}
	defer slot.leave()
	w := &work{attacher: a, slot: slot, spec: spec}
	if err := w.reserve(); err != nil {
		return Attachment{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.undo(ctx))
		}
	}()
	for _, step := range []struct {
		do   func(ctx context.Context) error
		fail string
	}{
		{w.prepare, failBeforeCreate},
		{w.create, failCreated},
		{w.addressSandbox, failAddressed},
		{w.configureHost, failHostReady},
		{w.beforeUp, failHooked},
		{w.raiseSandbox, failSandboxReady},
		{w.settle, failSettled},
		{w.commit, failCommitted},
	} {
		if err := step.do(ctx); err != nil {
			return Attachment{}, err
		}
		if err := errors.Join(ctx.Err(), failpoint.Hit(step.fail)); err != nil {
			return Attachment{}, err
		}
	}
	a.table.set(w.entry, attached)
	return w.Attachment, nil
}

// work is one attachment being made or mended.
type work struct {
	entry
	attacher *Attacher
	slot     *slot
	spec     Spec
	bridge   segment
	alias    string
	netns    int // file descriptor of the sandbox's namespace
	inside   int // number of the sandbox's half
	sandbox  *rtnl.Socket
}

// reserve takes the addresses, so that nobody else starts with them.
func (w *work) reserve() error {
	w.Attachment = Attachment{
		Key: w.spec.Key, Segment: w.spec.Segment, Addrs: slices.Clone(w.spec.Addrs), MAC: slices.Clone(w.spec.MAC),
		HostMAC: deriveMAC("port", w.spec.Key.ID()), MTU: w.spec.MTU, Network: w.spec.Network,
	}
	if w.MAC == nil {
		w.MAC = deriveMAC("sandbox", w.spec.Key.ID())
	}
	var err error
	if w.alias, err = portAlias(w.Attachment); err != nil {
		return err
	}
	return w.attacher.table.reserve(w.Attachment)
}

// prepare finds the bridge and opens the sandbox's namespace: what can fail
// cheaply fails before there is a link.
func (w *work) prepare(context.Context) error {
	var err error
	if w.bridge, err = w.attacher.bridgeOf(w.slot, w.spec.Segment); err != nil {
		return err
	}
	w.Bridge = w.bridge.bridge
	if !w.bridge.ipv6 && slices.ContainsFunc(w.Addrs, netip.Addr.Is6) {
		return fmt.Errorf("IPv6 is switched off on the host (net.ipv6.conf.%s.disable_ipv6)", w.Bridge)
	}
	// The bridge may be new, so its hardware address is compared only now.
	if err := w.attacher.table.put(w.entry); err != nil {
		return err
	}
	return w.enterSandbox()
}

func (w *work) enterSandbox() error {
	var err error
	if w.netns, err = rtnl.Descriptor(w.spec.Netns); err != nil {
		return err
	}
	w.sandbox, err = w.attacher.host.SocketIn(w.spec.Netns)
	return inSandbox(err)
}

// create makes the pair: the port on its bridge and down, the other half in
// the sandbox. A foreign link of the port's name makes us take the next.
func (w *work) create(context.Context) error {
	for try := range nameTries {
		w.Port = portName(w.Key, try)
		err := w.createPair()
		switch {
		case err == nil:
			return w.attacher.table.put(w.entry)
		case errors.Is(err, unix.EEXIST):
			if _, taken, err := w.slot.link(0, w.Port); err != nil || taken {
				if err != nil {
					return err
				}
				continue
			}
			return fmt.Errorf("interface %s: %w", w.Key.IfName, ErrExists) // so it is the other half's name that is taken
		case errors.Is(err, unix.EINVAL):
			if remade, again := w.remakeBridge(); again != nil || !remade {
				return errors.Join(err, again)
			}
			if err := w.createPair(); err != nil {
				return err
			}
			return w.attacher.table.put(w.entry)
		default:
			return err
		}
	}
	return fmt.Errorf("links that are not ours have the names %s to %s: %w", portName(w.Key, 0), w.Port, ErrConflict)
}

func (w *work) createPair() error {
	createVeth(&w.slot.Batch, veth{
		port: w.Port, inside: w.Key.IfName, portMAC: w.HostMAC, insideMAC: w.MAC, mtu: w.spec.MTU,
		bridge: w.bridge.index, netns: w.netns,
	})
	link, err := w.slot.make(w.Port)
	if err != nil {
		return err
	}
	w.PortIndex, w.inside, w.MTU = link.Index, link.Peer, link.MTU
	return nil
}

// remakeBridge tells whether the bridge was gone, and makes it anew. Its other
// ports are for Reconcile.
func (w *work) remakeBridge() (bool, error) {
	if _, found, err := w.slot.link(w.bridge.index, ""); err != nil || found {
		return false, err
	}
	a := w.attacher
	a.bridges.Lock()
	defer a.bridges.Unlock()
	if current, _ := a.table.segment(w.spec.Segment); current.index != w.bridge.index {
		w.bridge = current
	} else {
		var err error
		if w.bridge, err = a.makeBridge(w.slot, w.spec.Segment, current.table); err != nil {
			return false, err
		}
		a.watch.wake()
	}
	w.Bridge = w.bridge.bridge
	return true, nil
}

// configureHost isolates the port before it is up, and tells the host where
// the sandbox's addresses are.
func (w *work) configureHost(context.Context) error {
	err := w.writeHost()
	if errors.Is(err, unix.EINVAL) && len(*w.attacher.sources.Load()) > 0 {
		// A source may have left its link; Reconcile puts it back into the routes when it returns.
		if refreshed := w.attacher.refreshSources(w.slot); refreshed != nil {
			return errors.Join(err, refreshed)
		}
		w.attacher.watch.wake()
		unroute(&w.slot.Batch, w.Attachment, w.bridge.index) // the other family's may be there
		for _, addr := range w.Addrs {
			deleteRoute(&w.slot.Batch, routeBetween(addr, w.PortIndex))
		}
		err = w.writeHost()
	}
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EINVAL) && w.routeTaken() {
		return fmt.Errorf("a route that is not ours is in the way: %w: %w", err, ErrConflict)
	}
	return err
}

// routeTaken tells whether someone else has a route to one of the addresses,
// which IPv6 reports as an invalid next hop.
func (w *work) routeTaken() bool {
	unroute(&w.slot.Batch, w.Attachment, w.bridge.index)
	if w.slot.do() != nil {
		return false
	}
	routes, err := readRoutes(w.slot.Socket, &w.slot.Batch, unix.RtMsg{Family: unix.AF_INET6, Table: unix.RT_TABLE_MAIN})
	return err == nil && slices.ContainsFunc(routes, func(r rtnl.Route) bool {
		return r.Dst.IsSingleIP() && slices.Contains(w.Addrs, r.Dst.Addr())
	})
}

func (w *work) writeHost() error {
	b := &w.slot.Batch
	noLinkLocal(b, w.PortIndex)
	setPort(b, w.PortIndex)
	setUp(b, w.PortIndex)
	setForwarding(b, w.PortIndex, w.MAC)
	sources := *w.attacher.sources.Load()
	for _, addr := range w.Addrs {
		for _, link := range []int{w.bridge.index, w.PortIndex} {
			setNeighbour(b, link, addr, w.MAC)
		}
		addRoute(b, routeTo(addr, w.Attachment, w.bridge.index, sources, int(w.attacher.mtu.Load())), unix.NLM_F_EXCL)
		addRoute(b, routeBetween(addr, w.PortIndex), unix.NLM_F_EXCL)
	}
	return w.slot.do()
}

func (w *work) beforeUp(ctx context.Context) error {
	if w.spec.BeforeUp == nil {
		return nil
	}
	return w.spec.BeforeUp(ctx, w.Attachment)
}

// commit writes the alias: from here on the attachment exists.
func (w *work) commit(context.Context) error {
	err := w.sandbox.Close()
	w.sandbox = nil
	setAlias(&w.slot.Batch, w.PortIndex, w.alias)
	return errors.Join(err, w.slot.do())
}

// undo removes whatever there is of the attachment. Its own time has begun.
func (w *work) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	if w.sandbox != nil {
		errs = append(errs, w.sandbox.Close())
	}
	if w.PortIndex != 0 {
		unroute(&w.slot.Batch, w.Attachment, w.bridge.index)
		errs = append(errs, w.slot.do(), w.attacher.deleter.delete(ctx, w.PortIndex))
	}
	w.attacher.table.remove(w.entry)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}
