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
	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// kind is what a sandbox of these tests joins, with all places at which the
// daemon can be killed within its ADD and within its DEL.
type kind struct {
	name, service  string
	mode           shim.Mode
	attach, detach []string
}

// kinds are a sandbox without a service, and the first and last one of a shared
// and of a dedicated service. Of what they have in common, the first has all.
func kinds() []kind {
	plain := kind{
		name:   "plain",
		attach: append([]string{"dataplane/allocated", "dataplane/attached"}, attachPoints("attach/")...),
		detach: append([]string{"dataplane/detached", "dataplane/released"}, attachPoints("detach/")...),
	}
	dedicated := kind{
		name: "dedicated", service: "bank/vault", mode: shim.ModeDedicated,
		attach: slices.Concat(plain.attach[:2], segmentPoints("created", "ready")),
		detach: slices.Concat(plain.detach[:2], segmentPoints("unruled")),
	}
	for _, point := range dataplane.ServiceFailpoints() {
		if strings.HasPrefix(point, "service/closing") {
			dedicated.detach = append(dedicated.detach, point)
		} else {
			dedicated.attach = append(dedicated.attach, point)
		}
	}
	shared := kind{
		name: "shared", service: "shop/web", mode: shim.ModeShared,
		attach: slices.DeleteFunc(slices.Clone(dedicated.attach), ofDevice), detach: slices.DeleteFunc(slices.Clone(dedicated.detach), ofDevice),
	}
	return []kind{plain, shared, dedicated}
}

// ofDevice tells whether only a service with a device comes by a failpoint.
func ofDevice(point string) bool {
	return slices.Contains([]string{"service/recorded", "service/up", "service/closing-deviceless"}, point)
}

// attachPoints are the failpoints of a sandbox's attachment with a prefix.
func attachPoints(prefix string) []string {
	return slices.DeleteFunc(attach.Failpoints(), func(point string) bool {
		return !strings.HasPrefix(point, prefix) || slices.Contains(attach.SegmentFailpoints(), point)
	})
}

// segmentPoints are the failpoints of a segment with these endings.
func segmentPoints(endings ...string) []string {
	return slices.DeleteFunc(attach.SegmentFailpoints(), func(point string) bool {
		return !slices.ContainsFunc(endings, func(ending string) bool { return strings.HasSuffix(point, "-"+ending) })
	})
}

// eachKind runs a test for every kind of sandbox and every failpoint of it.
func eachKind(t *testing.T, points func(kind) []string, test func(t *testing.T, k kind, point string)) {
	for _, k := range kinds() {
		for _, point := range points(k) {
			t.Run(k.name+"/"+point, func(t *testing.T) { test(t, k, point) })
		}
	}
}

func withinAttach(k kind) []string { return k.attach }
func withinDetach(k kind) []string { return k.detach }

// sandboxOf is one of the kind.
func (r *rig) sandboxOf(k kind, id string) sandbox {
	s := r.sandbox(id)
	s.service, s.mode = k.service, k.mode
	return s
}

func TestDaemonKilledWithinADD(t *testing.T) {
	eachKind(t, withinAttach, func(t *testing.T, k kind, point string) {
		r := newRig(t, 1)
		r.start()
		n, s := r.Nodes[0], r.sandboxOf(k, "killed")
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

func TestFailedADDLeavesNothing(t *testing.T) {
	r := newRig(t, 1)
	r.start()
	n := r.Nodes[0]
	for _, k := range kinds() {
		s := r.sandboxOf(k, "failed-"+k.name)
		for _, point := range k.attach {
			t.Run(k.name+"/"+point, func(t *testing.T) {
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
		if err := r.del(n, s); err != nil {
			t.Error(err)
		}
	}
}

func TestDaemonKilledWithinDEL(t *testing.T) {
	eachKind(t, withinDetach, func(t *testing.T, k kind, point string) {
		r := newRig(t, 1)
		r.start()
		n, s := r.Nodes[0], r.sandboxOf(k, "killed")
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
	other.service, other.mode = s.service, s.mode
	if addrs := r.mustAdd(n, other); len(slices.Compact(addrs)) != 2 {
		r.t.Errorf("next sandbox got %v", addrs)
	}
	r.audit(n, 1)
}
