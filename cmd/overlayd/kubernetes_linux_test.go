package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/apiserver"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// newCluster makes two nodes that find each other at an API server, which
// listens on the first; no daemon runs yet.
func newCluster(t *testing.T) (api *apiserver.Server, a, b *node) {
	t.Helper()
	fabric := netlab.TestFabric(t, "fabric")
	a, b = newNode(t, fabric, "node-a", 1), newNode(t, fabric, "node-b", 2)
	var listener net.Listener
	if err := a.ns.Do(func() (err error) {
		listener, err = net.Listen("tcp", "198.51.100.1:6443")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	api = apiserver.Serve(t, listener)
	kubeconfig := api.Kubeconfig(t)
	for i, n := range []*node{a, b} {
		write(t, n.config, fmt.Sprintf("nodeName: %s\nkubernetes: true\nkubeconfig: %s\nsocket: %s\nstateDir: %s/state\n", n.ns.Name, kubeconfig, n.socket, n.dir))
		registered(api, n, i+1, i+1)
	}
	return api, a, b
}

// registered makes the Node of a machine, with the slices of a number.
func registered(api *apiserver.Server, n *node, machine, slice int) {
	api.Create("nodes", apiserver.Object{
		"kind": "Node", "apiVersion": "v1", "metadata": apiserver.Object{"name": n.ns.Name},
		"spec": apiserver.Object{
			"podCIDRs": []string{fmt.Sprintf("10.20.%d.0/24", slice), fmt.Sprintf("fd20:0:0:%d::/64", slice)},
			"taints":   []apiserver.Object{{"key": "overlay.zlayer.dev/not-ready", "effect": "NoSchedule"}},
		},
		"status": apiserver.Object{"addresses": []apiserver.Object{{"type": "InternalIP", "address": fmt.Sprintf("198.51.100.%d", machine)}}},
	})
}

// hasPeers waits until the node has that many peers.
func (n *node) hasPeers(want uint32) {
	n.t.Helper()
	eventually(n.t, func() error {
		if got := n.status().PeerCount; got != want {
			return fmt.Errorf("%s has %d peers, want %d", n.ns.Name, got, want)
		}
		return nil
	})
}

// boundPod tells the API server of a pod for a sandbox.
func boundPod(api *apiserver.Server, s *sandbox, n *node) {
	api.Create("pods", apiserver.Object{
		"kind": "Pod", "apiVersion": "v1",
		"metadata": apiserver.Object{"namespace": "test", "name": s.ns.Name},
		"spec":     apiserver.Object{"nodeName": n.ns.Name},
	})
}

func TestDaemonsOfACluster(t *testing.T) {
	api, a, b := newCluster(t)
	a.startReady()
	b.startReady()
	a.hasPeers(1)
	b.hasPeers(1)
	pods := []*sandbox{newSandbox(t, "pod-1"), newSandbox(t, "pod-2"), newSandbox(t, "pod-3")}
	boundPod(api, pods[0], a)
	boundPod(api, pods[1], b)
	pods[0].attach(t, a.client())
	for _, prefix := range pods[1].attach(t, b.client()).Addresses {
		pods[0].reaches(t, prefix.Addr())
	}
	if _, err := a.client().Attach(t.Context(), pods[2].request()); codeOfCall(err) != shim.CodeUnavailable || !strings.Contains(err.Error(), "no such pod") {
		t.Errorf("attach a pod that the API server does not show: %v", err)
	}
	eventually(t, func() error {
		if spec := api.Get("nodes", "", "node-a")["spec"].(apiserver.Object); len(spec["taints"].([]any)) > 0 {
			return fmt.Errorf("taints of node-a: %v", spec["taints"])
		}
		return nil
	})
	if _, body := a.get("/metrics"); !strings.Contains(body, "overlayd_api_server_reachable 1\n") || !strings.Contains(body, "overlayd_node_problems{reason=\"DuplicateKey\"} 0\n") {
		t.Errorf("metrics:\n%s", body)
	}

	// The API server is away, and a daemon comes anew.
	api.Break()
	if err := a.end(syscall.SIGKILL); err == nil {
		t.Error("killed, and no error")
	}
	a.startReady()
	a.hasPeers(1)
	pods[0].reaches(t, b.status().Attachments[0].Addresses[0])
	eventually(t, func() error {
		if status := a.status(); !status.Ready || len(status.Waiting) != 1 || !strings.Contains(status.Waiting[0], "API server http://198.51.100.1:6443: ") {
			return fmt.Errorf("status without an API server: ready %v, %q", status.Ready, status.Waiting)
		}
		return nil
	})
	if _, err := a.client().Attach(t.Context(), pods[2].request()); codeOfCall(err) != shim.CodeUnavailable {
		t.Errorf("attach a pod without an API server: %v", err)
	}
	if err := a.client().Detach(t.Context(), pods[0].handle); err != nil {
		t.Errorf("detach without an API server: %v", err)
	}
	api.Mend()
	api.Delete("nodes", "", "node-b")
	a.hasPeers(0)
	a.audit()

	if err := a.end(syscall.SIGTERM); err != nil {
		t.Errorf("exit after SIGTERM: %v", err)
	}
	if _, stderr, err := a.run("teardown", "--config", a.config, "--purge"); err != nil {
		t.Errorf("teardown: %v\n%s", err, stderr)
	}
	if _, err := os.Stat(filepath.Join(a.dir, "state")); !os.IsNotExist(err) {
		t.Errorf("state folder after the purge: %v", err)
	}
}

// TestFirstStartWithoutAnAPIServer says what the daemon waits for.
func TestFirstStartWithoutAnAPIServer(t *testing.T) {
	netlab.NeedTunnel(t)
	api, a, _ := newCluster(t)
	api.Break()
	a.start()
	eventually(t, func() error {
		if code, body := a.get("/healthz"); code != 503 || !strings.Contains(body, "API server http://198.51.100.1:6443: ") {
			return fmt.Errorf("healthz: %d %s", code, body)
		}
		return nil
	})
	pod := newSandbox(t, "pod-1")
	boundPod(api, pod, a)
	if _, err := a.client().Attach(t.Context(), pod.request()); codeOfCall(err) != shim.CodeUnavailable {
		t.Errorf("attach: %v", err)
	}
	api.Mend()
	eventually(t, func() error {
		_, err := a.client().Attach(t.Context(), pod.request())
		return err
	})
}

// TestNodeMadeAgain gives a Node other slices: the daemon serves the pods it has,
// and takes the slices once there are none.
func TestNodeMadeAgain(t *testing.T) {
	api, a, b := newCluster(t)
	a.startReady()
	b.startReady()
	pod := newSandbox(t, "pod-1")
	boundPod(api, pod, a)
	pod.attach(t, a.client())
	api.Delete("nodes", "", "node-a")
	b.hasPeers(0)
	registered(api, a, 1, 7)
	eventually(t, func() error {
		if waiting := a.status().Waiting; len(waiting) == 0 || !strings.Contains(waiting[0], "10.20.7.0/24") {
			return fmt.Errorf("waiting for %q", waiting)
		}
		return nil
	})
	if err := a.client().Detach(t.Context(), pod.handle); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		client, err := shim.Dial(t.Context(), a.socket, shim.DialOptions{})
		if err != nil {
			return err
		}
		defer func() { _ = client.Close() }()
		status, err := client.Status(t.Context())
		if err == nil && (!status.Ready || status.SliceCIDR.String() != "10.20.7.0/24") {
			err = fmt.Errorf("ready %v with the slice %v", status.Ready, status.SliceCIDR)
		}
		return err
	})
	b.hasPeers(1)
	a.audit()
}

// TestTeardownLeavesTheNodeAsItWas removes what daemons wrote to their Nodes. An
// API server that is away, or refuses, keeps nothing on the host, and is told of.
func TestTeardownLeavesTheNodeAsItWas(t *testing.T) {
	api, a, b := newCluster(t)
	untouched := func() apiserver.Object {
		node := api.Get("nodes", "", "node-a")
		delete(apiserver.Metadata(node), "resourceVersion")
		delete(node["spec"].(apiserver.Object), "taints") // ours goes for good
		return node
	}
	api.Edit("nodes", "", "node-a", func(o apiserver.Object) {
		apiserver.Metadata(o)["annotations"] = apiserver.Object{"example.com/other": "kept"}
		o["status"].(apiserver.Object)["conditions"] = []any{apiserver.Object{"type": "Ready", "status": "False"}}
	})
	before := untouched()
	a.startReady()
	b.startReady()
	a.hasPeers(1)
	written := func() error {
		node := untouched()
		conditions := node["status"].(apiserver.Object)["conditions"].([]any)
		if annotations := apiserver.Metadata(node)["annotations"].(apiserver.Object); len(annotations) != 4 || len(conditions) != 2 {
			return fmt.Errorf("annotations %v, conditions %v", annotations, conditions)
		}
		return nil
	}
	eventually(t, written)
	if _, _, err := a.run("teardown", "--config", a.config); exitCode(err) != 1 {
		t.Errorf("teardown beside a daemon: %v", err)
	}
	if err := written(); err != nil {
		t.Errorf("after a teardown beside a daemon: %v", err)
	}
	if err := a.end(syscall.SIGTERM); err != nil {
		t.Errorf("exit: %v", err)
	}

	api.Refuse(func(r *http.Request) int {
		if strings.HasSuffix(r.URL.Path, "/nodes/node-a") {
			return http.StatusForbidden
		}
		return 0
	})
	out, stderr, err := a.run("teardown", "--config", a.config, "--purge")
	if exitCode(err) != 1 || !strings.HasPrefix(out, "removed 1 bridge") || !strings.HasPrefix(stderr, "overlayd: kubernetes: read node node-a: ") {
		t.Errorf("teardown that the API server refuses: %v\n%s%s", err, out, stderr)
	}
	if _, err := os.Stat(filepath.Join(a.dir, "state")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state after a purge: %v", err)
	}
	api.Refuse(nil)
	api.Break()
	_, stderr, err = a.run("teardown", "--config", a.config, "--purge")
	if exitCode(err) != 1 || !strings.HasPrefix(stderr, "overlayd: kubernetes: read node node-a: ") {
		t.Errorf("teardown without an API server: %v\n%s", err, stderr)
	}
	api.Mend()
	out, stderr, err = a.run("teardown", "--config", a.config)
	want := "nothing of ours was there\n"
	for _, key := range []string{"public-key", "endpoint", "mtu"} {
		want += "removed annotation overlay.zlayer.dev/" + key + " of node node-a\n"
	}
	want += "removed condition NetworkUnavailable of node node-a\n"
	if diff := cmp.Diff(want, out); err != nil || diff != "" {
		t.Errorf("teardown: %v\n%s(-want +got):\n%s", err, stderr, diff)
	}
	if diff := cmp.Diff(before, untouched()); diff != "" {
		t.Errorf("Node (-before +after):\n%s", diff)
	}
}
