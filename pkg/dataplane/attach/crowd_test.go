//go:build linux

package attach_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

// TestCrowd attaches and detaches 250 sandboxes at once.
func TestCrowd(t *testing.T) {
	n := newNode(t, "host", attach.Config{MTU: 1420})
	gone := n.run(t)
	pods := newPods(t, 250)
	for range 2 {
		together(pods, func(i int, p *pod) error { _, err := n.Attach(t.Context(), p.spec(i+1)); return err }, t)
		ports := map[string]bool{}
		for _, a := range n.List() {
			ports[a.Port] = true
		}
		if len(ports) != len(pods) {
			t.Fatalf("%d ports for %d sandboxes", len(ports), len(pods))
		}
		for _, i := range []int{0, 123, 249} {
			if err := n.Check(t.Context(), key(i+1), pods[i].file); err != nil {
				t.Error(err)
			}
		}
		out(t, pods[0].NS, "ping", "-n", "-c", "1", "-W", "20", addrs(250)[0].String())
		out(t, pods[0].NS, "ping", "-n", "-c", "1", "-W", "20", addrs(124)[1].String())
		together(pods, func(i int, _ *pod) error { return n.Detach(t.Context(), key(i+1)) }, t)
		expect(t, n.ns, goldenEmptySegment)
		expect(t, pods[17].NS, "")
	}
	if gone := gone.all(); len(gone) > 0 {
		t.Errorf("reported as gone: %v", gone)
	}
}

// TestMixedCrowd attaches, detaches, checks and reconciles in random order,
// several callers per sandbox. What is left is what the host has.
func TestMixedCrowd(t *testing.T) {
	const rounds, callers = 15, 24
	n := newNode(t, "host", attach.Config{MTU: 1420})
	gone := n.run(t)
	pods := newPods(t, 8)
	var calls sync.WaitGroup
	for caller := range callers {
		calls.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(caller)))
			i := caller % len(pods)
			for range rounds {
				var err error
				switch random.IntN(6) {
				case 0, 1, 2:
					_, err = n.Attach(t.Context(), pods[i].spec(i+1))
				case 3, 4:
					err = n.Detach(t.Context(), key(i+1))
				default:
					err = n.Reconcile(t.Context())
				}
				if err != nil {
					t.Errorf("caller %d: %v", caller, err)
				}
			}
		})
	}
	calls.Wait()
	for i, p := range pods {
		err := n.Check(t.Context(), key(i+1), p.file)
		if _, found := n.Lookup(key(i + 1)); found && err != nil || !found && !errors.Is(err, attach.ErrNotAttached) {
			t.Errorf("sandbox %d, attached %v: %v", i+1, found, err)
		}
		if err := n.Detach(t.Context(), key(i+1)); err != nil {
			t.Error(err)
		}
		expect(t, p.NS, "")
	}
	expect(t, n.ns, goldenEmptySegment)
	if gone := gone.all(); len(gone) > 0 {
		t.Errorf("reported as gone: %v", gone)
	}
}

// TestSegmentsAtOnce makes one segment from many sides.
func TestSegmentsAtOnce(t *testing.T) {
	n := newNode(t, "host", attach.Config{MTU: 1420})
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() {
			if _, err := n.EnsureSegment(t.Context(), attach.SegmentSpec{Name: "default"}); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	expect(t, n.ns, goldenEmptySegment)
	same(t, "segments", []attach.Segment{{Name: "default", Bridge: "zl-default-b", Index: 2}}, n.Segments())
}
