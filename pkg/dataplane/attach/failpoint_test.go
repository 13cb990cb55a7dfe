//go:build linux && failpoints

package attach_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// TestErrorsAnywhere checks that an error between any two steps leaves nothing
// of an Attach, and a Detach that can be repeated.
func TestErrorsAnywhere(t *testing.T) {
	for _, point := range attach.Failpoints() {
		t.Run(strings.ReplaceAll(point, "/", " "), func(t *testing.T) {
			n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
			t.Setenv(failpoint.Env, point+"=error")
			_, attachErr := n.Attach(t.Context(), p.spec(1))
			if attaching := strings.HasPrefix(point, "attach/"); attaching != (attachErr != nil) {
				t.Fatalf("Attach: %v", attachErr)
			}
			if attachErr != nil {
				wantNothing(t, n, p)
			} else if err := n.Detach(t.Context(), key(1)); err == nil {
				t.Error("Detach passed the failpoint")
			}
			t.Setenv(failpoint.Env, "")
			if attachErr != nil {
				n.must(t, p.spec(1))
				expect(t, n.ns, goldenHost)
				expect(t, p.NS, goldenSandbox)
			}
			if err := n.Detach(t.Context(), key(1)); err != nil {
				t.Error(err)
			}
			wantNothing(t, n, p)
			n.must(t, p.spec(1)) // nothing holds its addresses
		})
	}
}

// wantNothing wants the host without attachments, with the segment or without.
func wantNothing(t *testing.T, n *node, p *pod) {
	t.Helper()
	if got := state(t, n.ns); got != "" && got != goldenEmptySegment {
		t.Errorf("left on the host:\n%s", got)
	}
	expect(t, p.NS, "")
	same(t, "list", []attach.Attachment{}, n.List())
}

// TestKilledAnywhere kills a process between any two steps. The next one finds
// an attachment that is whole or none, gives the same answer to the same
// request, and can remove it.
func TestKilledAnywhere(t *testing.T) {
	for _, point := range attach.Failpoints() {
		t.Run(strings.ReplaceAll(point, "/", " "), func(t *testing.T) {
			n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
			attachInChild(t, n, p, point)

			recovered, err := n.Recover(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if point == "attach/committed" || strings.HasPrefix(point, "detach/") && point != "detach/deleted" {
				if len(recovered) != 1 {
					t.Errorf("recovered %v, want one", recovered)
				}
				expect(t, n.ns, goldenHost)
				if err := n.Check(t.Context(), key(1), p.file); err != nil {
					t.Error(err)
				}
			} else {
				wantNothing(t, n, p)
			}
			n.must(t, p.spec(1))
			expect(t, n.ns, goldenHost)
			expect(t, p.NS, goldenSandbox)
			if err := n.Detach(t.Context(), key(1)); err != nil {
				t.Error(err)
			}
			wantNothing(t, n, p)
		})
	}
}

// TestSegmentErrorsAnywhere checks that an error between any two steps leaves a
// segment as it was.
func TestSegmentErrorsAnywhere(t *testing.T) {
	for _, point := range attach.SegmentFailpoints() {
		t.Run(strings.ReplaceAll(point, "/", " "), func(t *testing.T) {
			n := newNode(t, "host", attach.Config{MTU: 1420})
			steps := segmentSteps(t.Context(), n.Attacher)
			done := ""
			t.Setenv(failpoint.Env, point+"=error")
			var failed error
			for _, step := range steps {
				if failed = step.do(); failed != nil {
					break
				}
				done = step.want
			}
			if failed == nil {
				t.Fatal("nothing failed")
			}
			expect(t, n.ns, done)
			t.Setenv(failpoint.Env, "")
			if err := n.Reconcile(t.Context()); err != nil {
				t.Error(err)
			}
			expect(t, n.ns, done)
			for _, step := range steps {
				if err := step.do(); err != nil {
					t.Error(err)
				}
				expect(t, n.ns, step.want)
			}
		})
	}
}

// segmentStep is a call, and the host behind it.
type segmentStep struct {
	do   func() error
	want string
}

// segmentSteps makes a segment, gives it another table, and releases it.
func segmentSteps(ctx context.Context, a *attach.Attacher) []segmentStep {
	ensure := func(table uint32) segmentStep {
		return segmentStep{do: func() error {
			_, err := a.EnsureSegment(ctx, attach.SegmentSpec{Name: "web", Table: table})
			return err
		}, want: withTable(table)}
	}
	return []segmentStep{ensure(1000), ensure(200), {do: func() error { return a.ReleaseSegment(ctx, "web") }}}
}

// TestReleaseUnderWay holds a release in the middle. Whoever wants the segment
// meanwhile gets a new bridge, not the one on its way out.
func TestReleaseUnderWay(t *testing.T) {
	gate := filepath.Join(netlab.TestDir(t), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	before := n.ensure(t, web)
	t.Setenv(failpoint.Env, "attach/segment-unruled=hold:"+gate)
	var calls sync.WaitGroup
	calls.Go(func() { n.release(t, "web") })
	held, err := os.OpenFile(gate, os.O_WRONLY, 0) // returns when the release has come there
	if err != nil {
		t.Fatal(err)
	}
	calls.Go(func() {
		if _, err := n.Attach(t.Context(), p.on("web", 1)); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the attach has begun", func() bool { a, _ := n.Lookup(key(1)); return a.Segment == "web" })
	if got := state(t, n.ns); strings.Contains(got, "rule ") || strings.Contains(got, "veth") {
		t.Errorf("meanwhile:\n%s", got)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	calls.Wait()
	if err := n.Check(t.Context(), key(1), p.file); err != nil {
		t.Error(err)
	}
	if after := n.Segments(); len(after) != 1 || after[0].Index == before.Index || after[0].Ports != 1 {
		t.Errorf("segments %+v, before %+v", after, before)
	}
}

// TestSegmentKilledAnywhere kills a process between any two steps. The next one
// finds a segment that is whole, or none.
func TestSegmentKilledAnywhere(t *testing.T) {
	for point, want := range map[string]string{
		"attach/segment-created": "", "attach/segment-ready": withTable(1000), "attach/segment-ruled": withTable(200), "attach/segment-unruled": withTable(200),
	} {
		t.Run(strings.ReplaceAll(point, "/", " "), func(t *testing.T) {
			n := newNode(t, "host", attach.Config{MTU: 1420})
			killChild(t, n, point, "TestSegmentChild", nil)
			if _, err := n.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			expect(t, n.ns, want)
			for _, step := range segmentSteps(t.Context(), n.Attacher) {
				if err := step.do(); err != nil {
					t.Error(err)
				}
				expect(t, n.ns, step.want)
			}
		})
	}
}

// attachInChild attaches and detaches pod 1 in another process, which dies at
// the failpoint.
func attachInChild(t *testing.T, n *node, p *pod, point string) {
	t.Helper()
	killChild(t, n, point, "TestChild", []*os.File{p.file})
}

// killChild runs a test in another process on the host, which dies at the
// failpoint.
func killChild(t *testing.T, n *node, point, test string, files []*os.File) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.ns.Command(t.Context(), self, "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), childEnv+"=1", failpoint.Env+"="+point+"=kill")
	cmd.ExtraFiles = files
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child was not killed: %v\n%s", err, text)
	}
}

const childEnv = "ZLAYER_ATTACH_CHILD"

// TestSegmentChild is the other process of TestSegmentKilledAnywhere.
func TestSegmentChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		return // nothing to test
	}
	a, err := attach.New(attach.Config{MTU: 1420})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range segmentSteps(t.Context(), a) {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestChild is the other process of TestKilledAnywhere.
func TestChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		return // nothing to test
	}
	a, err := attach.New(attach.Config{MTU: 1420})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{file: os.NewFile(3, "sandbox")}
	if _, err := a.Attach(t.Context(), p.spec(1)); err != nil {
		t.Fatal(err)
	}
	if err := a.Detach(t.Context(), key(1)); err != nil {
		t.Fatal(err)
	}
}
