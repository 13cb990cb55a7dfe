//go:build failpoints

package dataplane

import (
	"os"
	"testing"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
)

// TestDetachGoesOnWhereItStopped breaks a Detach at each of its steps. The next
// one leaves nothing, pins included.
func TestDetachGoesOnWhereItStopped(t *testing.T) {
	for _, point := range []string{"detach/before", "detach/unrouted", "detach/deleted"} {
		t.Run(point, func(t *testing.T) {
			d := newRunningPlane(t)
			sandbox := request(t, "stopped", "pod")
			if _, err := d.Attach(t.Context(), sandbox); err != nil {
				t.Fatal(err)
			}
			t.Setenv(failpoint.Env, point+"=error")
			if err := d.Detach(t.Context(), sandbox.Key); err == nil {
				t.Error("Detach passed the failpoint")
			}
			t.Setenv(failpoint.Env, "")
			if err := d.Detach(t.Context(), sandbox.Key); err != nil {
				t.Error(err)
			}
			wantNothing(t, d)
		})
	}
}

// TestFailedAttachInAnotherNamespace replaces a sandbox's namespace by one that
// cannot be attached. The earlier attachment is gone then, so its addresses
// must be free.
func TestFailedAttachInAnotherNamespace(t *testing.T) {
	for _, point := range []string{"attach/before-create", "attach/created", "attach/hooked"} {
		t.Run(point, func(t *testing.T) {
			d := newRunningPlane(t)
			if _, err := d.Attach(t.Context(), request(t, "moved", "before")); err != nil {
				t.Fatal(err)
			}
			t.Setenv(failpoint.Env, point+"=error")
			if _, err := d.Attach(t.Context(), request(t, "moved", "after")); err == nil {
				t.Error("Attach passed the failpoint")
			}
			wantNothing(t, d)
		})
	}
}

// TestFailedBringUpKeepsNothingOpen fails to bring the node up again and again,
// as a node does that waits for something.
func TestFailedBringUpKeepsNothingOpen(t *testing.T) {
	d := newPlane(t)
	t.Setenv(failpoint.Env, "attach/segment-created=error")
	before := 0
	for range 3 {
		if err := d.SetNodes(t.Context(), clusterOfOne()); err == nil {
			t.Fatal("SetNodes passed the failpoint")
		}
		files, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		if before == 0 {
			before = len(files) // what the process keeps from now on
		}
		if len(files) > before {
			t.Fatalf("%d open files, before %d", len(files), before)
		}
	}
	t.Setenv(failpoint.Env, "")
	if err := d.SetNodes(t.Context(), clusterOfOne()); err != nil {
		t.Error(err)
	}
}
