package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

// undoTimeout bounds the work after an attach failed or a port vanished.
const undoTimeout = 10 * time.Second

// AttachRequest asks for a sandbox to be put on the segment of its service.
type AttachRequest struct {
	// Key names the sandbox.
	Key attach.Key
	// Netns is its network namespace; the caller keeps and closes it. Namespace takes its place on Windows.
	Netns *os.File
	// Namespace is the GUID of its HCN namespace, on Windows alone.
	Namespace string
	// Service is the one that the sandbox joins; without a name it is put on DefaultSegment.
	Service ServiceRequest
	// IPs are wanted addresses, at most one of each slice; the rest is chosen.
	IPs []netip.Addr
	// MAC is the sandbox's hardware address; nil derives one.
	MAC net.HardwareAddr
	// MTU is that of the sandbox's interface in bytes, at most the overlay's; 0 means the overlay's.
	MTU int
	// DNS is what the sandbox resolves names with, on Windows alone.
	DNS attach.DNS
	// Network is the one whose GC may collect the sandbox; empty for none. Naming another one later is a conflict.
	Network string
}

// Attachment tells how a sandbox is attached.
type Attachment struct {
	attach.Attachment
	// Prefixes are the addresses as they stand on the interface: /32 and /128, on Windows in their subnet.
	Prefixes []netip.Prefix
	// Gateways are the next hops of the sandbox's default routes, one of each of its families.
	Gateways []netip.Addr
}

// Attach puts a sandbox on its segment. The same request again gives the same
// answer and repairs what is missing. On an error nothing is left of it.
//
// Errors: ErrNotReady, ErrInvalid, ErrConflict and ErrLimit because of the
// service, ipam.ErrExhausted, ipam.ErrTaken, ipam.ErrOutside, and those of
// attach.Attacher.Attach.
func (d *Dataplane) Attach(ctx context.Context, req AttachRequest) (Attachment, error) {
	parts := d.current()
	if parts == nil {
		return Attachment{}, fmt.Errorf("attach sandbox %s: %s: %w", req.Key, d.whyWaiting(), ErrNotReady)
	}
	if err := parts.device.Ready(); err != nil {
		return Attachment{}, fmt.Errorf("attach sandbox %s: %w: %w", req.Key, err, ErrNotReady)
	}
	if req.MTU > parts.device.MTU() || req.MTU < 0 {
		return Attachment{}, fmt.Errorf("attach sandbox %s: MTU %d, the overlay's is %d: %w", req.Key, req.MTU, parts.device.MTU(), ErrInvalid)
	}
	unlock, err := d.sandboxes.Lock(ctx, req.Key.ID())
	if err != nil {
		return Attachment{}, fmt.Errorf("attach sandbox %s: %w", req.Key, err)
	}
	defer unlock()
	attached, err := d.attach(ctx, parts, req)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach sandbox %s: %w", req.Key, err)
	}
	d.answered.note(req.Key.ID())
	// From here on only the answer can be lost.
	return describe(attached), failpoint.Hit("dataplane/attached")
}

// attach joins the sandbox's service before anything else, and leaves it after
// everything else.
func (d *Dataplane) attach(ctx context.Context, parts *parts, req AttachRequest) (attach.Attachment, error) {
	segment := cmp.Or(req.Service.Name, DefaultSegment)
	if before, found := parts.attacher.Lookup(req.Key); found && segment != DefaultSegment && !before.OfSegment(segment) {
		return attach.Attachment{}, fmt.Errorf("it is on segment %s: %w", shorten(before.Segment), attach.ErrConflict)
	}
	if first, found := podOf(parts.attacher, req.Key, req.Namespace); found {
		return d.answerOf(ctx, parts, req, first)
	}
	addrs, undo, err := d.allocateFor(ctx, parts, req)
	if err != nil {
		return attach.Attachment{}, err
	}
	attached, err := d.attachWith(ctx, parts, req, addrs, undo)
	if kept, _ := parts.attacher.Lookup(req.Key); (err != nil || attached.Key.ID() != req.Key.ID()) && kept.PortIndex == 0 {
		undo() // another container of its pod may have come at the same time, and the answer is that one's
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		d.leave(ctx, parts.services, req.Key.ID(), "")
	}
	return attached, err
}

// answerOf answers for a further container of a pod as for the first.
func (d *Dataplane) answerOf(ctx context.Context, parts *parts, req AttachRequest, first attach.Attachment) (attach.Attachment, error) {
	attached, err := d.attachWith(ctx, parts, req, first.Addrs, func() {})
	if err == nil && attached.Key.ID() == req.Key.ID() { // so the first went meanwhile, and its addresses may be anybody's
		err = fmt.Errorf("the namespace was left by its sandbox just now: %w", ErrNotReady)
		return attach.Attachment{}, errors.Join(err, parts.attacher.Detach(context.WithoutCancel(ctx), req.Key))
	}
	return attached, err
}

// podOf is the attachment of the sandbox that a container shares its HCN namespace
// with, as all of a pod do. It is the answer for each of them, and none of their
// own: no address is taken for them, and no service joined.
func podOf(attached attacher, key attach.Key, namespace string) (attach.Attachment, bool) {
	if _, found := attached.Lookup(key); found {
		return attach.Attachment{}, false
	}
	for _, a := range inNamespace(attached, namespace) {
		if a.Key.IfName == key.IfName {
			return a, true
		}
	}
	return attach.Attachment{}, false
}

// inNamespace are the attachments in an HCN namespace.
func inNamespace(attached attacher, namespace string) []attach.Attachment {
	if namespace == "" {
		return nil
	}
	return slices.DeleteFunc(attached.List(), func(a attach.Attachment) bool { return !attach.SameNamespace(a.Namespace, namespace) })
}

// allocateFor gives the sandbox addresses, as one of its service's if it names
// one.
func (d *Dataplane) allocateFor(ctx context.Context, parts *parts, req AttachRequest) ([]netip.Addr, func(), error) {
	if req.Service.Name != "" && req.Service.Name != DefaultSegment {
		return d.join(ctx, req)
	}
	addrs, undo, err := parts.addresses.allocate(req.Key.ID(), req.IPs, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("allocate addresses: %w", err)
	}
	return addrs, undo, nil
}

func (d *Dataplane) attachWith(ctx context.Context, parts *parts, req AttachRequest, addrs []netip.Addr, undo func()) (attach.Attachment, error) {
	if err := failpoint.Hit("dataplane/allocated"); err != nil {
		undo()
		return attach.Attachment{}, err
	}
	spec := attach.Spec{
		Key: req.Key, Netns: req.Netns, Namespace: req.Namespace, Segment: cmp.Or(req.Service.Name, DefaultSegment), Addrs: addrs, MAC: req.MAC, MTU: req.MTU,
		DNS: req.DNS, Network: req.Network,
	}
	before, _ := parts.attacher.Lookup(req.Key)
	pinned := 0
	spec.BeforeUp = func(ctx context.Context, a attach.Attachment) error {
		pinned = a.PortIndex
		return d.pin(ctx, a)
	}
	if spec.MTU == 0 {
		spec.MTU = parts.device.MTU()
	}
	attached, err := parts.attacher.Attach(ctx, spec)
	d.tellAttachment(parts, req.Key) // before anybody else may have addresses that it had
	if err != nil {
		undo()
		if kept, _ := parts.attacher.Lookup(req.Key); kept.PortIndex == 0 {
			parts.addresses.release(req.Key.ID()) // those of an earlier namespace, which made way
		}
	}
	// The sandbox may have come by a new namespace, and so by another port.
	err = errors.Join(err, d.unpinLeft(ctx, parts, req.Key, before.PortIndex, pinned))
	return attached, err
}

// unpinLeft takes back the pins of the ports by which the sandbox is no longer,
// or never was, attached.
func (d *Dataplane) unpinLeft(ctx context.Context, parts *parts, key attach.Key, ports ...int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	kept, _ := parts.attacher.Lookup(key)
	for _, port := range ports {
		if port == 0 || port == kept.PortIndex {
			continue
		}
		if err := d.unpin(ctx, port); err != nil {
			return fmt.Errorf("unpin sources of port %d: %w", port, err)
		}
	}
	return nil
}

func describe(a attach.Attachment) Attachment {
	answer := Attachment{Attachment: a}
	for i, addr := range a.Addrs {
		if i < len(a.Subnets) {
			answer.Prefixes = append(answer.Prefixes, netip.PrefixFrom(addr, a.Subnets[i].Bits()))
			answer.Gateways = append(answer.Gateways, attach.SubnetGateway(a.Subnets[i]))
			continue
		}
		answer.Prefixes = append(answer.Prefixes, netip.PrefixFrom(addr, addr.BitLen()))
		answer.Gateways = append(answer.Gateways, attach.Gateway(addr))
	}
	return answer
}

// Detach takes a sandbox off its segment and frees its addresses. It needs no
// namespace; a sandbox that is not attached is no error.
func (d *Dataplane) Detach(ctx context.Context, key attach.Key) error {
	return d.detach(ctx, key, end)
}

// DetachNamespace is Detach of every sandbox in an HCN namespace. One without
// sandboxes is no error, and neither is one that is none.
func (d *Dataplane) DetachNamespace(ctx context.Context, namespace string) error {
	parts := d.current()
	if parts == nil {
		return fmt.Errorf("detach namespace %s: %s: %w", shorten(namespace), d.whyWaiting(), ErrNotReady)
	}
	var errs []error
	for _, a := range inNamespace(parts.attacher, namespace) {
		errs = append(errs, d.Detach(ctx, a.Key))
	}
	return errors.Join(errs...)
}

// detach leaves a sandbox alone that was attached after since.
func (d *Dataplane) detach(ctx context.Context, key attach.Key, since Moment) error {
	parts := d.current()
	if parts == nil {
		return fmt.Errorf("detach sandbox %s: %s: %w", key, d.whyWaiting(), ErrNotReady)
	}
	unlock, err := d.sandboxes.Lock(ctx, key.ID())
	if err != nil {
		return fmt.Errorf("detach sandbox %s: %w", key, err)
	}
	defer unlock()
	if d.answered.after(key.ID(), since) {
		return nil
	}
	attached, _ := parts.attacher.Lookup(key) // or what an earlier Detach did not finish
	err = parts.attacher.Detach(ctx, key)
	d.tellAttachment(parts, key) // before anybody else may have its addresses
	if err != nil {
		return fmt.Errorf("detach sandbox %s: %w", key, err)
	}
	if err := failpoint.Hit("dataplane/detached"); err != nil {
		return err
	}
	if attached.PortIndex != 0 {
		if err := d.unpin(ctx, attached.PortIndex); err != nil {
			return fmt.Errorf("detach sandbox %s: unpin its sources: %w", key, err)
		}
	}
	parts.addresses.release(key.ID())
	d.answered.forget(key.ID())
	if err := failpoint.Hit("dataplane/released"); err != nil {
		return err
	}
	d.leave(ctx, parts.services, key.ID(), "")
	return nil
}

// Check compares an attachment with how it was made and returns it as Attach
// would, or all that is wrong with it. netns is the sandbox's namespace, in whose
// place the GUID of its HCN namespace may stand on Windows. The firewall is repaired
// rather than reported: it is the node's, not the sandbox's.
func (d *Dataplane) Check(ctx context.Context, key attach.Key, netns *os.File, namespace string) (Attachment, error) {
	parts := d.current()
	if parts == nil {
		return Attachment{}, fmt.Errorf("check sandbox %s: %s: %w", key, d.whyWaiting(), ErrNotReady)
	}
	if first, found := podOf(parts.attacher, key, namespace); found {
		key = first.Key
	}
	unlock, err := d.sandboxes.Lock(ctx, key.ID())
	if err != nil {
		return Attachment{}, fmt.Errorf("check sandbox %s: %w", key, err)
	}
	defer unlock()
	if err := errors.Join(parts.attacher.Check(ctx, key, netns), d.applyFirewall(ctx, parts, nil)); err != nil {
		return Attachment{}, fmt.Errorf("check sandbox %s: %w", key, err)
	}
	attached, still := parts.attacher.Lookup(key)
	if !still { // its port vanished since
		return Attachment{}, fmt.Errorf("check sandbox %s: %w", key, attach.ErrNotAttached)
	}
	return describe(attached), nil
}

// forget frees what a port held that vanished without a detach: its namespace
// was removed, or someone deleted the link.
func (d *Dataplane) forget(ctx context.Context, parts *parts, gone attach.Attachment) {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	unlock, err := d.sandboxes.Lock(ctx, gone.Key.ID())
	if err != nil {
		return // shutting down: the next start finds no link and so no lease
	}
	defer unlock()
	if err := d.unpin(ctx, gone.PortIndex); err != nil {
		d.log.Warn("unpin sources of a vanished port, the next resync will", "op", "forget", "sandbox", gone.Key.String(), "err", err)
	}
	if now, again := parts.attacher.Lookup(gone.Key); again { // attached anew meanwhile
		d.tellAttachment(parts, gone.Key)
		d.leave(ctx, parts.services, gone.Key.ID(), parts.services.nameOf(now))
		return
	}
	d.tellAttachment(parts, gone.Key)
	parts.addresses.release(gone.Key.ID())
	d.answered.forget(gone.Key.ID())
	d.leave(ctx, parts.services, gone.Key.ID(), "")
	d.log.Info("port vanished, addresses freed", "op", "forget", "sandbox", gone.Key.String(), "iface", gone.Port)
}
