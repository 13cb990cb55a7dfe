package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// LocalService is what this node tells the others of a dedicated service.
type LocalService = wireguard.NodeService

// LocalServices are the dedicated services of this node, in the order of their
// names: what other nodes need to know to reach them. Config.OnServices tells
// when they change.
func (d *Dataplane) LocalServices() []LocalService {
	parts := d.current()
	if parts == nil {
		return nil
	}
	var local []LocalService
	for _, name := range parts.services.names() {
		parts.services.change(func() {
			if s := parts.services.all[name]; s != nil && s.device != nil {
				local = append(local, LocalService{
					Name: name, PublicKey: s.key.PublicKey().String(),
					Port: s.record.port(parts.port), Blocks: slices.Clone(s.record.Blocks),
				})
			}
		})
	}
	return local
}

// servicesChanged tells that LocalServices may return something else.
func (d *Dataplane) servicesChanged() {
	if d.cfg.OnServices != nil {
		d.cfg.OnServices()
	}
}

// followServices gives the devices of all services the peers that follow from
// the node set now. One that fails costs only itself, and is tried again.
func (d *Dataplane) followServices(ctx context.Context, parts *parts) {
	err := d.eachService(ctx, parts.services, func(s *service) error {
		if s.device == nil {
			return nil
		}
		err := d.setServicePeers(ctx, parts, s)
		parts.services.change(func() { s.fault = err })
		return err
	})
	if err != nil {
		d.log.Warn("peers of a service not set, will try again", "op", "nodes", "err", err)
	}
}

// setServicePeers plans the peers of a service and gives them to firewall and
// device. One of them that fails keeps nothing from the other: a peer that is gone
// is locked out by either.
func (d *Dataplane) setServicePeers(ctx context.Context, parts *parts, s *service) error {
	peers, problems := d.planServicePeers(s)
	same := slices.EqualFunc(peers, s.peers, func(a, b wireguard.Peer) bool { return slices.Equal(a.AllowedIPs, b.AllowedIPs) })
	parts.services.change(func() { s.peers, s.problems = peers, problems })
	var errs []error
	if !same {
		errs = append(errs, d.applyFirewall(ctx, parts, nil)) // raise applies it again after an error
	}
	if err := s.device.SetPeers(ctx, peers); err != nil {
		errs = append(errs, fmt.Errorf("set peers: %w", err))
	}
	return errors.Join(errs...)
}

// planServices plans the peers of services that are not up yet, so that the
// firewall goes on to let through what an earlier run let through.
func (d *Dataplane) planServices(parts *parts) {
	for _, name := range parts.services.names() {
		if s := parts.services.get(name); s.record.Mode == Dedicated {
			peers, problems := d.planServicePeers(s)
			parts.services.change(func() { s.peers, s.problems = peers, problems })
		}
	}
}

// planServicePeers returns the peers of a service and what was refused.
func (d *Dataplane) planServicePeers(s *service) ([]wireguard.Peer, []wireguard.Problem) {
	plan, problems := d.servicePlan(s, nil)
	peers, refused := wireguard.Plan(plan)
	problems = append(problems, refused...)
	for i := range problems {
		problems[i].Err = fmt.Errorf("service %s: %w", shorten(s.record.Name), problems[i].Err)
	}
	return peers, problems
}

// servicePlan is what a service's peers follow from: the nodes that host it and
// are peers themselves, and what AddPeer added, as if added were among that. A
// node's blocks must lie in its slices, or it is a problem.
func (d *Dataplane) servicePlan(s *service, added *AddedPeer) (wireguard.PlanInput, []wireguard.Problem) {
	d.mu.Lock()
	nodes, cluster := d.nodes, d.cluster
	slicesOf := make(map[string][]netip.Prefix, len(d.peers))
	for _, peer := range d.peers {
		slicesOf[peer.Node] = peer.AllowedIPs
	}
	d.mu.Unlock()
	hosts := []Node{{Name: d.cfg.Node, Slices: s.record.Blocks}} // these are nobody else's
	var problems []wireguard.Problem
	for _, node := range nodes {
		at := slices.IndexFunc(node.Services, func(one wireguard.NodeService) bool { return one.Name == s.record.Name })
		own, isPeer := slicesOf[node.Name]
		if at < 0 || !isPeer {
			continue
		}
		host, err := hostOf(node, node.Services[at], own)
		if err != nil {
			problems = append(problems, wireguard.Problem{Node: node.Name, Err: err})
			continue
		}
		hosts = append(hosts, host)
	}
	return wireguard.PlanInput{
		Self: d.cfg.Node, OwnKey: s.key.PublicKey(), Cluster: cluster,
		Nodes: d.added.behind(hosts, s.record.Name, added),
	}, problems
}

// hostOf is a node as the peer that its service is.
func hostOf(node Node, service wireguard.NodeService, own []netip.Prefix) (Node, error) {
	host := Node{Name: node.Name, PublicKey: service.PublicKey, Slices: service.Blocks, Keepalive: node.Keepalive}
	for _, block := range service.Blocks {
		if !slices.ContainsFunc(own, func(slice netip.Prefix) bool { return contains(slice, block) }) {
			return host, fmt.Errorf("its block %s is outside its slices %v", block, own)
		}
	}
	if service.Port < 1 || service.Port > 65535 {
		return host, fmt.Errorf("its UDP port %d is not between 1 and 65535", service.Port)
	}
	if node.Endpoint == "" {
		return host, nil // it has to begin
	}
	name, _, err := net.SplitHostPort(node.Endpoint)
	if err != nil {
		return host, fmt.Errorf("its endpoint: %w", err)
	}
	host.Endpoint = net.JoinHostPort(name, strconv.Itoa(service.Port))
	return host, nil
}

// contains tells whether inner is a part of outer.
func contains(outer, inner netip.Prefix) bool {
	return outer.Contains(inner.Addr()) && outer.Bits() <= inner.Bits()
}

// ServiceProblems are what was refused as a peer of a service of this node.
func (d *Dataplane) ServiceProblems() []wireguard.Problem {
	parts := d.current()
	if parts == nil {
		return nil
	}
	parts.services.mu.Lock()
	defer parts.services.mu.Unlock()
	var problems []wireguard.Problem
	for _, s := range parts.services.all {
		problems = append(problems, s.problems...)
	}
	return problems
}
