//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pion/turn/v5"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/natlab"
)

const (
	natSTUNPort  = 3478
	natRelayPort = 3479
	natRelay     = "nat-relay"
	// natPatience bounds how long nodes may look for their ways. A better one than
	// a relay is looked for once a minute.
	natPatience = 3 * time.Minute
)

// natPair is two nodes behind a router each.
type natPair struct {
	name    string
	kind    natlab.Kind
	want    shim.ConnectionType
	routers [2]*natlab.Router
	nodes   [2]*cluster.Node
}

func (p *natPair) member(i int) string { return fmt.Sprintf("nat-%s-%c", p.name, 'a'+i) }

// natSites are nodes behind NATs: a pair that only a relay can connect, a pair
// that can be connected without, and the relay. Beside each node, behind the same
// router, are machines with ends of bare tunnels; forwarders are on the relay's
// machine.
type natSites struct {
	internet        *natlab.Internet
	stun            []*turn.Server
	stunAddr        netip.AddrPort // of one of them
	relayed, direct *natPair
	relayHost       *natlab.Host
	relay           *cluster.Node
	cluster         *cluster.Cluster
	bare            []*bareTunnel // by one forwarder, by two, and by none
	mtu             int
	kernel          bool
}

func (b *bench) newNATSites(ctx context.Context) (_ *natSites, err error) {
	internet, err := natlab.New("nat")
	if err != nil {
		return nil, err
	}
	s := &natSites{
		internet: internet,
		relayed:  &natPair{name: "symmetric", kind: natlab.Symmetric, want: shim.ConnectionRelayed},
		direct:   &natPair{name: "restricted", kind: natlab.PortRestricted, want: shim.ConnectionHolePunched},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	nat, err := s.serveSTUN()
	if err != nil {
		return nil, err
	}
	config := b.clusterConfig(clusterSpec{name: "nat"})
	config.Machines, config.NAT = map[string]cluster.Machine{}, map[string]cluster.NAT{}
	if err := s.plug(&config, nat); err != nil {
		return nil, err
	}
	if s.cluster, err = cluster.New(config); err != nil {
		return nil, err
	}
	n := s.cluster.Nodes
	s.relay, s.relayed.nodes, s.direct.nodes = n[0], [2]*cluster.Node{n[1], n[2]}, [2]*cluster.Node{n[3], n[4]}
	if err := s.meet(ctx); err != nil {
		return nil, err
	}
	return s, s.startBare(ctx)
}

// serveSTUN adds two servers, by which nodes find out what kind of NAT theirs is.
func (s *natSites) serveSTUN() (cluster.NAT, error) {
	var nat cluster.NAT
	for i := range 2 {
		host, err := s.internet.Server(fmt.Sprintf("nat-stun-%d", i+1))
		if err != nil {
			return nat, err
		}
		addr := netip.AddrPortFrom(host.IPv4, natSTUNPort)
		var conn *net.UDPConn
		err = host.Do(func() (err error) {
			conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
			return err
		})
		if err != nil {
			return nat, err
		}
		server, err := turn.NewServer(turn.ServerConfig{PacketConnConfigs: []turn.PacketConnConfig{{PacketConn: conn}}})
		if err != nil {
			return nat, errors.Join(err, conn.Close())
		}
		s.stun, s.stunAddr = append(s.stun, server), addr
		nat.STUNServers = append(nat.STUNServers, addr.String())
	}
	return nat, nil
}

// plug makes the nodes' machines: the relay's, and those of both pairs.
func (s *natSites) plug(config *cluster.Config, nat cluster.NAT) error {
	add := func(name string, host *natlab.Host, nat cluster.NAT) {
		config.NodeNames = append(config.NodeNames, name)
		config.Machines[name], config.NAT[name] = cluster.Machine{NS: host.NS, Addr: host.IPv4}, nat
	}
	var err error
	if s.relayHost, err = s.internet.Server(natRelay); err != nil {
		return err
	}
	relaying := nat
	relaying.Relay = &cluster.Relay{ListenPort: natRelayPort, External: netip.AddrPortFrom(s.relayHost.IPv4, natRelayPort)}
	add(natRelay, s.relayHost, relaying)
	for _, pair := range []*natPair{s.relayed, s.direct} {
		for i := range pair.routers {
			name := pair.member(i)
			if pair.routers[i], err = s.internet.Router(name+"-router", natlab.Config{IPv4: pair.kind}); err != nil {
				return err
			}
			host, err := pair.routers[i].Host(name)
			if err != nil {
				return err
			}
			add(name, host, nat)
		}
	}
	return nil
}

// meet starts the daemons and tells them of each other until each pair has the
// way that is wanted.
func (s *natSites) meet(ctx context.Context) error {
	if err := s.cluster.Start(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, natPatience)
	defer cancel()
	for {
		known, err := s.cluster.TellCandidates(ctx)
		if err == nil {
			err = s.elsewhere(known)
		}
		if err == nil {
			break
		}
		if late := pause(ctx, 250*time.Millisecond); late != nil {
			return fmt.Errorf("wait for ways through NATs: %w: %w", late, err)
		}
	}
	status, err := s.relay.Status(ctx)
	s.mtu, s.kernel = status.MTU, status.Backend == "kernel"
	return err
}

// elsewhere says which nodes do not have the way to each other that is wanted.
func (s *natSites) elsewhere(known map[string]shim.NATStatus) error {
	var errs []error
	for _, pair := range []*natPair{s.relayed, s.direct} {
		for i := range pair.nodes {
			from, to := pair.member(i), pair.member(1-i)
			if way := wayTo(known[from], to); way.Connection != pair.want {
				errs = append(errs, fmt.Errorf("%s reaches %s by a way that is %q, want %q", from, to, way.Connection, pair.want))
			}
		}
	}
	return errors.Join(errs...)
}

func wayTo(known shim.NATStatus, node string) shim.NATPeer {
	for _, peer := range known.Peers {
		if peer.Node == node {
			return peer
		}
	}
	return shim.NATPeer{}
}

// known asks the daemons of both pairs what ways they have.
func (s *natSites) known(ctx context.Context) (map[string]shim.NATStatus, error) {
	known := map[string]shim.NATStatus{}
	for _, node := range s.cluster.Nodes {
		status, err := node.NATStatus(ctx)
		if err != nil {
			return nil, err
		}
		known[node.Name] = status
	}
	return known, nil
}

// startBare runs the bare tunnels.
func (s *natSites) startBare(ctx context.Context) error {
	for i, tunnel := range []struct {
		pair *natPair
		name string
	}{
		{s.relayed, "bare tunnel, by a UDP forwarder"},
		{s.relayed, "bare tunnel, by two UDP forwarders"},
		{s.direct, "bare tunnel, same routers"},
	} {
		made, err := newBareTunnel(tunnel.pair, tunnel.name, byte(i+1))
		if err != nil {
			return err
		}
		s.bare = append(s.bare, made)
	}
	args := tunnelArgs{Kernel: s.kernel, MTU: s.mtu}
	for i, endpoints := range []func(context.Context, *bareTunnel) ([2]netip.AddrPort, error){s.byForwarder, s.byForwarders, s.byMappings} {
		ends, err := endpoints(ctx, s.bare[i])
		if err != nil {
			return err
		}
		if err := s.bare[i].start(ctx, ends, args); err != nil {
			return err
		}
	}
	return nil
}

// byForwarder has both ends send to a forwarder on the relay's machine.
func (s *natSites) byForwarder(ctx context.Context, t *bareTunnel) (ports [2]netip.AddrPort, err error) {
	forwarder, err := startRole(ctx, s.relayHost.NS, "forwarder", forwarderArgs{Addr: s.relayHost.IPv4}, &ports)
	if err == nil {
		t.forwarders = append(t.forwarders, forwarder)
	}
	return ports, err
}

// byForwarders has the first end send to one on its own machine, as a relay's
// client is, which sends to the other.
func (s *natSites) byForwarders(ctx context.Context, t *bareTunnel) ([2]netip.AddrPort, error) {
	ports, err := s.byForwarder(ctx, t)
	if err != nil {
		return ports, err
	}
	args := forwarderArgs{Addr: netip.MustParseAddr("127.0.0.1"), Target: ports[0]}
	var own [2]netip.AddrPort
	forwarder, err := startRole(ctx, t.ends[0].host.NS, "forwarder", args, &own)
	if err == nil {
		t.forwarders = append([]*actor{forwarder}, t.forwarders...)
	}
	return [2]netip.AddrPort{own[0], ports[1]}, err
}

// byMappings has the ends send to what their routers make of each other's port.
func (s *natSites) byMappings(_ context.Context, t *bareTunnel) (endpoints [2]netip.AddrPort, err error) {
	for i, end := range t.ends {
		if endpoints[1-i], err = end.mapping(s.stunAddr); err != nil {
			return endpoints, err
		}
	}
	return endpoints, nil
}

// close ends what was started.
func (s *natSites) close(ctx context.Context) error {
	var errs []error
	for _, tunnel := range s.bare {
		errs = append(errs, tunnel.close())
	}
	if s.cluster != nil {
		errs = append(errs, s.cluster.Stop(context.WithoutCancel(ctx)), s.cluster.Close())
	}
	for _, server := range s.stun {
		errs = append(errs, server.Close())
	}
	return errors.Join(append(errs, s.internet.Close())...)
}
