package dataplane

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == otherNodeArg {
		os.Exit(runOtherNode(os.Args[2]))
	}
	os.Exit(netlab.Main(m))
}

// newPlane returns a data plane without nodes. The lab's own network namespace
// is the host, so one test uses it at a time.
func newPlane(t *testing.T) *Dataplane {
	t.Helper()
	return newPlaneWith(t, func(*Config) {})
}

// newPlaneWith is newPlane with another configuration.
func newPlaneWith(t *testing.T, change func(*Config)) *Dataplane {
	t.Helper()
	netlab.NeedTunnel(t)
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	cfg := Config{Node: "one", StateDir: t.TempDir(), ListenPort: 51820, MTU: 1420, Log: log}
	change(&cfg)
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if parts := d.current(); parts != nil {
			if err := parts.close(); err != nil {
				t.Error(err)
			}
		}
		if err := d.firewall.Close(); err != nil {
			t.Error(err)
		}
		if err := Teardown(context.WithoutCancel(t.Context()), d.cfg.StateDir, log); err != nil {
			t.Error(err)
		}
	})
	return d
}

// clusterOfOne is a node set with nobody else.
func clusterOfOne() NodeSet {
	return NodeSet{
		Cluster: prefixes("10.200.0.0/16", "fd00:200::/48"),
		Nodes:   []Node{{Name: "one", Slices: prefixes("10.200.1.0/24", "fd00:200:0:1::/64")}},
	}
}

// newRunningPlane returns a data plane that is up, without Run.
func newRunningPlane(t *testing.T) *Dataplane {
	t.Helper()
	d := newPlane(t)
	if err := d.SetNodes(t.Context(), clusterOfOne()); err != nil {
		t.Fatal(err)
	}
	return d
}

// request asks for a sandbox in a new namespace.
func request(t *testing.T, container, netns string) AttachRequest {
	t.Helper()
	file, err := netlab.TestNS(t, netns).Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return AttachRequest{Key: attach.Key{ContainerID: container, IfName: "eth0"}, Netns: file}
}

// wantNothing wants no attachment, address or pin.
func wantNothing(t *testing.T, d *Dataplane) {
	t.Helper()
	status, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Attachments) > 0 {
		t.Errorf("attachments are left: %v", status.Attachments)
	}
	for _, pool := range status.Pools {
		if pool.Used > 0 {
			t.Errorf("%d addresses of %s are held", pool.Used, pool.Prefix)
		}
	}
	for _, table := range []string{"inet", "bridge"} {
		out, err := exec.Command("nft", "list", "set", table, "zlayer", "ports").CombinedOutput()
		if err != nil || strings.Contains(string(out), "elements") {
			t.Errorf("pins are left in the %s table: %v\n%s", table, err, out)
		}
	}
}

// testWriter sends a log to its test.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}
