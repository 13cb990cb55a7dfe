package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// volatile masks what differs from run to run in `overlayd status`.
func volatile(text string, keys ...string) string {
	for _, key := range keys {
		text = strings.ReplaceAll(text, key, "KEY-"+strings.Repeat("-", len(key)-4))
	}
	for _, mask := range []struct{ pattern, mark string }{
		{`Version:( +)\S.*`, "Version:${1}VERSION"},
		{`(kernel|userspace) WireGuard`, "BACKEND WireGuard"},
		{`Upstreams:( +)\S.*`, "Upstreams:${1}UPSTREAMS"},
		{`Names:( +)\d+`, "Names:${1}N"},
		{`(\d+[dhms])+ ago`, "AGE"},
		{` \d[\d.]* (B|KiB|MiB) +\d[\d.]* (B|KiB|MiB)`, " RX   TX"},
		{`HANDSHAKE +HEALTH +RECEIVED +SENT`, "HANDSHAKE   HEALTH   RECEIVED   SENT"},
		{`AGE +(-|healthy|unknown|idle) +RX`, "AGE   HEALTH   RX"},
	} {
		text = regexp.MustCompile(mask.pattern).ReplaceAllString(text, mask.mark)
	}
	return regexp.MustCompile(`AGE +`).ReplaceAllString(text, "AGE   ")
}

func TestDaemonLife(t *testing.T) {
	a, b := newPair(t)
	empty := newNode(t, netlab.TestFabric(t, "elsewhere"), "node-c", 3)
	pods := []*sandbox{newSandbox(t, "pod-1"), newSandbox(t, "pod-2"), newSandbox(t, "pod-3")}
	client := a.client()
	first, second := pods[0].attach(t, client), pods[1].attach(t, client)
	third := pods[2].attach(t, b.client())
	for _, to := range [][]netip.Prefix{second.Addresses, third.Addresses} {
		for _, prefix := range to {
			pods[0].reaches(t, prefix.Addr())
		}
	}
	a.audit()
	checkStatusTable(t, a, a.status().PublicKey, b.status().PublicKey)
	checkMetrics(t, a)

	// The same request again gives the same answer.
	if diff := cmp.Diff(first, pods[0].attach(t, client), compareConfigs, compareAddrs); diff != "" {
		t.Errorf("attached again (-first +again):\n%s", diff)
	}
	checked, err := client.Check(t.Context(), pods[0].handle)
	if diff := cmp.Diff(first, checked, compareConfigs, compareAddrs); diff != "" || err != nil {
		t.Errorf("check: %v (-attached +checked):\n%s", err, diff)
	}

	before := a.status().Attachments
	if err := a.end(syscall.SIGTERM); err != nil {
		t.Errorf("exit after SIGTERM: %v", err)
	}
	if _, err := os.Stat(a.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after the end: %v", err)
	}
	// On the node, traffic needs no daemon.
	pods[0].reaches(t, second.Addresses[0].Addr())

	a.startReady()
	if diff := cmp.Diff(before, a.status().Attachments, compareAddrs); diff != "" {
		t.Errorf("attachments after the restart (-before +after):\n%s", diff)
	}
	a.audit()
	pods[0].reaches(t, third.Addresses[0].Addr())
	pods[0].reaches(t, third.Addresses[1].Addr())
	if diff := cmp.Diff(first, pods[0].attach(t, client), compareConfigs, compareAddrs); diff != "" {
		t.Errorf("attached after the restart (-first +again):\n%s", diff)
	}
	if err := client.Detach(t.Context(), pods[1].handle); err != nil {
		t.Errorf("detach: %v", err)
	}
	if err := client.GC(t.Context(), "", []shim.Attachment{}); err != nil {
		t.Errorf("GC: %v", err)
	}
	if left := a.status().Attachments; len(left) > 0 {
		t.Errorf("attachments after GC: %+v", left)
	}
	a.audit()
	checkTeardown(t, a, empty)
}

// compareAddrs compares netip.Addr by value.
var compareAddrs = cmp.Comparer(func(x, y netip.Addr) bool { return x == y })

func checkStatusTable(t *testing.T, n *node, keys ...string) {
	t.Helper()
	out, stderr, err := n.run("status", "--config", n.config)
	if err != nil || stderr != "" {
		t.Fatalf("status: %v\n%s", err, stderr)
	}
	golden(t, "status-node.txt", volatile(out, keys...))
}

func checkTeardown(t *testing.T, n, untouched *node) {
	t.Helper()
	out, stderr, err := n.run("teardown", "--socket", n.socket)
	if exitCode(err) != 1 || out != "" || stderr != fmt.Sprintf("overlayd: a daemon serves %s: end it first\n", n.socket) {
		t.Errorf("teardown beside a daemon: %v\n%s%s", err, out, stderr)
	}
	if err := n.end(syscall.SIGINT); err != nil {
		t.Errorf("exit after SIGINT: %v", err)
	}
	state := filepath.Join(n.dir, "state")
	out, stderr, err = n.run("teardown", "--config", n.config)
	want := `^removed 1 bridge, 1 WireGuard device, \d+ routes, 2 firewall tables\n` +
		`set back net/ipv4/ip_forward = 0\nset back net/ipv6/conf/all/forwarding = 0\n(set back net/ipv6/conf/\w+/accept_ra = 1\n)+$`
	if err != nil || !regexp.MustCompile(want).MatchString(out) {
		t.Errorf("teardown: %v\n%s%s", err, out, stderr)
	}
	if _, err := os.Stat(filepath.Join(state, "key")); err != nil {
		t.Errorf("key after teardown: %v", err)
	}
	want = strings.NewReplacer("node-c", "node-a", "198.51.100.3", "198.51.100.1", "2001:db8:1::3", "2001:db8:1::1").Replace(untouched.kernelState())
	if diff := cmp.Diff(want, n.kernelState()); diff != "" {
		t.Errorf("kernel after teardown (-untouched +torn down):\n%s", diff)
	}
	out, stderr, err = n.run("teardown", "--config", n.config, "--purge")
	if err != nil || out != fmt.Sprintf("nothing of ours was there\nremoved %s.lock\nremoved %s/key\nremoved %s\n", n.socket, state, state) {
		t.Errorf("purge: %v\n%s%s", err, out, stderr)
	}
}

// What a teardown could not remove must not send past the tunnel.
func TestTeardownThatFailsKeepsTheFirewall(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	if err := n.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// Without it no thread joins a namespace.
	cmd := n.ns.Command(ctx, "setpriv", "--bounding-set=-sys_admin", netlab.Binary(t, "overlayd"), "teardown", "--config", n.config)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := runPinned(cmd); exitCode(err) != 1 || !strings.Contains(stderr.String(), "remove attachments: ") {
		t.Fatalf("teardown without CAP_SYS_ADMIN: %v\n%s", err, &stderr)
	}
	if tables := n.command("nft", "list", "tables"); !strings.Contains(tables, "inet zlayer") || !strings.Contains(tables, "bridge zlayer") {
		t.Errorf("the firewall is gone: %s", tables)
	}
	if _, stderr, err := n.run("teardown", "--config", n.config); err != nil {
		t.Errorf("teardown: %v\n%s", err, stderr)
	}
	if tables := n.command("nft", "list", "tables"); strings.Contains(tables, "zlayer") {
		t.Errorf("the firewall is left: %s", tables)
	}
}

// A kernel has one daemon, by whatever paths another is started.
func TestSecondDaemonRefuses(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	before := n.kernelState()
	_, stderr, err := n.run("run", "--config", n.config, "--metrics-address=")
	if exitCode(err) != 1 || !strings.Contains(stderr, n.socket) || !strings.Contains(stderr, shim.ErrInUse.Error()) || strings.Count(stderr, "\n") != 1 {
		t.Errorf("second daemon: %v\n%s", err, stderr)
	}
	_, stderr, err = n.run("run", "--config", n.config, "--socket", n.socket+"2")
	if exitCode(err) != 1 || !strings.HasPrefix(stderr, "overlayd: metricsAddress: ") {
		t.Errorf("second daemon on another socket: %v\n%s", err, stderr)
	}
	other := []string{"--socket", n.socket + "2", "--state-dir", n.dir + "/state2"}
	for _, args := range [][]string{
		append([]string{"run", "--config", n.config, "--metrics-address="}, other...),
		append([]string{"teardown", "--purge"}, other...),
	} {
		out, stderr, err := n.run(args...)
		if exitCode(err) != 1 || out != "" || !strings.HasPrefix(stderr, "overlayd: another overlayd is in charge of this network namespace: ") {
			t.Errorf("%s with other paths: %v\n%s%s", args[0], err, out, stderr)
		}
	}
	if diff := cmp.Diff(before, n.kernelState()); diff != "" {
		t.Errorf("kernel (-before +after):\n%s", diff)
	}
	if status, body := n.get("/healthz"); status != http.StatusOK {
		t.Errorf("the first daemon: %d %s", status, body)
	}
}

// A successor that is started beside the daemon takes over when that ends, and
// ends without a word if it is told to before.
func TestHandover(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	first, firstEnded := n.cmd, n.exited
	n.configure("handover: true\n")
	waits := func() error {
		if !strings.Contains(n.log.String(), "waiting until the daemon in charge ends") {
			return errors.New("the successor does not wait")
		}
		return nil
	}
	n.start()
	eventually(t, waits)
	if err := n.end(syscall.SIGTERM); err != nil {
		t.Errorf("exit of a successor that was told to end: %v", err)
	}
	n.start()
	eventually(t, waits)
	if status, body := n.get("/healthz"); status != http.StatusOK {
		t.Errorf("healthz while the successor waits: %d %s", status, body)
	}
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-firstEnded
	eventually(t, func() error {
		if status, body := n.get("/healthz"); status != http.StatusOK {
			return fmt.Errorf("healthz of the successor: %d %s", status, body)
		}
		return nil
	})
	if err := n.end(syscall.SIGTERM); err != nil {
		t.Errorf("exit of the successor: %v", err)
	}
}

func TestBadConfigChangesNothing(t *testing.T) {
	n := newNode(t, netlab.TestFabric(t, "fabric"), "node-a", 1)
	good := nodesFileOf([]*node{n}, nil)
	tests := []struct{ name, config, nodes, want string }{
		{"unknown key", "mtuu: 1400\n", good, `overlayd: config CONFIG: unknown key "mtuu"`},
		{"MTU too small", "mtu: 1000\n", good, "overlayd: config: mtu: 1000 is not between 1280 and 65455"},
		{"slice outside the cluster", "", strings.ReplaceAll(good, "10.20.1.0", "10.99.1.0"), "overlayd: nodesFile: NODES: nodes[0].slices: node-a: 10.99.1.0/24 is outside the cluster CIDR"},
		{"overlapping slices", "", good + "- {name: node-b, slices: [10.20.0.0/20]}\n", "overlayd: nodesFile: NODES: nodes[1]: node-b: its slice 10.20.0.0/20 overlaps 10.20.1.0/24 of node node-a"},
		{"duplicate keys", "", strings.Replace(good, `""`, keyA, 1) + "- {name: node-b, publicKey: " + keyA + "}\n", "overlayd: nodesFile: NODES: nodes[1]: node-b: node node-a has the same public key"},
		{"no nodes file", "nodesFile: /nowhere\n", "", `key "nodesFile" already set in map`},
	}
	before := n.kernelState()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n.configure(tt.config)
			write(t, n.nodes, tt.nodes)
			out, stderr, err := n.run("run", "--config", n.config)
			stderr = strings.NewReplacer(n.config, "CONFIG", n.nodes, "NODES").Replace(stderr)
			if exitCode(err) != 1 || out != "" || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit %v\n%s%s", err, out, stderr)
			}
			for _, path := range []string{n.socket, n.socket + ".lock", filepath.Join(n.dir, "state")} {
				if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s: %v", path, err)
				}
			}
		})
	}
	if diff := cmp.Diff(before, n.kernelState()); diff != "" {
		t.Errorf("kernel (-before +after):\n%s", diff)
	}
}

func TestHealthzTransitions(t *testing.T) {
	netlab.NeedTunnel(t)
	n := newSingle(t)
	n.configure("masquerade: false\n")
	good := strings.NewReplacer("10.20.1.0/24", "10.20.1.0/30").Replace(nodesFileOf([]*node{n}, nil))
	write(t, n.nodes, strings.Replace(good, `publicKey: ""`, "publicKey: "+keyA, 1))
	n.start()
	healthz := func(status int, want string) {
		t.Helper()
		eventually(t, func() error {
			if got, body := n.get("/healthz"); got != status || !strings.Contains(body, want) {
				return fmt.Errorf("healthz: %d %q, want %d with %q", got, body, status, want)
			}
			return nil
		})
	}
	healthz(http.StatusServiceUnavailable, "public key")
	client, pod := n.client(), newSandbox(t, "pod")
	if _, err := client.Attach(t.Context(), pod.request()); codeOfCall(err) != shim.CodeUnavailable || !strings.Contains(err.Error(), "public key") {
		t.Errorf("attach while not ready: %v", err)
	}
	if err := client.Ready(t.Context()); codeOfCall(err) != shim.CodeUnavailable {
		t.Errorf("ready while not ready: %v", err)
	}

	replace(t, n.nodes, good)
	healthz(http.StatusOK, "ok")
	if err := client.Ready(t.Context()); err != nil {
		t.Error(err)
	}

	// A file that went bad costs nothing but a warning.
	replace(t, n.nodes, "{")
	eventually(t, func() error {
		status := n.status()
		if !status.Ready || len(status.Waiting) != 1 || !strings.Contains(status.Waiting[0], n.nodes) {
			return fmt.Errorf("status: ready %v, %v", status.Ready, status.Waiting)
		}
		return nil
	})
	if _, body := n.get("/metrics"); !strings.Contains(body, "overlayd_node_set_in_force 0\n") {
		t.Errorf("metrics:\n%s", body)
	}
	healthz(http.StatusOK, "ok")

	// The only address of the slice.
	pod.attach(t, client)
	healthz(http.StatusServiceUnavailable, "no free address in 10.20.1.0/30")
	if _, err := client.Attach(t.Context(), newSandbox(t, "late").request()); codeOfCall(err) != shim.CodeExhausted {
		t.Errorf("attach without an address: %v", err)
	}
	if err := client.Detach(t.Context(), pod.handle); err != nil {
		t.Fatal(err)
	}
	healthz(http.StatusOK, "ok")
	n.audit()
}

func TestTombstonesAreDrainedBeforeServing(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	pods := []*sandbox{newSandbox(t, "pod-1"), newSandbox(t, "pod-2"), newSandbox(t, "pod-3")}
	client := n.client()
	for _, pod := range pods {
		pod.attach(t, client)
	}
	if code := exitCode(n.end(syscall.SIGKILL)); code != -int(syscall.SIGKILL) {
		t.Fatalf("exit %d", code)
	}
	graves := cni.TombstoneDir(filepath.Join(n.dir, "state"))
	for _, pod := range pods[:2] {
		if err := (cni.Tombstone{ContainerID: pod.handle.ContainerID, IfName: "eth0"}).Write(graves); err != nil {
			t.Fatal(err)
		}
	}
	n.startReady()
	status := n.status()
	if len(status.Attachments) != 1 || status.Attachments[0].ContainerID != pods[2].handle.ContainerID {
		t.Errorf("attachments: %+v", status.Attachments)
	}
	if left, err := cni.Tombstones(graves); err != nil || len(left) > 0 {
		t.Errorf("tombstones left: %v, %v", left, err)
	}
	if _, body := n.get("/metrics"); !strings.Contains(body, "overlayd_late_detaches_total 2\n") {
		t.Errorf("metrics:\n%s", body)
	}
	n.audit()

	// An ADD is younger than a DEL that lies there.
	if err := (cni.Tombstone{ContainerID: pods[0].handle.ContainerID, IfName: "eth0"}).Write(graves); err != nil {
		t.Fatal(err)
	}
	pods[0].attach(t, client)
	if left, err := cni.Tombstones(graves); err != nil || len(left) > 0 {
		t.Errorf("tombstones left after an attach: %v, %v", left, err)
	}
}

func TestShutdownRequest(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	if _, err := n.client().Call(t.Context(), &shim.Shutdown{}); err != nil {
		t.Error(err)
	}
	if err := n.wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
	if !strings.Contains(n.command("ip", "link"), "zl-default-b") {
		t.Error("the data plane is gone")
	}
}
