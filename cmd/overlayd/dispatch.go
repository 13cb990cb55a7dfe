package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

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

// dispatch lets no overlay be taken down while something may come to need it.
func (d *daemon) dispatch(ctx context.Context, request shim.Request) (shim.Response, error) {
	switch request.(type) {
	case *shim.Ready, *shim.Status, *shim.ListGuests, *shim.ListDNS, *shim.TeardownGlobalOverlay, *shim.Shutdown: // these need nothing of it
	default:
		d.underWay.RLock()
		defer d.underWay.RUnlock()
		if again := d.again.Load(); again != nil {
			return nil, fmt.Errorf("%w: %w", *again, dataplane.ErrNotReady)
		}
	}
	return d.dispatchShared(ctx, request)
}

// dispatchShared knows the operations; what it does not name is a later
// version's.
func (d *daemon) dispatchShared(ctx context.Context, request shim.Request) (shim.Response, error) {
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
		return done(d.notReady())
	case *shim.Status:
		return d.snapshot(ctx), nil
	case *shim.ListGuests:
		return d.listGuests(ctx)
	case *shim.SetupGlobalOverlay:
		return d.setupGlobal(ctx, r)
	case *shim.TeardownGlobalOverlay:
		return done(d.teardownGlobal())
	case *shim.SetupServiceOverlay:
		return d.setupService(ctx, r)
	case *shim.TeardownServiceOverlay:
		return done(d.teardownService(ctx, r))
	case *shim.AddPeer, *shim.RemovePeer, *shim.AddAllowedIP, *shim.RemoveAllowedIP:
		return done(d.changePeer(ctx, r))
	default:
		return d.dispatchNode(ctx, request)
	}
}

// dispatchNode knows the operations about this node's own facts.
func (d *daemon) dispatchNode(ctx context.Context, request shim.Request) (shim.Response, error) {
	switch r := request.(type) {
	case *shim.AllocateIP:
		return d.allocateIP(ctx, r)
	case *shim.ReleaseIP:
		return done(d.releaseIP(ctx, r))
	case *shim.ListDNS:
		return d.listDNS(r)
	case *shim.RegisterDNS:
		return done(d.plane.RegisterName(r.Name, r.IP))
	case *shim.UnregisterDNS:
		return done(d.plane.UnregisterName(r.Name))
	case *shim.SetLocalNodeID:
		// Nothing here goes by the number: names and keys tell nodes apart.
		d.log.Debug("agent told the node's number", "op", r.Op(), "id", r.NodeID)
		return &shim.OK{}, nil
	case *shim.SetLocalWGPubkey:
		return done(d.setNodeKey(r.Pubkey))
	case *shim.NATTick:
		return done(d.plane.NATTick(ctx))
	case *shim.Shutdown:
		d.log.Info("asked to end", "op", "shutdown")
		d.end() // shim.Serve still answers what has begun
		return &shim.OK{}, nil
	default:
		return nil, fmt.Errorf("operation %s: %w", request.Op(), errors.ErrUnsupported)
	}
}

// done answers an operation that has nothing to tell.
func done(err error) (shim.Response, error) {
	if err != nil {
		return nil, err
	}
	return &shim.OK{}, nil
}
