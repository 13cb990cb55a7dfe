//go:build linux && failpoints

package attach_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
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

// attachInChild attaches and detaches pod 1 in another process, which dies at
// the failpoint.
func attachInChild(t *testing.T, n *node, p *pod, point string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.ns.Command(t.Context(), self, "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), childEnv+"=1", failpoint.Env+"="+point+"=kill")
	cmd.ExtraFiles = []*os.File{p.file}
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child was not killed: %v\n%s", err, text)
	}
}

const childEnv = "ZLAYER_ATTACH_CHILD"

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
