package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
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
	events   *shim.Broadcaster
	graves   *graveyard
	told     toldDNS
	// installer shows the runtime where the plugin is.
	installer *installer
	// end ends the process in good order.
	end context.CancelFunc
	// again is why another run shall follow, nil if none shall. Once it is
	// set, nothing changes the data plane any more.
	again atomic.Pointer[error]
	// underWay is read-locked by the requests that change the data plane, and
	// locked by the one that takes it down.
	underWay sync.RWMutex
	// telling has what is told of candidates last be the newest.
	telling sync.Mutex

	triedOnce sync.Once
	// tried is closed when the data plane has been brought up, or could not be.
	// Requests wait for it: at a start that succeeds, none has to be repeated.
	tried chan struct{}
	// answering is called once tried is closed; it may be nil.
	answering func()
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

// unready is waiting, why names are not served everywhere they should be, and why
// the runtime may not find the plugin.
func (d *daemon) unready() []string {
	reasons := append(d.waiting(), d.plane.DNSFaults()...)
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
