//go:build linux

package node

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// attachPoints and detachPoints are all places at which the daemon can be
// killed within one ADD or DEL.
func attachPoints() []string {
	points := []string{"dataplane/allocated", "dataplane/attached"}
	for _, point := range attach.Failpoints() {
		if strings.HasPrefix(point, "attach/") && !strings.HasPrefix(point, "attach/segment-") { // segments are made at the start
			points = append(points, point)
		}
	}
	return points
}

func detachPoints() []string {
	points := []string{"dataplane/detached", "dataplane/released"}
	for _, point := range attach.Failpoints() {
		if strings.HasPrefix(point, "detach/") {
			points = append(points, point)
		}
	}
	return points
}

func TestDaemonKilledWithinADD(t *testing.T) {
	for _, point := range attachPoints() {
		t.Run(point, func(t *testing.T) {
			r := newRig(t, 1)
			r.start()
			n, s := r.Nodes[0], r.sandbox("killed")
			r.restart(n, point+"=kill")
			if _, err := r.add(n, s); err == nil {
				t.Error("ADD succeeded although the daemon was killed within it")
			}
			r.killed(n)
			r.restart(n, "")
			r.audit(n, len(r.status(n).Attachments))
			first := r.mustAdd(n, s)
			again := r.mustAdd(n, s)
			if diff := cmp.Diff(first, again, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("repeated ADD (-first +again):\n%s", diff)
			}
			r.audit(n, 1)
			r.finish(n, s)
		})
	}
}

func TestFailedADDLeavesNothing(t *testing.T) {
	r := newRig(t, 1)
	r.start()
	n, s := r.Nodes[0], r.sandbox("failed")
	for _, point := range attachPoints() {
		t.Run(point, func(t *testing.T) {
			if point == "dataplane/attached" {
				return // only the answer is lost there
			}
			r.restart(n, point+"=error")
			if _, err := r.add(n, s); err == nil {
				t.Error("ADD succeeded although a step failed")
			}
			r.audit(n, 0)
		})
	}
	r.restart(n, "")
	r.mustAdd(n, s)
	r.finish(n, s)
}

func TestDaemonKilledWithinDEL(t *testing.T) {
	for _, point := range detachPoints() {
		t.Run(point, func(t *testing.T) {
			r := newRig(t, 1)
			r.start()
			n, s := r.Nodes[0], r.sandbox("killed")
			r.mustAdd(n, s)
			r.restart(n, point+"=kill")
			if err := r.del(n, s); err != nil {
				t.Errorf("DEL, which leaves a note for a daemon that is away: %v", err)
			}
			r.killed(n)
			r.restart(n, "")
			r.audit(n, 0)
			r.finish(n, s)
		})
	}
}

// restart ends the daemon if it runs and starts it with the failpoint armed, as
// NAME=kill or NAME=error.
func (r *rig) restart(n *cluster.Node, point string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if err := n.Stop(ctx); err != nil {
		r.t.Fatal(err)
	}
	n.Env = nil
	if point != "" {
		n.Env = []string{failpoint.Env + "=" + point}
	}
	if err := n.Start(ctx); err != nil {
		r.t.Fatal(err)
	}
	if err := n.AwaitPeers(ctx, len(r.Nodes)-1); err != nil {
		r.t.Fatal(err)
	}
}

// killed waits for the daemon's death by its failpoint. A point that is never
// reached fails the test here.
func (r *rig) killed(n *cluster.Node) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if err := n.AwaitEnd(ctx); err != nil {
		r.t.Fatalf("the failpoint was not reached: %v", err)
	}
}

// finish removes the sandbox and checks that nothing is left of it, and that a
// new one gets an address.
func (r *rig) finish(n *cluster.Node, s sandbox) {
	r.t.Helper()
	for range 2 { // DEL twice is DEL once
		if err := r.del(n, s); err != nil {
			r.t.Errorf("DEL of %s: %v", s.id, err)
		}
	}
	r.audit(n, 0)
	other := r.sandbox(s.id + "-next")
	if addrs := r.mustAdd(n, other); len(slices.Compact(addrs)) != 2 {
		r.t.Errorf("next sandbox got %v", addrs)
	}
	r.audit(n, 1)
}
