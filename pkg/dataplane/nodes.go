package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/forwarding"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// NodeSet is the whole overlay as one source tells of it.
type NodeSet struct {
	// Cluster holds the prefixes that all slices lie in. Without any, pods could
	// not be told from the rest of the world, so there must be one.
	Cluster []netip.Prefix
	// Nodes are ordered by age, this node among them: of two that claim the same
	// key or overlapping slices, the one that comes first keeps them.
	Nodes []Node
	// ListenPort is WireGuard's UDP port, where the source tells it; else Config's.
	// As the slices, it is taken from the first set.
	ListenPort int
	// NAT is how ways through NATs are looked for, likewise.
	NAT *NATConfig
	// ServiceCIDRs hold the virtual addresses of the cluster's services, which no
	// relay passes anything on to.
	ServiceCIDRs []netip.Prefix
	// Guests are those of the other nodes; what is said of this node's is not taken.
	Guests []NodeGuest
}

// SetNodes replaces the whole node set, this node included. The first set that
// gives this node a slice brings the data plane up and adopts what the kernel
// holds; later ones change peers and the cluster's prefixes, by difference
// only. A node with garbage costs only itself and shows in Problems and Status.
// This node's slices stay as they were first given while it runs; a change is
// reported until a restart without pods, for which Moved tells the time.
//
// Errors: ErrInvalid for a set without a cluster prefix, which changes nothing;
// ErrNotReady while the set gives this node no slice.
func (d *Dataplane) SetNodes(ctx context.Context, set NodeSet) error {
	if len(set.Cluster) == 0 {
		return fmt.Errorf("set nodes: no prefix of the cluster: %w", ErrInvalid)
	}
	unlock, err := d.setNodes.take(ctx)
	if err != nil {
		return fmt.Errorf("set nodes: %w", err)
	}
	defer unlock()
	own, waiting := d.ownSlices(set.Nodes)
	d.mu.Lock()
	d.nodes, d.waiting, d.cluster = slices.Clone(set.Nodes), waiting, slices.Clone(set.Cluster)
	d.serviceCIDRs, d.nodeGuests = slices.Clone(set.ServiceCIDRs), slices.Clone(set.Guests)
	running := d.parts
	d.moved = running != nil && hasOtherSlices(set.Nodes, d.cfg.Node, running.slices)
	d.mu.Unlock()
	peers := d.replan()
	if len(own) == 0 {
		return fmt.Errorf("node %s: %s: %w", d.cfg.Node, waiting, ErrNotReady)
	}
	if running == nil {
		err := d.bringUp(ctx, own, set, peers)
		if err != nil {
			d.mu.Lock()
			d.waiting = err.Error()
			d.mu.Unlock()
		}
		return err
	}
	return d.change(ctx, running, peers, slices.Clone(set.Cluster))
}

// replan makes peers of the node set and what AddPeer added. The caller holds
// d.setNodes.
func (d *Dataplane) replan() []wireguard.Peer {
	peers, problems := wireguard.Plan(d.clusterPlan(nil))
	d.mu.Lock()
	before := d.problems
	d.peers, d.problems = peers, problems
	d.mu.Unlock()
	d.logNew(problems, before)
	d.tellNames()
	return peers
}

// clusterPlan is what the peers of the cluster's device follow from, as if added
// were among what AddPeer added.
func (d *Dataplane) clusterPlan(added *AddedPeer) wireguard.PlanInput {
	d.mu.Lock()
	defer d.mu.Unlock()
	return wireguard.PlanInput{
		Self: d.cfg.Node, OwnKey: d.key.PublicKey(), Nodes: d.added.behind(d.nodes, "", added), Cluster: d.cluster,
		Taken: d.guests.keys(),
	}
}

// setPeers gives the cluster's device its peers and the guests.
func (d *Dataplane) setPeers(ctx context.Context, running *parts, peers []wireguard.Peer) error {
	if err := running.device.SetPeers(ctx, slices.Concat(running.traversal.steer(peers), d.guests.peers())); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	return nil
}

// clusterPrefixes are those of the node set.
func (d *Dataplane) clusterPrefixes() []netip.Prefix {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cluster
}

// ownEndpoint is where the node set says that this node is reached.
func (d *Dataplane) ownEndpoint() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := slices.IndexFunc(d.nodes, func(n Node) bool { return n.Name == d.cfg.Node })
	if at < 0 {
		return ""
	}
	return d.nodes[at].Endpoint
}

// hasOtherSlices tells whether nodes gives the node of that name slices, and not
// these.
func hasOtherSlices(nodes []Node, name string, these []netip.Prefix) bool {
	at := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == name })
	return at >= 0 && len(nodes[at].Slices) > 0 && !slices.Equal(nodes[at].Slices, these)
}

// Moved tells whether the node set gives this node other slices than it runs
// with, and no sandbox has an address of those any more: a process that starts
// now takes the new ones.
func (d *Dataplane) Moved() bool {
	d.mu.Lock()
	moved, running := d.moved, d.parts
	d.mu.Unlock()
	return moved && len(running.attacher.List()) == 0
}

// Problems are the nodes of the last set that were refused as peers.
func (d *Dataplane) Problems() []wireguard.Problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.problems)
}

// logNew logs the problems that were not there before: a set is given again for
// every change in it.
func (d *Dataplane) logNew(problems, before []wireguard.Problem) {
	known := make(map[string]bool, len(before))
	for _, problem := range before {
		known[problem.Error()] = true
	}
	for _, problem := range problems {
		if !known[problem.Error()] {
			d.log.Warn("node refused as a peer", "op", "nodes", "node", problem.Node, "err", problem.Err)
		}
	}
}

// change moves a running data plane to other peers and cluster prefixes. Sandboxes keep the MTU
// they were attached with.
func (d *Dataplane) change(ctx context.Context, running *parts, peers []wireguard.Peer, cluster []netip.Prefix) error {
	// What refuses comes first: where a new peer's packets may not leave in clear is
	// known before there are any. The firewall does that, or routes, as the system has
	// it, so that neither waits for the other.
	var errs []error
	if !slices.Equal(running.cluster, cluster) {
		errs = append(errs, running.device.SetCluster(ctx, cluster), d.applyFirewall(ctx, running, nil))
		if errors.Join(errs...) == nil {
			running.cluster = cluster
		}
	}
	if errors.Join(errs...) == nil {
		errs = append(errs, d.setPeers(ctx, running, peers))
	}
	d.followServices(ctx, running) // whose keys may have been taken back, whatever the cluster's device lacks
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return d.followMTU(ctx, running)
}

// ownSlices finds this node's slices, or the reason why it may not run with
// what the set says of it.
func (d *Dataplane) ownSlices(nodes []Node) (own []netip.Prefix, waiting string) {
	at := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == d.cfg.Node })
	switch {
	case at < 0:
		waiting = "the node set does not name this node"
	case len(nodes[at].Slices) == 0:
		waiting = "the node set gives this node no slice"
	case nodes[at].PublicKey != "" && nodes[at].PublicKey != d.PublicKey():
		waiting = fmt.Sprintf("the node set gives this node the public key %.8s..., but its own is %.8s...", nodes[at].PublicKey, d.PublicKey())
	}
	running := d.current()
	if running == nil {
		if waiting == "" {
			own = nodes[at].Slices
		}
		return own, waiting
	}
	if waiting == "" && !slices.Equal(running.slices, nodes[at].Slices) {
		waiting = fmt.Sprintf("the node set gives this node the slices %v, but it runs with %v: drain it and restart the daemon, which does so itself in Kubernetes", nodes[at].Slices, running.slices)
	}
	return running.slices, waiting
}

// bringUp makes or adopts everything on this node. What was made before an
// error stays for the next try, which adopts it.
func (d *Dataplane) bringUp(ctx context.Context, own []netip.Prefix, set NodeSet, peers []wireguard.Peer) (err error) {
	made := &parts{
		slices: own, port: cmp.Or(set.ListenPort, d.cfg.ListenPort), nat: set.natOr(d.cfg.NAT),
		services: newServices(d.cfg.StateDir), reservations: newReservations(d.cfg.StateDir),
	}
	if made.layouts, err = d.system.layouts(own); err != nil {
		return err
	}
	if made.addresses, err = newAddresses(made.layouts); err != nil {
		return err
	}
	if err := d.forward(made); err != nil {
		return err
	}
	var known []netip.Addr
	for _, peer := range peers {
		if peer.Endpoint.IsValid() {
			known = append(known, peer.Endpoint.Addr())
		}
	}
	mtu, err := d.overlayMTU(known, made.nat)
	if err != nil {
		return err
	}
	if made.traversal, err = d.newTraversal(made); err != nil {
		return err
	}
	if made.device, err = d.openDevice(ctx, made, mtu); err != nil {
		return err
	}
	if err := d.adopt(ctx, made); err != nil {
		return errors.Join(err, made.close())
	}
	d.mu.Lock()
	d.parts = made
	if made.traversal != nil {
		d.nat = made.traversal
	}
	d.mu.Unlock()
	d.tellAttachments(made)
	d.guestsChanged()
	if err := d.raiseServices(ctx, made); err != nil {
		d.log.Warn("not all services are up, will try again", "op", "bring up", "err", err)
	}
	d.listen(made)
	d.upOnce.Do(func() { close(d.up) })
	d.log.Info("data plane is up", "op", "bring up", "iface", made.device.Name(), "backend", made.device.Backend(), "mtu", mtu, "slices", own)
	return nil
}

// close gives back the files of what was made. What it put into the kernel stays.
func (p *parts) close() error {
	errs := []error{p.services.lower()}
	if p.attacher != nil {
		errs = append(errs, p.attacher.Close())
	}
	if err := p.device.Close(); err != nil {
		errs = append(errs, fmt.Errorf("close WireGuard device: %w", err))
	}
	return errors.Join(errs...)
}

func (d *Dataplane) openDevice(ctx context.Context, made *parts, mtu int) (*wireguard.Device, error) {
	device, err := wireguard.Open(ctx, d.deviceConfig(made, mtu))
	if err != nil {
		return nil, fmt.Errorf("open WireGuard device: %w", err)
	}
	return device, nil
}

// deviceConfig is that of the cluster's device.
func (d *Dataplane) deviceConfig(made *parts, mtu int) wireguard.Config {
	return wireguard.Config{
		Name: deviceName(), Backend: d.cfg.Backend, PrivateKey: d.key, ListenPort: made.port,
		MTU: mtu, Addresses: made.deviceAddresses(), Refuse: made.slices, Cluster: d.clusterPrefixes(), Log: d.log,
		OnRebuilt: func() { d.afterRebuild(made) }, OnSTUN: made.traversal.onSTUN(),
	}
}

// deviceAddresses are those of the cluster's device.
func (p *parts) deviceAddresses() []netip.Addr {
	var addrs []netip.Addr
	for _, one := range p.layouts {
		addrs = append(addrs, one.device)
	}
	return addrs
}

// forward has the host pass packets on between its interfaces: as far as these are
// there, between segments and the WireGuard device.
func (d *Dataplane) forward(made *parts) error {
	config := forwarding.Config{Sysctls: d.cfg.Sysctls, StateDir: d.cfg.StateDir}
	if made.attacher != nil {
		for _, one := range made.layouts {
			config.Addresses = append(config.Addresses, one.node)
		}
	}
	return forwarding.Enable(config)
}

// afterRebuild puts back the pod routes, which the kernel drops together with
// the device that held their source address.
func (d *Dataplane) afterRebuild(parts *parts) {
	ctx, cancel := context.WithTimeout(context.Background(), resyncInterval)
	defer cancel()
	if err := parts.attacher.Reconcile(ctx); err != nil {
		d.log.Error("repair pod routes after the WireGuard device was rebuilt", "op", "rebuild", "err", err)
	}
}
