package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/kube"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// followCluster makes the API server the source of nodes, and of pods.
func (d *daemon) followCluster() error {
	kube.SetLog(d.log)
	cluster, err := kube.New(kube.Config{
		Node: d.config.NodeName, Kubeconfig: d.config.Kubeconfig, Cluster: d.config.ClusterCIDRs,
		PublicKey: d.plane.PublicKey(), ListenPort: d.config.ListenPort, Endpoint: d.config.Endpoint,
		StateDir: d.config.StateDir, Log: d.log,
		Apply: func(ctx context.Context, set dataplane.NodeSet) (kube.Applied, error) {
			err := d.setNodes(ctx, set)
			return kube.Applied{MTU: d.plane.MTU(), Problems: d.plane.Problems()}, err
		},
	})
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	d.nodes, d.cluster = cluster, cluster
	return nil
}

// errMoved ends a run, after which another begins. It does so in the same
// process: a supervisor would take the end for a crash, and may wait.
var errMoved = errors.New("the Node has other slices than before, and no pod of the old ones is left")

// watchSlices returns when the Node got other slices, as one does that is
// deleted and made again, and the last sandbox of the old ones is gone.
func (d *daemon) watchSlices(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if d.cluster != nil && d.plane.Moved() {
				d.log.Info("starting again, to take the Node's new slices", "op", "run")
				return errMoved
			}
		}
	}
}

// checkPod refuses a sandbox whose pod the API server does not show. Without
// Kubernetes, and for a runtime that names no pod, there is nothing to check.
func (d *daemon) checkPod(ctx context.Context, pod *shim.Pod) error {
	if d.cluster == nil || pod == nil {
		return nil
	}
	_, err := d.cluster.Pod(ctx, kube.PodID{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID})
	if err != nil {
		return fmt.Errorf("%w: %w", err, dataplane.ErrNotReady)
	}
	return nil
}
