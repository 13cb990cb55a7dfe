//go:build linux

package attach_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
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

// TestSegmentsAtOnce makes four segments, each from many sides.
func TestSegmentsAtOnce(t *testing.T) {
	const segments, callers = 4, 16
	n := newNode(t, "host", attach.Config{MTU: 1420})
	var got [segments * callers]attach.Segment
	var calls sync.WaitGroup
	for i := range got {
		calls.Go(func() {
			segment := i % segments
			s, err := n.EnsureSegment(t.Context(), attach.SegmentSpec{Name: fmt.Sprint("web", segment), Table: uint32(1000 * segment)})
			if err != nil {
				t.Error(err)
			}
			got[i] = s
		})
	}
	calls.Wait()
	for i, s := range got {
		same(t, "what a caller got", got[i%segments], s)
	}
	made := n.Segments()
	slices.SortFunc(made, func(a, b attach.Segment) int { return strings.Compare(a.Name, b.Name) })
	same(t, "segments", got[:segments], made)
	if links := strings.Count(state(t, n.ns), "link zl-"); links != segments {
		t.Errorf("%d links for %d segments", links, segments)
	}
}

// TestSegmentChurn brings 250 sandboxes on 20 segments, half of which have
// tables, and takes them all away again.
func TestSegmentChurn(t *testing.T) {
	const segments = 20
	rounds := 10
	if testing.Short() {
		rounds = 2
	}
	n := newNode(t, "host", attach.Config{MTU: 1420})
	gone := n.run(t)
	pods := newPods(t, 250)
	name := func(i int) string { return fmt.Sprintf("shop-%d/web", i%segments) }
	for range rounds {
		together(pods, func(i int, p *pod) error {
			if i%2 == 1 {
				if _, err := n.EnsureSegment(t.Context(), attach.SegmentSpec{Name: name(i), Table: uint32(1000 + i%segments)}); err != nil {
					return err
				}
			}
			_, err := n.Attach(t.Context(), p.on(name(i), i+1))
			return err
		}, t)
		ports := 0
		for _, s := range n.Segments() {
			ports += s.Ports
		}
		if ports != len(pods) || len(n.Segments()) != segments {
			t.Errorf("%d ports on %d segments", ports, len(n.Segments()))
		}
		for _, i := range []int{0, 123, 249} {
			if err := n.Check(t.Context(), key(i+1), pods[i].file); err != nil {
				t.Error(err)
			}
		}
		together(pods, func(i int, _ *pod) error {
			if err := n.Detach(t.Context(), key(i+1)); err != nil {
				return err
			}
			if err := n.ReleaseSegment(t.Context(), name(i)); !errors.Is(err, attach.ErrInUse) {
				return err // the last one's release succeeds
			}
			return nil
		}, t)
		expect(t, n.ns, "")
		same(t, "segments", []attach.Segment{}, n.Segments())
	}
	if gone := gone.all(); len(gone) > 0 {
		t.Errorf("reported as gone: %v", gone)
	}
}

// TestMixedSegments makes, changes, uses and releases few segments in random
// order, from many sides: whoever attaches has a bridge.
func TestMixedSegments(t *testing.T) {
	const rounds, segments = 40, 3
	n := newNode(t, "host", attach.Config{MTU: 1420})
	gone := n.run(t)
	pods := newPods(t, 12)
	name := func(i int) string { return fmt.Sprint("web", i%segments) }
	together(pods, func(i int, p *pod) error {
		random := rand.New(rand.NewPCG(2, uint64(i)))
		for range rounds {
			_, err := n.Attach(t.Context(), p.on(name(i), i+1))
			if err == nil && random.IntN(3) == 0 {
				err = n.Check(t.Context(), key(i+1), p.file)
			}
			if err == nil && random.IntN(3) == 0 {
				_, err = n.EnsureSegment(t.Context(), attach.SegmentSpec{Name: name(i), Table: 1000 * random.Uint32N(3)})
			}
			if err == nil {
				err = n.Detach(t.Context(), key(i+1))
			}
			if err == nil && random.IntN(8) == 0 {
				err = n.Reconcile(t.Context())
			}
			if err != nil {
				return err
			}
			if err := n.ReleaseSegment(t.Context(), name(i+random.IntN(2))); err != nil && !errors.Is(err, attach.ErrInUse) {
				return err
			}
		}
		return nil
	}, t)
	for i := range segments {
		n.release(t, name(i))
	}
	expect(t, n.ns, "")
	if gone := gone.all(); len(gone) > 0 {
		t.Errorf("reported as gone: %v", gone)
	}
}
