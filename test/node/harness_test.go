//go:build linux

// Package node tests a node's built programs as a runtime and an operator meet
// them: what survives a kill at any point, what churn leaves behind, what comes
// back by itself. After every case an audit compares the kernel with what the
// daemon says.
package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/audit"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

// patience bounds every wait; the machine may be an emulated one.
const patience = 2 * time.Minute

// rig is a cluster with the calls that a runtime makes.
type rig struct {
	*cluster.Cluster
	t        *testing.T
	binaries string
}

// newRig makes nodes n1, n2, ... whose daemons do not run yet.
func newRig(t *testing.T, nodes int, change ...func(*cluster.Config)) *rig {
	t.Helper()
	netlab.NeedTunnel(t)
	config := cluster.Config{
		Name: "fabric", Binaries: programs(t), Dir: netlab.TestDir(t),
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.200.0.0/16"), netip.MustParsePrefix("fd00:200::/48")},
	}
	for i := range nodes {
		config.NodeNames = append(config.NodeNames, fmt.Sprintf("n%d", i+1))
	}
	for _, apply := range change {
		apply(&config)
	}
	c, err := cluster.New(config)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Cluster: c, t: t, binaries: config.Binaries}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range c.Nodes {
				t.Logf("log of %s ends with:\n%s", n.Name, n.LogTail())
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// programs returns the folder that holds both programs.
func programs(t *testing.T) string {
	t.Helper()
	dir := filepath.Dir(netlab.Binary(t, "zlayer-cni"))
	if other := filepath.Dir(netlab.Binary(t, "overlayd")); other != dir {
		t.Fatalf("programs are in %s and %s", dir, other)
	}
	return dir
}

func (r *rig) start() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if err := r.Start(ctx); err != nil {
		r.t.Fatal(err)
	}
}

// sandbox is a container's network namespace.
type sandbox struct {
	ns      *netlab.NS
	id      string
	ifName  string
	service string // empty for none
	mode    shim.Mode
}

func (r *rig) sandbox(id string) sandbox {
	return sandbox{ns: netlab.TestNS(r.t, id), id: id, ifName: "eth0"}
}

// add calls the plugin's ADD and returns its addresses.
func (r *rig) add(n *cluster.Node, s sandbox) ([]netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if s.service != "" {
		return r.join(ctx, n, s)
	}
	runtime, list := r.runtime(n)
	answer, err := runtime.AddNetworkList(ctx, list, runtimeConf(s))
	if err != nil {
		return nil, err
	}
	result, err := types100.GetResult(answer)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Prefix
	for _, ip := range result.IPs {
		prefix, err := netip.ParsePrefix(ip.Address.String())
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, prefix)
	}
	return addrs, nil
}

// join asks the daemon as the plugin does. The plugin itself names pods, and
// only a cluster tells which services they join.
func (r *rig) join(ctx context.Context, n *cluster.Node, s sandbox) ([]netip.Prefix, error) {
	client, err := shim.Dial(ctx, n.Socket(), shim.DialOptions{CallTimeout: patience})
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }()
	file, err := s.ns.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	attached, err := client.Attach(ctx, &shim.AttachContainer{
		Handle:  &shim.LinuxNetns{ContainerID: s.id, IfName: s.ifName, Netns: s.ns.Path, File: file},
		Service: s.service, Mode: s.mode, JoinGlobal: true,
	})
	if err != nil {
		return nil, err
	}
	return attached.Addresses, nil
}

// mustAdd fails the test at once if ADD does not succeed.
func (r *rig) mustAdd(n *cluster.Node, s sandbox) []netip.Prefix {
	r.t.Helper()
	addrs, err := r.add(n, s)
	if err != nil {
		r.t.Fatalf("ADD of %s: %v", s.id, err)
	}
	return addrs
}

// del calls the plugin's DEL.
func (r *rig) del(n *cluster.Node, s sandbox) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	runtime, list := r.runtime(n)
	return runtime.DelNetworkList(ctx, list, runtimeConf(s))
}

func runtimeConf(s sandbox) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: s.id, NetNS: s.ns.Path, IfName: s.ifName}
}

func (r *rig) runtime(n *cluster.Node) (*libcni.CNIConfig, *libcni.NetworkConfigList) {
	conf, err := n.NetConf()
	if err != nil {
		r.t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(conf)
	if err != nil {
		r.t.Fatal(err)
	}
	// No cached results: the same call must mean the same thing to the plugin.
	return libcni.NewCNIConfigWithCacheDir([]string{r.binaries}, r.t.TempDir(), nil), list
}

func (r *rig) status(n *cluster.Node) shim.StatusSnapshot {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	status, err := n.Status(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return status
}

// audit fails the test if kernel and daemon disagree, if the number of
// attachments is not the wanted one, or if a service is left without any.
func (r *rig) audit(n *cluster.Node, attachments int) {
	r.t.Helper()
	status := r.status(n)
	if len(status.Attachments) != attachments {
		r.t.Errorf("%d attachments, want %d", len(status.Attachments), attachments)
	}
	if attachments == 0 && status.ServiceCount > 0 {
		r.t.Errorf("%d services are left", status.ServiceCount)
	}
	if err := audit.Node(n.NS, status); err != nil {
		r.t.Errorf("audit of %s:\n%v", n.Name, err)
	}
}

// eventually waits for a condition and reports the last reason why it did not hold.
func (r *rig) eventually(what string, condition func() error) {
	r.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			r.t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}
