package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
)

// setPass makes a node set of what the mirrors show and has it applied.
func (k *Kube) setPass(ctx context.Context) error {
	if !k.nodes.Synced() || !k.own.Synced() {
		return nil // Fault tells why, and the mirrors wake us
	}
	set, problems, reading := k.makeSet(ctx)
	err := k.applySet(ctx, set, problems)
	if err == nil {
		err = k.save(set)
	}
	// What could not be read stays out, and does not keep the rest waiting.
	err = errors.Join(err, reading)
	k.mu.Lock()
	k.setErr, k.current = err, err == nil
	k.mu.Unlock()
	wake(k.selfChanged)
	return err
}

// makeSet turns the nodes into a set, reads what is missing for it, and lists
// the nodes whose annotations keep them out. The set stands with the error.
func (k *Kube) makeSet(ctx context.Context) (savedSet, []problem, error) {
	members := k.nodes.List()
	k.set.book.keep(members)
	sortMembers(members, k.cfg.Node, k.set.held)
	var set savedSet
	var problems []problem
	own, found := k.own.Get(k.cfg.Node)
	if !found {
		return set, nil, fmt.Errorf("no Node %s at the API server yet", k.cfg.Node)
	}
	if own.fault != nil {
		return set, nil, fmt.Errorf("node %s: %w", k.cfg.Node, own.fault)
	}
	if len(own.slices) == 0 {
		return set, nil, fmt.Errorf("node %s has no podCIDR yet (does the cluster allocate any?)", k.cfg.Node)
	}
	err := errors.Join(k.readKubeadm(ctx), k.readSlices(ctx, members))
	set.UID = own.uid
	for _, m := range members {
		node := savedNode{
			Name: m.name, UID: m.uid, PublicKey: m.publicKey, Endpoint: m.endpoint,
			Keepalive: m.keepalive, Slices: k.set.book[m.uid].slices, Services: m.services, Candidates: m.candidates, Relay: m.relay, Guests: m.guests,
		}
		if m.name != k.cfg.Node {
			problems = append(problems, m.partProblems()...)
		}
		switch {
		case m.name == k.cfg.Node:
			// What the data plane needs of this node, whatever its Node says as yet.
			node = savedNode{Name: m.name, UID: m.uid, PublicKey: k.cfg.PublicKey, Endpoint: k.ownEndpoint(own), Slices: own.slices}
		case m.fault != nil:
			problems = append(problems, problemOf(m.name, m.uid, m.fault))
			continue
		case m.publicKey == "" || len(node.Slices) == 0:
			continue // it is only just joining
		case node.Keepalive == 0:
			node.Keepalive = own.keepalive
		}
		set.Nodes = append(set.Nodes, node)
	}
	set.Cluster, set.Services = k.clusterPrefixes(own.slices, set.nodes()), k.serviceCIDRs()
	return set, problems, err
}

// applySet hands a set over unless the data plane has it, and notes who holds
// which key from now on.
func (k *Kube) applySet(ctx context.Context, saved savedSet, problems []problem) error {
	if len(saved.Nodes) == 0 {
		return nil // makeSet's error says why
	}
	set := dataplane.NodeSet{Cluster: saved.Cluster, ServiceCIDRs: saved.Services, Nodes: saved.nodes(), Guests: saved.guests()}
	if k.set.last == nil || !equalSets(*k.set.last, set) {
		applied, err := k.cfg.Apply(ctx, set)
		if err != nil {
			return fmt.Errorf("apply node set: %w", err)
		}
		k.set.last = &set
		k.noteApplied(saved, applied)
	}
	k.mu.Lock()
	k.problems = append(problems, k.set.refused...)
	k.mu.Unlock()
	return nil
}

func (k *Kube) noteApplied(saved savedSet, applied Applied) {
	refused := map[string]error{}
	for _, p := range applied.Problems {
		refused[p.Node] = p.Err
	}
	k.set.held, k.set.refused = map[types.UID]string{}, nil
	for _, node := range saved.Nodes {
		if err, out := refused[node.Name]; out {
			k.set.refused = append(k.set.refused, problemOf(node.Name, node.UID, err))
		} else {
			k.set.held[node.UID] = node.PublicKey
		}
	}
	k.mu.Lock()
	k.applied, k.mtu = true, applied.MTU
	k.mu.Unlock()
	k.log.Info("node set applied", "op", "kube", "nodes", len(saved.Nodes), "refused", len(applied.Problems))
}

// equalSets compares what Apply would do with two sets.
func equalSets(a, b dataplane.NodeSet) bool {
	return slices.Equal(a.Cluster, b.Cluster) && slices.Equal(a.ServiceCIDRs, b.ServiceCIDRs) && slices.EqualFunc(a.Nodes, b.Nodes, dataplane.Node.Equal) &&
		slices.EqualFunc(a.Guests, b.Guests, equalGuests)
}

// firstAnswer is how long a start waits for the API server before it takes the
// set of the last run for true.
const firstAnswer = time.Second / 2

// restore applies the set that lies on disk, and hands over the pods there, unless the API server says at once
// that this node's Node is another than it was: then its slices may be, too.
func (k *Kube) restore(ctx context.Context) {
	saved, err := k.load()
	if err != nil {
		k.log.Warn("last node set not used", "op", "kube", "err", err)
	}
	if err != nil || saved == nil {
		return
	}
	for _, node := range saved.Nodes {
		k.set.book[node.UID] = bookEntry{slices: node.Slices}
	}
	limit := time.After(firstAnswer)
	for waiting := true; waiting && !k.own.Synced() && k.own.Fault() == nil; {
		select {
		case <-ctx.Done():
			return
		case <-limit:
			waiting = false
		case <-k.setChanged:
		}
	}
	wake(k.setChanged)
	if own, found := k.own.Get(k.cfg.Node); k.own.Synced() && (!found || own.uid != saved.UID) {
		k.log.Info("last node set not used, the Node is another", "op", "kube", "node", k.cfg.Node)
		return
	}
	if len(k.cfg.Cluster) > 0 && !slices.Equal(saved.Cluster, k.cfg.Cluster) {
		saved.Cluster = k.cfg.Cluster
	}
	for i := range saved.Nodes {
		if saved.Nodes[i].Name == k.cfg.Node {
			saved.Nodes[i].PublicKey = k.cfg.PublicKey
		}
	}
	bounded, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	if err := k.applySet(bounded, *saved, nil); err != nil {
		k.log.Warn("last node set not applied, will try the next", "op", "kube", "err", err)
		return
	}
	k.log.Info("running with the node set of the last run until the API server answers", "op", "kube", "nodes", len(saved.Nodes))
	k.restorePods(saved.UID) // whose nodes are known now
}
