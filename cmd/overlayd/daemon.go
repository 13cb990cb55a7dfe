package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/kube"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

const (
	// detachTimeout bounds a detach, as shim bounds other requests.
	detachTimeout = time.Minute
	// setNodesTimeout bounds one attempt to bring up or change the data plane.
	setNodesTimeout = time.Minute
	// startPatience is how long requests wait for the first attempt: there is none
	// as long as no node set is known.
	startPatience = 5 * time.Second
)

// nodeSource is where the node set comes from: a file or the API server. Every
// set goes to setNodes, and again until that took it.
type nodeSource interface {
	// Run follows the source until ctx ends.
	Run(ctx context.Context) error
	// InForce tells whether the data plane has the set as the source has it now.
	InForce() bool
	// Fault tells why that is not so, as far as the source itself is to blame.
	Fault() error
}

// daemon answers the socket's requests with the data plane. It keeps no state
// of its own but whether it may serve. Safe for concurrent use.
type daemon struct {
	plane    *dataplane.Dataplane
	nodes    nodeSource
	cluster  *kube.Kube // nil without Kubernetes
	config   Config
	log      *slog.Logger
	requests *requestMetrics
	graves   *graveyard
	// installer shows the runtime where the plugin is.
	installer *installer
	// end ends the process in good order.
	end context.CancelFunc

	triedOnce sync.Once
	// tried is closed when the data plane has been brought up, or could not be.
	// Requests wait for it: at a start that succeeds, none has to be repeated.
	tried chan struct{}
	// open says that sandboxes may be attached: what plugins left while the
	// daemon was away has been detached.
	open atomic.Bool
}

// setNodes hands a node set to the data plane. After the first that it takes,
// the tombstones are drained and requests are served.
func (d *daemon) setNodes(ctx context.Context, set dataplane.NodeSet) error {
	defer d.endTry()
	ctx, cancel := context.WithTimeout(ctx, setNodesTimeout)
	defer cancel()
	if err := d.plane.SetNodes(ctx, set); err != nil {
		return err
	}
	boundMemory(d.plane.Backend(), len(set.Nodes)) // now that it is known what runs the peers
	if !d.open.Load() {
		d.graves.drain(ctx)
		d.open.Store(true)
		d.installer.Served()
		d.log.Info("serving", "op", "run", "socket", d.config.Socket)
	}
	return nil
}

// endTry lets requests through: to be answered, or refused with the reason.
func (d *daemon) endTry() { d.triedOnce.Do(func() { close(d.tried) }) }

// waiting lists why no sandbox can be attached, a line for each reason.
func (d *daemon) waiting() []string {
	reasons := d.plane.Waiting()
	if len(reasons) == 0 && !d.open.Load() {
		reasons = append(reasons, "detaching what was deleted while the daemon was away")
	}
	if fault := d.nodes.Fault(); len(reasons) > 0 && fault != nil {
		reasons = append(reasons, fault.Error())
	}
	return reasons
}

// unready is waiting, and why the runtime may not find the plugin.
func (d *daemon) unready() []string {
	reasons := d.waiting()
	if fault := d.installer.Fault(); fault != nil {
		reasons = append(reasons, oneLine(fault.Error()))
	}
	return reasons
}

// mayServe waits for the first attempt to bring up the data plane, and refuses
// while there is none.
func (d *daemon) mayServe(ctx context.Context) error {
	select {
	case <-d.tried:
	case <-ctx.Done():
		return ctx.Err()
	}
	if d.open.Load() {
		return nil
	}
	return d.notReady()
}

func (d *daemon) notReady() error {
	reasons := d.waiting()
	if len(reasons) == 0 {
		return nil
	}
	errs := make([]error, len(reasons))
	for i, reason := range reasons {
		errs[i] = errors.New(reason)
	}
	return &shim.Error{
		Code: shim.CodeUnavailable, Retryable: true,
		Message: "not ready: " + oneLine(errors.Join(errs...).Error()),
	}
}

// Handle implements shim.Handler.
func (d *daemon) Handle(ctx context.Context, request shim.Request) (shim.Response, error) {
	start := time.Now()
	response, err := d.dispatch(ctx, request)
	if err != nil {
		answer := answerOf(request, err)
		d.requests.observe(request.Op(), time.Since(start), answer.Code)
		return nil, answer
	}
	d.requests.observe(request.Op(), time.Since(start), "")
	return response, nil
}

// dispatch knows the operations; what it does not name is a later version's.
func (d *daemon) dispatch(ctx context.Context, request shim.Request) (shim.Response, error) {
	switch r := request.(type) {
	case *shim.AttachContainer:
		return d.attach(ctx, r)
	case *shim.DetachContainer:
		return d.detach(ctx, r)
	case *shim.CheckContainer:
		return d.check(ctx, r)
	case *shim.GCContainers:
		return d.collect(ctx, r)
	case *shim.Ready:
		if err := d.notReady(); err != nil {
			return nil, err
		}
		return &shim.OK{}, nil
	case *shim.Status:
		return d.snapshot(ctx), nil
	case *shim.Shutdown:
		d.log.Info("asked to end", "op", "shutdown")
		d.end() // shim.Serve still answers what has begun
		return &shim.OK{}, nil
	default:
		return nil, fmt.Errorf("operation %s: %w", request.Op(), errors.ErrUnsupported)
	}
}

func (d *daemon) attach(ctx context.Context, r *shim.AttachContainer) (shim.Response, error) {
	netns, err := netnsOf(r.Handle)
	if err != nil {
		return nil, err
	}
	request, err := attachRequest(netns, r)
	if err != nil {
		return nil, err
	}
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	if err := d.checkPod(ctx, r.Pod); err != nil {
		return nil, err
	}
	// This ADD is younger than any DEL that lies there.
	if err := d.graves.forget(request.Key); err != nil {
		return nil, err
	}
	start := time.Now()
	attached, err := d.plane.Attach(ctx, request)
	if err != nil {
		return nil, err
	}
	d.log.Info("sandbox attached", "op", "attach", "sandbox", request.Key.String(), "pod", podName(r.Pod),
		"ip", attached.Addrs, "iface", attached.Port, "took", time.Since(start))
	return attachedAnswer(netns, attached), nil
}

// netnsOf returns the handle of a sandbox that is named the CNI way. The other
// kinds of handle are a later version's.
func netnsOf(handle shim.Handle) (*shim.LinuxNetns, error) {
	netns, ok := handle.(*shim.LinuxNetns)
	if !ok {
		return nil, fmt.Errorf("handle %s: %w", handle.Platform(), errors.ErrUnsupported)
	}
	if netns.ContainerID == "" || netns.IfName == "" {
		return nil, fmt.Errorf("handle without container ID or interface name: %w", dataplane.ErrInvalid)
	}
	return netns, nil
}

func keyOf(netns *shim.LinuxNetns) attach.Key {
	return attach.Key{ContainerID: netns.ContainerID, IfName: netns.IfName}
}

func attachRequest(netns *shim.LinuxNetns, r *shim.AttachContainer) (dataplane.AttachRequest, error) {
	request := dataplane.AttachRequest{Key: keyOf(netns), Netns: netns.File, IPs: r.IPs, MTU: r.MTU, Network: r.Network}
	if netns.File == nil {
		return request, fmt.Errorf("no network namespace came with the request: %w", dataplane.ErrInvalid)
	}
	if r.Service != "" && r.Service != dataplane.DefaultSegment {
		return request, fmt.Errorf("service %q: %w", r.Service, errors.ErrUnsupported)
	}
	if r.MAC == "" {
		return request, nil
	}
	mac, err := net.ParseMAC(r.MAC)
	if err != nil || len(mac) != 6 {
		return request, fmt.Errorf("MAC %q is not six bytes: %w", r.MAC, dataplane.ErrInvalid)
	}
	request.MAC = mac
	return request, nil
}

func podName(pod *shim.Pod) string {
	if pod == nil {
		return ""
	}
	return pod.Namespace + "/" + pod.Name
}

// attachedAnswer tells the plugin what the sandbox got. Its only routes are by
// the gateways, which it takes to be on the link without a route that says so.
func attachedAnswer(netns *shim.LinuxNetns, a dataplane.Attachment) *shim.Attached {
	answer := &shim.Attached{
		Addresses: a.Prefixes, Gateways: a.Gateways, MTU: a.MTU,
		MAC: a.MAC.String(), HostMAC: a.HostMAC.String(),
		Interface: netns.IfName, HostInterface: a.Port, Bridge: a.Bridge,
		Sandbox: netns.Netns, Segment: a.Segment,
	}
	if len(a.Addrs) > 0 {
		answer.IP = a.Addrs[0]
	}
	for _, gateway := range a.Gateways {
		everything := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if gateway.Is4() {
			everything = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		answer.Routes = append(answer.Routes, shim.Route{Dst: everything, Gateway: gateway})
	}
	return answer
}

func (d *daemon) detach(ctx context.Context, r *shim.DetachContainer) (shim.Response, error) {
	netns, err := netnsOf(r.Handle)
	if err != nil {
		return nil, err
	}
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	// Once begun, it goes on without its caller: a runtime that ended its plugin may not come again.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTimeout)
	defer cancel()
	start, key := time.Now(), keyOf(netns)
	if err := d.plane.Detach(ctx, key); err != nil {
		return nil, err
	}
	d.log.Info("sandbox detached", "op", "detach", "sandbox", key.String(), "took", time.Since(start))
	return &shim.OK{}, nil
}

func (d *daemon) check(ctx context.Context, r *shim.CheckContainer) (shim.Response, error) {
	netns, err := netnsOf(r.Handle)
	if err != nil {
		return nil, err
	}
	if netns.File == nil {
		return nil, fmt.Errorf("no network namespace came with the request: %w", dataplane.ErrInvalid)
	}
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	attached, err := d.plane.Check(ctx, keyOf(netns), netns.File)
	if err != nil {
		return nil, err
	}
	return attachedAnswer(netns, attached), nil
}

func (d *daemon) collect(ctx context.Context, r *shim.GCContainers) (shim.Response, error) {
	request := dataplane.GCRequest{Network: r.Network, Since: d.plane.Now()}
	for _, a := range r.Valid {
		request.Valid = append(request.Valid, attach.Key{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	if err := d.mayServe(ctx); err != nil {
		return nil, err
	}
	if err := d.plane.GC(ctx, request); err != nil {
		return nil, err
	}
	return &shim.OK{}, nil
}
