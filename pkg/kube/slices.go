package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// listFrom is how many nodes are read by pages of all instead of one by one.
	listFrom = 16
	// readers is how many nodes are read at once.
	readers = 4
)

// sliceBook holds the slices of every Node object, by UID: once set, a Node's
// spec.podCIDRs never change.
type sliceBook map[types.UID]bookEntry

type bookEntry struct {
	slices  []netip.Prefix
	version string    // of the Node, when it had no slice
	after   time.Time // when to look again, at the earliest
	pause   backoff
}

// due tells from when on a Node has to be read: it never was, or it had no slice
// and has changed since.
func (b sliceBook) due(m member) (from time.Time, due bool) {
	entry, read := b[m.uid]
	return entry.after, !read || len(entry.slices) == 0 && entry.version != m.version
}

// put notes what a Node says of its slices.
func (b sliceBook) put(node *corev1.Node, now time.Time) error {
	found, err := parseSlices(node.Spec.PodCIDRs)
	entry := b[node.UID]
	entry.slices, entry.version = found, node.ResourceVersion
	entry.after = now.Add(entry.pause.next())
	b[node.UID] = entry
	return err
}

// parseSlices parses spec.podCIDRs. One that is wrong makes all of them useless.
func parseSlices(texts []string) ([]netip.Prefix, error) {
	var found []netip.Prefix
	for _, text := range texts {
		slice, err := netip.ParsePrefix(text)
		if err != nil || slice != slice.Masked() || slice.Addr().Is4In6() {
			return nil, fmt.Errorf("podCIDR %.50q is not a network prefix", text)
		}
		found = append(found, slice)
	}
	return found, nil
}

// keep forgets the Nodes that are gone.
func (b sliceBook) keep(members []member) {
	alive := make(map[types.UID]bool, len(members))
	for _, m := range members {
		alive[m.uid] = true
	}
	for uid := range b {
		if !alive[uid] {
			delete(b, uid)
		}
	}
}

// readSlices reads the Nodes that have a key but are not in the book. What it
// could read is there when it returns an error.
func (k *Kube) readSlices(ctx context.Context, members []member) error {
	now := time.Now()
	var due []member
	for _, m := range members {
		from, needed := k.set.book.due(m)
		switch {
		case !needed || m.publicKey == "" || m.name == k.cfg.Node:
		case now.Before(from):
			time.AfterFunc(from.Sub(now), func() { wake(k.setChanged) })
		default:
			due = append(due, m)
		}
	}
	if len(due) >= listFrom {
		err := k.api.listNodes(ctx, func(node *corev1.Node) { k.bookNode(node, now) })
		if err != nil {
			return fmt.Errorf("read podCIDRs of all nodes: %w", err)
		}
		return nil
	}
	var mu sync.Mutex // guards the book and errs
	var errs []error
	group := errgroup.Group{}
	group.SetLimit(readers)
	for _, m := range due {
		group.Go(func() error {
			node, err := k.api.getNode(ctx, m.name)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case apierrors.IsNotFound(err): // gone, and soon gone from the mirror
			case err != nil:
				errs = append(errs, fmt.Errorf("read podCIDRs of node %s: %w", m.name, err))
			default:
				k.bookNode(node, now)
			}
			return nil
		})
	}
	_ = group.Wait() // the errors are in errs
	return errors.Join(errs...)
}

func (k *Kube) bookNode(node *corev1.Node, now time.Time) {
	if err := k.set.book.put(node, now); err != nil {
		k.log.Warn("node has no usable slice", "op", "kube", "node", node.Name, "err", err)
	}
}
