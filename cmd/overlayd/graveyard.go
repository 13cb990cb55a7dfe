package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

const (
	// drainInterval is how often tombstones are looked for while serving: a
	// plugin writes one, too, when it could not get through to a daemon that
	// was only short of descriptors.
	drainInterval = time.Minute
	// drainWidth is how many sandboxes are detached at a time. Those share the
	// kernel's wait for a link's end.
	drainWidth = 64
)

// graveyard holds the DELs that came while no daemon could be reached. Safe
// for concurrent use.
type graveyard struct {
	dir    string
	log    *slog.Logger
	detach func(context.Context, attach.Key) error

	drained atomic.Uint64 // tombstones that were honoured

	// draining keeps a sandbox from being attached between the moment its
	// tombstone was read and the detach that follows. Write-locked by drain.
	draining sync.RWMutex
}

// drain detaches what the tombstones name, and removes them. One that fails
// stays for the next time; the rest of the node does not wait for it.
func (g *graveyard) drain(ctx context.Context) {
	g.draining.Lock()
	defer g.draining.Unlock()
	graves, err := cni.Tombstones(g.dir)
	if err != nil {
		g.log.Warn("tombstones not readable", "op", "drain", "err", err)
	}
	var group errgroup.Group
	group.SetLimit(drainWidth)
	for _, grave := range graves {
		group.Go(func() error {
			key := attach.Key{ContainerID: grave.ContainerID, IfName: grave.IfName}
			if err := g.bury(ctx, grave, key); err != nil {
				g.log.Warn("late detach, will try again", "op", "drain", "sandbox", key.String(), "err", err)
				return nil
			}
			g.drained.Add(1)
			g.log.Info("sandbox detached late", "op", "drain", "sandbox", key.String())
			return nil
		})
	}
	_ = group.Wait() // no function above returns an error
}

func (g *graveyard) bury(ctx context.Context, grave cni.Tombstone, key attach.Key) error {
	if err := g.detach(ctx, key); err != nil {
		return err
	}
	return grave.Remove(g.dir)
}

// forget removes the tombstone of a sandbox that is attached anew, so that an
// old DEL does not hit it.
func (g *graveyard) forget(key attach.Key) error {
	g.draining.RLock()
	defer g.draining.RUnlock()
	if err := (cni.Tombstone{ContainerID: key.ContainerID, IfName: key.IfName}).Remove(g.dir); err != nil {
		return fmt.Errorf("attach sandbox %s: %w", key, err)
	}
	return nil
}

// Run drains at intervals until ctx ends, but never before ready says so: the
// first time is the daemon's.
func (g *graveyard) Run(ctx context.Context, ready func() bool) error {
	ticker := time.NewTicker(drainInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if ready() {
				g.drain(ctx)
			}
		}
	}
}
