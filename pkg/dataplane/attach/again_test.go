//go:build linux

package attach_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

func TestAttachAgain(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	first := n.must(t, p.spec(1))
	hooked := 0
	spec := p.spec(1)
	spec.BeforeUp = func(_ context.Context, a attach.Attachment) error {
		hooked++
		same(t, "what the hook got", first, a)
		return nil
	}
	same(t, "second answer", first, n.must(t, spec))
	if hooked != 1 {
		t.Errorf("the hook ran %d times", hooked)
	}
	expect(t, n.ns, goldenHost)
	expect(t, p.NS, goldenSandbox)

	for _, tc := range []struct{ name, host, sandbox string }{
		{"sandbox without addresses", "true", "ip addr flush dev eth0 scope global"},
		{"sandbox without routes", "true", "ip route flush table main; ip -6 route del default"},
		{"sandbox down", "true", "ip link set eth0 down"},
		{"host without routes", "ip route flush proto 122; ip -6 route flush proto 122", "true"},
		{"host without neighbours", "ip neigh flush nud permanent", "true"},
		{"host without forwarding", "bridge fdb del 06:b3:c8:18:ea:dc dev zl-403d4edb46-p master", "true"},
		{"port down", "ip link set zl-403d4edb46-p down", "true"},
		{"port open", "ip link set zl-403d4edb46-p type bridge_slave isolated off learning on flood on", "true"},
		{"port elsewhere", "ip link set zl-403d4edb46-p nomaster", "true"},
		{"route of another shape", "ip route replace 10.42.0.1 dev zl-default-b proto 122 mtu 1000", "true"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out(t, n.ns, "sh", "-c", tc.host)
			out(t, p.NS, "sh", "-c", tc.sandbox)
			if err := n.Check(t.Context(), key(1), p.file); err == nil {
				t.Error("Check sees no damage")
			}
			same(t, "answer", first, n.must(t, p.spec(1)))
			if err := n.Check(t.Context(), key(1), p.file); err != nil {
				t.Errorf("after the repair: %v", err)
			}
			expect(t, n.ns, goldenHost)
			if got := state(t, p.NS); !strings.HasPrefix(goldenSandbox, got[:strings.Index(got, "addr eth0 fd42::1")]) || !strings.HasSuffix(got, goldenSandbox[strings.Index(goldenSandbox, "route"):]) {
				t.Errorf("sandbox:\n%s", got)
			}
		})
	}
}

// TestNetworkIsLearned checks that a port of a version that wrote no network
// gets it with the next Attach, and keeps it over a restart.
func TestNetworkIsLearned(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	want := n.must(t, p.spec(1))
	named := p.spec(1)
	named.Network = "pods"
	want.Network = "pods"
	same(t, "answer to an Attach that names it", want, n.must(t, named))
	same(t, "answer to one that does not", want, n.must(t, p.spec(1)))
	again := newAttacher(t, n.ns, attach.Config{MTU: 1420})
	recovered, err := again.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "recovered", []attach.Attachment{want}, recovered)
}

// TestAnotherNamespace checks that a key whose sandbox was made anew moves to
// the new namespace, whether the old one still exists or not.
func TestAnotherNamespace(t *testing.T) {
	for _, dead := range []bool{false, true} {
		t.Run(map[bool]string{false: "the old one lives", true: "the old one is gone"}[dead], func(t *testing.T) {
			n, before, after := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "before"), newPod(t, "after")
			first := n.must(t, before.spec(1))
			if dead {
				kill(t, before)
				eventually(t, "the link of a dead namespace is gone", func() bool { return !strings.Contains(state(t, n.ns), first.Port) })
			}
			second := n.must(t, after.spec(1))
			if first.PortIndex == second.PortIndex {
				t.Error("it is the old port")
			}
			expect(t, n.ns, goldenHost)
			expect(t, after.NS, goldenSandbox)
			if !dead {
				expect(t, before.NS, "")
			}
			if err := n.Check(t.Context(), key(1), after.file); err != nil {
				t.Error(err)
			}
		})
	}
}

// kill lets go of a namespace, so that the kernel removes it.
func kill(t testing.TB, p *pod) {
	t.Helper()
	if err := errors.Join(p.file.Close(), p.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestConflicts(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	first := p.spec(1)
	first.Network = "pods"
	n.must(t, first)
	before := state(t, n.ns)
	another := newPod(t, "another")
	for what, spoil := range map[string]func(*attach.Spec){
		"the same sandbox with other addresses":     func(s *attach.Spec) { *s = p.spec(1); s.Addrs = addrs(9) },
		"the same sandbox of another network":       func(s *attach.Spec) { *s = p.spec(1); s.Network = "other" },
		"the same sandbox on another segment":       func(s *attach.Spec) { *s = p.spec(1); s.Segment = "other" },
		"the same sandbox with another MAC":         func(s *attach.Spec) { *s = p.spec(1); s.MAC = mac(t, "02:00:00:00:00:01") },
		"another sandbox with one address":          func(s *attach.Spec) { s.Addrs = append(addrs(2)[:1], addrs(1)[1]) },
		"another sandbox with the hardware address": func(s *attach.Spec) { s.MAC = mac(t, "06:b3:c8:18:ea:dc") },
		"another sandbox with the bridge's":         func(s *attach.Spec) { s.MAC = mac(t, "4a:b6:3a:0d:86:5a") },
		"another sandbox with the port's":           func(s *attach.Spec) { s.MAC = mac(t, "ee:9b:d8:26:c3:45") },
	} {
		spec := another.spec(2)
		spoil(&spec)
		if _, err := n.Attach(t.Context(), spec); !errors.Is(err, attach.ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", what, err)
		}
		expect(t, n.ns, before)
		expect(t, another.NS, "")
	}
	if err := n.Check(t.Context(), key(1), p.file); err != nil {
		t.Error(err)
	}
}

// TestBridgeGone checks that an attachment finds out by itself that someone
// removed the bridge.
func TestBridgeGone(t *testing.T) {
	n, p, q := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod"), newPod(t, "other")
	n.must(t, p.spec(1))
	out(t, n.ns, "ip", "link", "del", "zl-default-b")
	n.must(t, q.spec(2))
	out(t, q.NS, "ping", "-n", "-c", "1", "-W", "20", "169.254.1.1")
	if err := n.Check(t.Context(), key(1), p.file); err == nil {
		t.Error("Check does not miss the bridge")
	}
	if err := n.Reconcile(t.Context()); err != nil {
		t.Error(err)
	}
	ping(t, p.NS, "fd42::2")
}

// TestInterfaceExists checks that an interface which is not ours stays.
func TestInterfaceExists(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{}), newPod(t, "pod")
	out(t, p.NS, "ip", "link", "add", "eth0", "type", "bridge")
	if _, err := n.EnsureSegment(t.Context(), attach.SegmentSpec{Name: "default"}); err != nil {
		t.Fatal(err)
	}
	host, sandbox := state(t, n.ns), state(t, p.NS)
	if _, err := n.Attach(t.Context(), p.spec(1)); !errors.Is(err, attach.ErrExists) {
		t.Errorf("Attach: %v, want ErrExists", err)
	}
	expect(t, n.ns, host)
	expect(t, p.NS, sandbox)
}

func TestNotANamespace(t *testing.T) {
	n := newNode(t, "host", attach.Config{MTU: 1420})
	if _, err := n.EnsureSegment(t.Context(), attach.SegmentSpec{Name: "default"}); err != nil {
		t.Fatal(err)
	}
	p := newPod(t, "pod")
	spec := p.spec(1)
	file := plainFile(t)
	spec.Netns = file
	if _, err := n.Attach(t.Context(), spec); err == nil {
		t.Error("a plain file passed for a namespace")
	}
	_ = file.Close()
	if _, err := n.Attach(t.Context(), spec); err == nil {
		t.Error("a closed file passed for a namespace")
	}
	expect(t, n.ns, goldenEmptySegment)
	n.must(t, p.spec(1)) // its addresses are free
}

func plainFile(t testing.TB) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	return file
}
