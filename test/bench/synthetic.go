//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// syntheticNode is the name of the number-th Node that has no machine.
func syntheticNode(number int) string { return fmt.Sprintf("synthetic-%04d", number) }

// nodeObject is a Node as a kubelet and our daemon write it, images and all:
// some 8 KiB in JSON.
func nodeObject(name string, number int, underlay netip.Addr, annotations map[string]string) map[string]any {
	const images = 50 // what kubelets report at most
	var list []map[string]any
	for i := range images {
		list = append(list, map[string]any{
			"names":     []string{fmt.Sprintf("registry.example/team-%02d/service@sha256:%064d", i, number), fmt.Sprintf("registry.example/team-%02d/service:v1.%d", i, i)},
			"sizeBytes": 10_000_000 + i,
		})
	}
	slices := []string{fmt.Sprintf("10.%d.%d.0/24", 1+number/256, number%256), fmt.Sprintf("fd42:0:0:%x::/64", number)}
	return map[string]any{
		"apiVersion": "v1", "kind": "Node",
		"metadata": map[string]any{
			"name": name, "annotations": annotations,
			"labels": map[string]string{
				"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
				"topology.kubernetes.io/zone": "a", "node.kubernetes.io/instance-type": "large",
			},
		},
		"spec": map[string]any{"podCIDR": slices[0], "podCIDRs": slices},
		"status": map[string]any{
			"addresses":  []map[string]string{{"type": "InternalIP", "address": underlay.String()}, {"type": "Hostname", "address": name}},
			"capacity":   map[string]string{"cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "200Gi"},
			"conditions": conditions(time.Now()),
			"images":     list,
		},
	}
}

// conditions are a kubelet's, whose heartbeat changes with every report.
func conditions(now time.Time) []map[string]string {
	var list []map[string]string
	for _, kind := range []string{"MemoryPressure", "DiskPressure", "PIDPressure", "Ready"} {
		list = append(list, map[string]string{
			"type": kind, "status": map[bool]string{true: "True", false: "False"}[kind == "Ready"], "reason": "Kubelet" + kind,
			"message": "kubelet reports on " + kind, "lastHeartbeatTime": now.UTC().Format(time.RFC3339),
			"lastTransitionTime": "2026-01-01T00:00:00Z",
		})
	}
	return list
}

// addSynthetic creates the number-th Node.
func (a *apiServer) addSynthetic(ctx context.Context, number int) error {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return err
	}
	underlay := netip.AddrFrom4([4]byte{172, 31, byte(16 + number/250), byte(1 + number%250)})
	annotations := map[string]string{
		"overlay.zlayer.dev/public-key": key.PublicKey().String(),
		"overlay.zlayer.dev/endpoint":   netip.AddrPortFrom(underlay, cluster.ListenPort).String(),
		"overlay.zlayer.dev/mtu":        "1440",
	}
	return a.call(ctx, http.MethodPost, "/api/v1/nodes", "application/json", nodeObject(syntheticNode(number), number, underlay, annotations))
}

// inParallel calls fn for 0 to n-1, some at once.
func inParallel(ctx context.Context, n int, fn func(ctx context.Context, i int) error) error {
	const atOnce = 8
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() error { return fn(ctx, i) })
	}
	return group.Wait()
}

// reportStatus is what a kubelet does all the time: another heartbeat.
func (a *apiServer) reportStatus(ctx context.Context, number int, now time.Time) error {
	path := "/api/v1/nodes/" + syntheticNode(number) + "/status"
	return a.call(ctx, http.MethodPatch, path, "application/strategic-merge-patch+json", map[string]any{
		"status": map[string]any{"conditions": conditions(now)},
	})
}

// follower watches all Nodes as they are, which is the plain way to follow a
// cluster, and counts what it receives.
type follower struct {
	received atomic.Int64
	body     io.Closer
	ended    chan struct{}
}

// follow counts changes from now on.
func (a *apiServer) follow(ctx context.Context) (*follower, error) {
	now, err := a.version(ctx)
	if err != nil {
		return nil, err
	}
	const protobuf = "application/vnd.kubernetes.protobuf;stream=watch"
	response, err := a.get(ctx, "/api/v1/nodes?watch=1&resourceVersion="+now, protobuf) //nolint:bodyclose // the follower closes it
	if err != nil {
		return nil, err
	}
	f := &follower{body: response.Body, ended: make(chan struct{})}
	go func() {
		defer close(f.ended)
		buffer := make([]byte, 1<<16)
		for {
			n, err := response.Body.Read(buffer)
			f.received.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	return f, nil
}

// version returns the resource version of all Nodes.
func (a *apiServer) version(ctx context.Context) (string, error) {
	response, err := a.get(ctx, "/api/v1/nodes?limit=1", "application/json")
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	err = json.NewDecoder(response.Body).Decode(&list)
	return list.Metadata.ResourceVersion, err
}

func (a *apiServer) get(ctx context.Context, path, accept string) (*http.Response, error) {
	request, err := a.request(ctx, http.MethodGet, path, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", accept)
	return a.client.Do(request)
}

// close ends the watch. It fails if that had ended before.
func (f *follower) close() error {
	select {
	case <-f.ended:
		return errors.New("the API server ended a watch early, so its bytes prove nothing")
	default:
		err := f.body.Close()
		<-f.ended
		return err
	}
}
