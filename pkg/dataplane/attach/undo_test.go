//go:build linux

package attach_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

// TestHookFails checks that the hook's error undoes the attachment, and that
// what it says reaches the caller.
func TestHookFails(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	if _, err := n.EnsureSegment(t.Context(), attach.SegmentSpec{Name: "default"}); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("cannot pin")
	spec := p.spec(1)
	spec.BeforeUp = func(context.Context, attach.Attachment) error { return broken }
	if _, err := n.Attach(t.Context(), spec); !errors.Is(err, broken) {
		t.Errorf("Attach: %v, want the hook's error", err)
	}
	expect(t, n.ns, goldenEmptySegment)
	expect(t, p.NS, "")
	same(t, "list", []attach.Attachment{}, n.List())
	n.must(t, p.spec(1))
	expect(t, n.ns, goldenHost)
}

// TestContextEnds checks that nothing is left when the caller gives up, before
// and within.
func TestContextEnds(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	if _, err := n.EnsureSegment(t.Context(), attach.SegmentSpec{Name: "default"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	spec := p.spec(1)
	spec.BeforeUp = func(context.Context, attach.Attachment) error { cancel(); return nil }
	for range 2 { // the second time it has ended before
		if _, err := n.Attach(ctx, spec); !errors.Is(err, context.Canceled) {
			t.Errorf("Attach: %v, want context.Canceled", err)
		} else if strings.Contains(err.Error(), "undo") {
			t.Errorf("it was not undone in time: %v", err)
		}
		expect(t, n.ns, goldenEmptySegment)
		expect(t, p.NS, "")
	}
	n.must(t, p.spec(1))
	if err := n.Detach(ctx, key(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Detach: %v, want context.Canceled", err)
	}
	if err := n.Check(t.Context(), key(1), p.file); err != nil {
		t.Errorf("after a Detach that had no time to begin: %v", err)
	}
	if err := n.Detach(t.Context(), key(1)); err != nil {
		t.Error(err)
	}
	expect(t, n.ns, goldenEmptySegment)
}

// TestSandboxDiesUnderway checks that a namespace without any other user goes
// with the attempt.
func TestSandboxDiesUnderway(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	if _, err := n.EnsureSegment(t.Context(), attach.SegmentSpec{Name: "default"}); err != nil {
		t.Fatal(err)
	}
	spec := p.spec(1)
	spec.BeforeUp = func(context.Context, attach.Attachment) error {
		out(t, n.ns, "sh", "-c", "ip link del zl-403d4edb46-p") // as the kernel does
		return p.Close()
	}
	if _, err := n.Attach(t.Context(), spec); err == nil {
		t.Error("attached to nothing")
	}
	expect(t, n.ns, goldenEmptySegment)
	n.must(t, newPod(t, "next").spec(1))
	expect(t, n.ns, goldenHost)
}
