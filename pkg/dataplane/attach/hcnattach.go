package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
)

// Attach puts a sandbox on a segment. The same request again gives the same
// answer and mends what is missing; with another namespace, the earlier
// attachment is replaced. A second container in the namespace of a sandbox that
// is attached by an interface of that name gets the answer of the first, and is
// none of its own: Lookup does not know it, and its Detach does nothing. After
// an error, or when ctx ends, nothing is left, or Run removes it as soon as HCN
// lets go of it.
//
// Errors: ErrInvalid, ErrConflict (another sandbox has an address, the address
// is none for a sandbox of this segment, or this sandbox is attached otherwise).
func (a *hcnAttacher) Attach(ctx context.Context, spec Spec) (Attachment, error) {
	attachment, err := a.attach(ctx, spec)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach sandbox %s to segment %s: %w", spec.Key, shorten(spec.Segment), err)
	}
	return attachment, nil
}

func (a *hcnAttacher) attach(ctx context.Context, spec Spec) (_ Attachment, err error) {
	if err := spec.validateRequest(); err != nil {
		return Attachment{}, err
	}
	if spec.Namespace != "" {
		if spec.Namespace, err = parseGUID(spec.Namespace); err != nil {
			return Attachment{}, fmt.Errorf("namespace: %w", err)
		}
	}
	if err := a.load(ctx); err != nil {
		return Attachment{}, err
	}
	unlock, err := a.keys.Lock(ctx, spec.Key.ID())
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()
	if spec.Namespace != "" {
		unlock, err := a.keys.Lock(ctx, "namespace "+spec.Namespace)
		if err != nil {
			return Attachment{}, err
		}
		defer unlock()
	}
	before, found := a.before(spec)
	switch {
	case !found:
		return a.attachNew(ctx, spec)
	case before.Key.ID() != spec.Key.ID():
		return a.answerOf(ctx, before, spec)
	}
	attachment, again, err := a.attachAgain(ctx, before, spec)
	if again || err != nil {
		return attachment, err
	}
	return a.attachNew(ctx, spec)
}

// before finds what the request may be a repetition of: the sandbox's own
// attachment, or that of another container in its namespace.
func (a *hcnAttacher) before(spec Spec) (hcnAttachment, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r, _, found := a.state.attachment(spec.Key.ID()); found {
		return r, true
	}
	i := slices.IndexFunc(a.state.Attachments, func(r hcnAttachment) bool {
		return r.State == hcnAttached && spec.Namespace != "" && r.Namespace == spec.Namespace && r.Key.IfName == spec.Key.IfName
	})
	if i < 0 {
		return hcnAttachment{}, false
	}
	return a.state.Attachments[i], true
}

// attachAgain answers a request for a sandbox that is attached. again is false
// if the earlier attachment turned out to be gone, unfinished or of another
// namespace, and is out of the way.
func (a *hcnAttacher) attachAgain(ctx context.Context, before hcnAttachment, spec Spec) (_ Attachment, again bool, err error) {
	if before.State != hcnAttached || before.Namespace != cmp.Or(spec.Namespace, before.Namespace) {
		if err := a.checkNamespace(ctx, spec.Namespace); err != nil { // before a sandbox that works is cut off for it
			return Attachment{}, true, err
		}
		return Attachment{}, false, a.remove(ctx, before)
	}
	have := a.public(before)
	if err := sameRequest(have, spec); err != nil {
		return Attachment{}, true, err
	}
	endpoints, err := a.listEndpoints(ctx)
	if err != nil {
		return Attachment{}, true, err
	}
	switch mended, whole, err := a.mend(ctx, before, endpoints); {
	case err != nil:
		return Attachment{}, true, err
	case !whole:
		return Attachment{}, false, a.remove(ctx, mended)
	default:
		before, have = mended, a.public(mended)
	}
	if before.Network == "" && spec.Network != "" {
		before.Network, have.Network = spec.Network, spec.Network
		if err := a.put(before); err != nil {
			return Attachment{}, true, err
		}
	}
	if spec.BeforeUp != nil {
		if err := spec.BeforeUp(ctx, have); err != nil {
			return Attachment{}, true, err
		}
	}
	return have, true, nil
}

// answerOf answers for a further container of a pod, by the attachment of the
// first. The addresses that were asked for it are nobody's.
func (a *hcnAttacher) answerOf(ctx context.Context, first hcnAttachment, spec Spec) (Attachment, error) {
	have := a.public(first)
	spec.Addrs, spec.MAC = first.Addrs, nil
	if err := sameRequest(have, spec); err != nil {
		return Attachment{}, err
	}
	namespace, err := a.namespace(ctx, first.Namespace)
	if err != nil {
		return Attachment{}, err
	}
	if !namespace.holds(first.Endpoint) { // whose repair is not for us: its sandbox is not locked
		a.ring()
		return Attachment{}, fmt.Errorf("HCN namespace %s lacks the endpoint of sandbox %s", first.Namespace, first.Key)
	}
	return have, nil
}

// mend makes an endpoint anew that is gone, and puts one back into its namespace
// that is not in it any more: the runtime asks once for a sandbox, and would not
// know. whole is false if the namespace is gone, or the sandbox has no place on its
// segment any more. endpoints is what HCN has.
func (a *hcnAttacher) mend(ctx context.Context, r hcnAttachment, endpoints []hcnEndpoint) (_ hcnAttachment, whole bool, err error) {
	namespace, err := a.namespace(ctx, r.Namespace)
	if err != nil {
		return r, false, unlessGone(err)
	}
	placed := namespace.holds(r.Endpoint)
	if !slices.ContainsFunc(endpoints, func(e hcnEndpoint) bool { return sameID(e.ID, r.Endpoint) }) {
		if err := a.dropUntold(ctx, r, endpoints); err != nil {
			return r, false, err
		}
		if r, err = a.remake(ctx, r, placed); errors.Is(err, ErrConflict) {
			a.log.Warn("endpoint is gone for good", "op", "mend", "sandbox", r.Key.String(), "iface", r.Endpoint, "err", err)
			return r, false, nil
		}
		if err != nil {
			return r, false, err
		}
		placed = false
	}
	if err := a.hold(ctx, r); err != nil {
		return r, false, err
	}
	if placed {
		return r, true, nil
	}
	a.log.Info("endpoint is not in its namespace, putting it back", "op", "mend", "sandbox", r.Key.String(), "iface", r.Endpoint)
	err = a.place(ctx, r)
	return r, err == nil, unlessGone(err)
}

// remake makes the endpoint of an attachment anew, with the addresses that the
// record has. referred says that the namespace has a reference to the former one.
// ErrConflict says that the segment has no subnet for it any more.
func (a *hcnAttacher) remake(ctx context.Context, r hcnAttachment, referred bool) (hcnAttachment, error) {
	a.log.Info("endpoint is gone, making it anew", "op", "mend", "sandbox", r.Key.String(), "iface", r.Endpoint)
	w := &hcnWork{hcnAttachment: r, attacher: a}
	if err := w.findNetwork(ctx); err != nil {
		return r, err
	}
	w.Subnets = w.network.subnets()
	for _, addr := range w.Addrs {
		if err := checkHost(w.Subnets, addr); err != nil {
			return r, err
		}
	}
	if referred {
		if err := unlessGone(a.takeOut(ctx, r.Namespace, r.Endpoint)); err != nil {
			return r, err
		}
	}
	err := w.makeEndpoint(ctx)
	return w.hcnAttachment, err
}

// attachNew attaches a sandbox that is not attached.
func (a *hcnAttacher) attachNew(ctx context.Context, spec Spec) (_ Attachment, err error) {
	if err := a.checkNamespace(ctx, spec.Namespace); err != nil {
		return Attachment{}, err
	}
	w := &hcnWork{attacher: a, spec: spec}
	if err := w.reserve(ctx); err != nil {
		return Attachment{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.undo(ctx))
		}
	}()
	for _, step := range []func(context.Context) error{w.makeNamespace, w.makeEndpoint, w.beforeUp, w.place, w.commit} {
		if err := errors.Join(step(ctx), ctx.Err()); err != nil {
			return Attachment{}, err
		}
	}
	return w.attacher.public(w.hcnAttachment), nil
}

// checkNamespace wants a namespace that a sandbox can have; none is as well.
func (a *hcnAttacher) checkNamespace(ctx context.Context, id string) error {
	if id == "" {
		return nil
	}
	namespace, err := a.namespace(ctx, id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	case err != nil:
		return err
	case namespace.Type != "" && !strings.EqualFold(namespace.Type, hcnHost):
		// HostDefault is the host's own, and HCS takes no container into it. A virtual machine learns of what comes into its
		// Guest only if it is told, which nobody does here.
		return fmt.Errorf("HCN namespace %s is of type %s, which is no sandbox: %w", id, shorten(namespace.Type), ErrInvalid)
	}
	return a.dropStale(ctx, namespace)
}

// dropStale takes the references to endpoints out of a namespace that are gone: HCN
// keeps them, and HCS starts no container by them.
func (a *hcnAttacher) dropStale(ctx context.Context, namespace hcnNamespace) error {
	referred := namespace.endpoints()
	if len(referred) == 0 {
		return nil
	}
	endpoints, err := a.listEndpoints(ctx)
	if err != nil {
		return err
	}
	for _, id := range referred {
		if slices.ContainsFunc(endpoints, func(e hcnEndpoint) bool { return sameID(e.ID, id) }) {
			continue
		}
		a.log.Info("namespace refers to an endpoint that is gone, taking it out", "op", "attach", "namespace", namespace.ID, "iface", id)
		if err := unlessGone(a.takeOut(ctx, namespace.ID, id)); err != nil {
			return err
		}
	}
	return nil
}

// takeOut removes an endpoint from a namespace.
func (a *hcnAttacher) takeOut(ctx context.Context, namespace, endpoint string) error {
	return hcnDo(ctx, a.calls, "remove endpoint "+endpoint+" from HCN namespace", namespace, func() error {
		return a.api.ModifyNamespace(namespace, endpointChange(hcnRemove, endpoint))
	})
}

// hold keeps a namespace of ours open as long as its sandbox is there: HCS finds
// none that nobody has open (0x80070490). The runtime sees to those of its own.
func (a *hcnAttacher) hold(ctx context.Context, r hcnAttachment) error {
	a.mu.Lock()
	_, held := a.held[r.Namespace]
	a.mu.Unlock()
	if held || !r.OwnNamespace {
		return nil
	}
	handle, err := hcnMake(ctx, a.calls, "open HCN namespace", r.Namespace,
		func() (io.Closer, error) { return a.api.OpenNamespace(r.Namespace) }, func(late io.Closer) { _ = late.Close() })
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held[r.Namespace] = handle
	return nil
}

// letGo closes what hold opened.
func (a *hcnAttacher) letGo(namespace string) error {
	a.mu.Lock()
	handle, held := a.held[namespace]
	delete(a.held, namespace)
	a.mu.Unlock()
	if !held {
		return nil
	}
	if err := handle.Close(); err != nil {
		return fmt.Errorf("close HCN namespace %s: %w", namespace, err)
	}
	return nil
}

func (a *hcnAttacher) namespace(ctx context.Context, id string) (hcnNamespace, error) {
	return hcnCall(ctx, a.calls, "look at HCN namespace", id, func() (hcnNamespace, error) { return a.api.Namespace(id) })
}

// place adds an endpoint to its namespace, where it may be already.
func (a *hcnAttacher) place(ctx context.Context, r hcnAttachment) error {
	err := hcnDo(ctx, a.calls, "add endpoint "+r.Endpoint+" to HCN namespace", r.Namespace, func() error {
		return a.api.ModifyNamespace(r.Namespace, endpointChange(hcnAdd, r.Endpoint))
	})
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	namespace, looked := a.namespace(ctx, r.Namespace)
	if looked != nil || !namespace.holds(r.Endpoint) { // it is in another one
		return errors.Join(err, looked)
	}
	return nil
}

// hcnWork is one attachment being made.
type hcnWork struct {
	hcnAttachment
	attacher *hcnAttacher
	spec     Spec
	network  hcnNetwork
	untold   bool // HCN may have made an endpoint and not said so
}

// reserve finds the segment's network and writes the attachment down with all
// its ids, so that nobody else gets its addresses and none of it is lost.
func (w *hcnWork) reserve(ctx context.Context) error {
	a := w.attacher
	home := a.home(SegmentSpec{Name: w.spec.Segment})
	unlock, err := a.lockSegment(ctx, home)
	if err != nil {
		return err
	}
	defer unlock()
	if w.network, err = a.networkOf(ctx, SegmentSpec{Name: home}); err != nil {
		return err
	}
	w.hcnAttachment = hcnAttachment{
		Key: w.spec.Key, State: hcnMaking, Segment: w.spec.Segment, Home: home, Network: w.spec.Network, Addrs: slices.Clone(w.spec.Addrs),
		Subnets: w.network.subnets(), MAC: macText(w.spec.MAC), DNS: w.spec.DNS, Endpoint: newGUID(),
		Namespace: cmp.Or(w.spec.Namespace, newGUID()), OwnNamespace: w.spec.Namespace == "",
	}
	for _, addr := range w.Addrs {
		if err := checkHost(w.Subnets, addr); err != nil {
			return err
		}
	}
	return a.change(func(s hcnState) (hcnState, error) {
		for _, other := range s.Attachments {
			if i := slices.IndexFunc(w.Addrs, func(addr netip.Addr) bool { return slices.Contains(other.Addrs, addr) }); i >= 0 {
				return s, fmt.Errorf("sandbox %s has the address %s: %w", other.Key, w.Addrs[i], ErrConflict)
			}
		}
		w.Number = s.Last + 1
		return s.withAttachment(w.hcnAttachment), nil
	})
}

// makeNamespace makes a namespace for a sandbox that brought none.
func (w *hcnWork) makeNamespace(ctx context.Context) error {
	if !w.OwnNamespace {
		return nil
	}
	a := w.attacher
	wanted := namespaceWanted(w.Namespace)
	made, err := hcnMake(ctx, a.calls, "create HCN namespace", w.Namespace,
		func() (hcnNamespace, error) { return a.api.CreateNamespace(wanted) },
		func(late hcnNamespace) { a.dropLate("namespace", wanted.ID, late.ID, a.api.DeleteNamespace) })
	if err != nil {
		return err
	}
	if made.ID != "" && !sameID(made.ID, w.Namespace) {
		w.Namespace = strings.ToLower(made.ID)
		if err := a.put(w.hcnAttachment); err != nil {
			return err
		}
	}
	return a.hold(ctx, w.hcnAttachment)
}

// makeEndpoint makes the endpoint. A network that somebody removed is made anew
// once.
func (w *hcnWork) makeEndpoint(ctx context.Context) error {
	made, err := w.createEndpoint(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		a := w.attacher
		a.log.Warn("network is gone, making it anew", "op", "attach", "iface", w.network.Name)
		if err := w.findNetwork(ctx); err != nil {
			return err
		}
		made, err = w.createEndpoint(ctx)
	}
	if w.untold = err != nil; w.untold {
		return err
	}
	if made.ID != "" && !sameID(made.ID, w.Endpoint) {
		w.Endpoint = strings.ToLower(made.ID)
	}
	w.MAC = cmp.Or(made.MacAddress, w.MAC)
	if err := w.attacher.put(w.hcnAttachment); err != nil {
		return err
	}
	for _, addr := range w.Addrs {
		if !made.has(addr) {
			return fmt.Errorf("HCN endpoint %s got the addresses %v, not %s", w.Endpoint, made.IPConfigurations, addr)
		}
	}
	if w.spec.MAC != nil && !slices.Equal(w.mac(), w.spec.MAC) { // which no repetition of the request would find
		return fmt.Errorf("HCN endpoint %s got the hardware address %s, not %s", w.Endpoint, w.MAC, w.spec.MAC)
	}
	return nil
}

func (w *hcnWork) createEndpoint(ctx context.Context) (hcnEndpoint, error) {
	a := w.attacher
	wanted := endpointWanted(w.hcnAttachment, w.network.ID, a.cfg)
	return hcnMake(ctx, a.calls, "create HCN endpoint", w.Endpoint,
		func() (hcnEndpoint, error) { return a.api.CreateEndpoint(wanted) },
		func(late hcnEndpoint) { a.dropLate("endpoint", wanted.ID, late.ID, a.api.DeleteEndpoint) })
}

// findNetwork looks at the network again that the attachment is to be on, and has
// it made anew where it is gone.
func (w *hcnWork) findNetwork(ctx context.Context) error {
	a := w.attacher
	unlock, err := a.lockSegment(ctx, w.Home)
	if err != nil {
		return err
	}
	defer unlock()
	a.forgetNetwork(w.Home)
	w.network, err = a.networkOf(ctx, SegmentSpec{Name: w.Home})
	return err
}

func (w *hcnWork) beforeUp(ctx context.Context) error {
	if w.spec.BeforeUp == nil {
		return nil
	}
	return w.spec.BeforeUp(ctx, w.attacher.public(w.hcnAttachment))
}

func (w *hcnWork) place(ctx context.Context) error { return w.attacher.place(ctx, w.hcnAttachment) }

// commit writes down that the attachment is complete.
func (w *hcnWork) commit(context.Context) error {
	w.State = hcnAttached
	return w.attacher.put(w.hcnAttachment)
}

// undo removes whatever there is of the attachment. Its own time has begun.
func (w *hcnWork) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.attacher.timeout)
	defer cancel()
	a := w.attacher
	err := a.ringIf(a.remove(ctx, w.hcnAttachment))
	if w.untold && err == nil {
		var endpoints []hcnEndpoint
		if endpoints, err = a.listEndpoints(ctx); err == nil {
			err = a.dropUntold(ctx, w.hcnAttachment, endpoints)
		}
	}
	if err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}
