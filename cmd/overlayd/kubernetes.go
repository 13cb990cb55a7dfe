package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/kube"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// followCluster makes the API server the source of nodes, and of pods.
func (d *daemon) followCluster() error {
	kube.SetLog(d.log)
	config := kube.Config{
		Node: d.config.NodeName, Kubeconfig: d.config.Kubeconfig, Cluster: d.config.ClusterCIDRs,
		PublicKey: d.plane.PublicKey(), ListenPort: d.config.ListenPort, Endpoint: d.config.Endpoint,
		StateDir: d.config.StateDir, Log: d.log,
		Services: func() ([]dataplane.LocalService, []wireguard.Problem) {
			return d.plane.LocalServices(), d.plane.ServiceProblems()
		},
		Silent: d.plane.SilentNodes, Candidates: d.plane.Candidates, Relay: d.plane.RelayOffer,
		Guests: d.plane.LocalGuests,
		Apply: func(ctx context.Context, set dataplane.NodeSet) (kube.Applied, error) {
			err := d.setNodes(ctx, set)
			return kube.Applied{MTU: d.plane.MTU(), Problems: d.plane.Problems()}, err
		},
	}
	if d.config.DNS.Enabled { // else nobody asks for their names
		config.Pods, config.LastPods = d.plane.SetPods, d.plane.PresumePods
	}
	cluster, err := kube.New(config)
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

// serviceOfPod asks the pod which service its sandbox joins. A pod that the API
// server does not show is refused: it may do so later.
func (d *daemon) serviceOfPod(ctx context.Context, pod *shim.Pod) (dataplane.ServiceRequest, error) {
	request, err := d.cluster.Service(ctx, kube.PodID{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID})
	if err != nil && !errors.Is(err, dataplane.ErrInvalid) {
		err = fmt.Errorf("%w: %w", err, dataplane.ErrNotReady)
	}
	return request, err
}

// candidatesChanged has the cluster, and subscribers, told of where this node may
// be reached.
func (d *daemon) candidatesChanged() {
	d.telling.Lock()
	d.events.Publish(candidatesEvent(d.plane.Candidates(), d.plane.RelayOffer()))
	d.telling.Unlock()
	if d.cluster != nil {
		d.cluster.CandidatesChanged()
	}
}

// servicesChanged has the cluster told of this node's services.
func (d *daemon) servicesChanged() {
	if d.cluster != nil {
		d.cluster.ServicesChanged()
	}
}

// guestsChanged has the cluster told of this node's guests.
func (d *daemon) guestsChanged() {
	if d.cluster != nil {
		d.cluster.GuestsChanged()
	}
}
