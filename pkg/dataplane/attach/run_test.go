//go:build linux

package attach_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

// TestNamespaceVanishes checks that killing a namespace is as good as a Detach:
// the caller hears of it when nothing of the attachment is left.
func TestNamespaceVanishes(t *testing.T) {
	n, p, q := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod"), newPod(t, "other")
	left := make(chan string, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	var gone []attach.Attachment
	running.Go(func() {
		err := n.Run(ctx, func(a attach.Attachment) {
			gone = append(gone, a)
			left <- state(t, n.ns)
		})
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	defer func() { cancel(); running.Wait() }()

	a := n.must(t, p.spec(1))
	n.must(t, q.spec(2))
	if err := n.Detach(t.Context(), key(2)); err != nil { // which nobody hears of
		t.Fatal(err)
	}
	kill(t, p)
	if got := <-left; got != goldenEmptySegment {
		t.Errorf("when the caller heard of it:\n%s", got)
	}
	cancel()
	running.Wait()
	same(t, "gone", []attach.Attachment{a}, gone)
	same(t, "list", []attach.Attachment{}, n.List())
}

// TestVanishedWithoutRun checks what happened while nobody listened.
func TestVanishedWithoutRun(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	a := n.must(t, p.spec(1))
	kill(t, p)
	eventually(t, "the kernel removes the link", func() bool { return !strings.Contains(state(t, n.ns), a.Port) })
	if err := n.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, n.ns, goldenEmptySegment)
	same(t, "list", []attach.Attachment{}, n.List())
	gone := n.run(t)
	eventually(t, "Run tells of it", func() bool { return len(gone.all()) == 1 })
	same(t, "gone", []attach.Attachment{a}, gone.all())
}

// TestRunMends checks that damage which the kernel announces is mended without
// being asked.
func TestRunMends(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420, Sources: overlay}), newPod(t, "pod")
	gone := n.run(t)
	n.must(t, p.spec(1))
	for _, name := range []string{
		"bridge without addresses", "bridge gone", "port without a bridge", "port down", "no routes", "no routes in our table", "no rules",
		"no neighbours", "no forwarding entry",
	} {
		i := slices.IndexFunc(damages, func(d struct{ name, do string }) bool { return d.name == name })
		t.Run(name, func(t *testing.T) {
			out(t, n.ns, "sh", "-c", damages[i].do)
			eventually(t, "it is mended", func() bool { got := state(t, n.ns); return got == sorted(goldenHost, got) })
		})
	}
	t.Run("a source that comes and goes", func(t *testing.T) {
		for range 2 {
			giveOverlay(t, n.ns)
			eventually(t, "routes have it", func() bool { return strings.Count(state(t, n.ns), "prefsrc") == 2 })
			out(t, n.ns, "ip", "link", "del", "overlay")
			eventually(t, "routes are there without it", func() bool { got := state(t, n.ns); return got == sorted(goldenHost, got) })
		}
	})
	if gone := gone.all(); len(gone) > 0 {
		t.Errorf("reported as gone: %v", gone)
	}
}

// TestLinkStorm makes and removes a thousand links while sandboxes come and go.
// The kernel cannot tell it all; nothing may be missed in the end.
func TestLinkStorm(t *testing.T) {
	n := newNode(t, "host", attach.Config{MTU: 1420})
	gone := n.run(t)
	pods := newPods(t, 10)
	var storm sync.WaitGroup
	storm.Go(func() { storms(t, n) })
	for i, p := range pods {
		n.must(t, p.spec(i+1))
	}
	for _, p := range pods[:5] {
		kill(t, p)
	}
	storm.Wait()
	eventually(t, "five namespaces are missed", func() bool { return len(gone.all()) == 5 })
	for i := range pods[5:] {
		if err := n.Detach(t.Context(), key(i+6)); err != nil {
			t.Error(err)
		}
	}
	expect(t, n.ns, goldenEmptySegment)
	if len(gone.all()) != 5 {
		t.Errorf("gone: %v", gone.all())
	}
}

// storms makes a thousand links with addresses and routes, and removes them.
func storms(t testing.TB, n *node) {
	t.Helper()
	var create, remove strings.Builder
	for i := range 500 {
		fmt.Fprintf(&create, "link add s%d type veth peer name t%d\naddr add 10.9.%d.%d/32 dev s%d\nlink set s%d up\n", i, i, i/250, i%250, i, i)
		fmt.Fprintf(&remove, "link del s%d\n", i)
	}
	dir := t.TempDir()
	for name, script := range map[string]string{"make": create.String(), "remove": remove.String()} {
		if err := os.WriteFile(dir+"/"+name, []byte(script), 0o600); err != nil {
			t.Error(err)
		}
	}
	// One by one takes the kernel half a minute, so the group goes at once.
	text, err := n.ns.Command(t.Context(), "sh", "-c",
		"ip -batch "+dir+"/make && for i in $(seq 0 499); do echo link set s$i group 77; done | ip -batch - && ip link del group 77").CombinedOutput()
	if err != nil {
		t.Errorf("storm: %v\n%s", err, text)
	}
}

// TestRunLeavesNothing checks for goroutines after Run, with deletions under
// way when it ends.
func TestRunLeavesNothing(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{}), newPod(t, "pod")
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := n.Run(ctx, func(attach.Attachment) {}); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	n.must(t, p.spec(1))
	if err := n.Detach(t.Context(), key(1)); err != nil {
		t.Error(err)
	}
	cancel()
	running.Wait()
	goleak.VerifyNone(t, before)
}
