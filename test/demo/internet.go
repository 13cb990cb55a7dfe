//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/turn/v5"
	"golang.org/x/sync/errgroup"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/natlab"
)

const (
	internetName = "internet"
	// stunPort is the STUN servers', and the relay's on its own machine.
	stunPort = 3478
	// followInterval is the pause between two looks at what the daemons tell.
	followInterval = 200 * time.Millisecond
)

// site is a node and what stands between it and the internet.
type site struct {
	node string
	kind natlab.Kind // Routed: nothing does
}

// sites are all nodes. The one that is reached by all relays for the others.
func sites() []site {
	return []site{
		{"home-a", natlab.PortRestricted}, {"home-b", natlab.PortRestricted},
		{"office-a", natlab.Symmetric}, {"office-b", natlab.Symmetric}, {"public", natlab.Routed},
	}
}

// routerOf names a node's router.
func routerOf(node string) string { return node + "-router" }

// internet is what the demo behind NATs has besides its nodes and pods.
type internet struct {
	*natlab.Internet
	machines map[string]cluster.Machine // by node
	nats     map[string]cluster.NAT     // by node
	servers  []*turn.Server
	stun     []string // where they are

	following errgroup.Group
	stop      context.CancelFunc // ends following; nil before it

	mu    sync.Mutex // guards known
	known map[string]shim.NATStatus
}

// newInternet makes machines for all nodes, and STUN servers.
func newInternet() (*internet, error) {
	made, err := natlab.New(internetName)
	if err != nil {
		return nil, err
	}
	i := &internet{Internet: made, machines: map[string]cluster.Machine{}, nats: map[string]cluster.NAT{}}
	for _, name := range []string{"stun-1", "stun-2"} {
		if err := i.serveSTUN(name); err != nil {
			return nil, errors.Join(err, i.close())
		}
	}
	for _, site := range sites() {
		if err := i.plug(site); err != nil {
			return nil, errors.Join(err, i.close())
		}
	}
	return i, nil
}

// serveSTUN adds a server that tells who asks what address it was asked from.
func (i *internet) serveSTUN(name string) error {
	host, err := i.Server(name)
	if err != nil {
		return err
	}
	addr := netip.AddrPortFrom(host.IPv4, stunPort)
	var conn *net.UDPConn
	err = host.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	})
	if err != nil {
		return fmt.Errorf("serve STUN on %s: %w", name, err)
	}
	server, err := turn.NewServer(turn.ServerConfig{PacketConnConfigs: []turn.PacketConnConfig{{PacketConn: conn}}})
	if err != nil {
		return errors.Join(fmt.Errorf("serve STUN on %s: %w", name, err), conn.Close())
	}
	i.servers, i.stun = append(i.servers, server), append(i.stun, addr.String())
	return nil
}

// plug makes a node's machine, with its router if it has one, and decides what
// its daemon is told of NATs.
func (i *internet) plug(s site) error {
	add, nat := i.Server, cluster.NAT{STUNServers: i.stun}
	if s.kind != natlab.Routed {
		router, err := i.Router(routerOf(s.node), natlab.Config{IPv4: s.kind})
		if err != nil {
			return err
		}
		add = router.Host
	}
	host, err := add(s.node)
	if err != nil {
		return err
	}
	if s.kind == natlab.Routed {
		nat.Relay = &cluster.Relay{ListenPort: stunPort, External: netip.AddrPortFrom(host.IPv4, stunPort)}
	}
	i.machines[s.node], i.nats[s.node] = cluster.Machine{NS: host.NS, Addr: host.IPv4}, nat
	return nil
}

// follow plays the control plane: it passes on what daemons tell of candidates,
// until close.
func (i *internet) follow(c *cluster.Cluster) {
	ctx, cancel := context.WithCancel(context.Background())
	i.stop = cancel
	i.following.Go(func() error {
		ticker := time.NewTicker(followInterval)
		defer ticker.Stop()
		for {
			known, err := c.TellCandidates(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				return fmt.Errorf("tell nodes of each other's candidates: %w", err)
			}
			i.mu.Lock()
			i.known = known
			i.mu.Unlock()
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
		}
	})
}

// status is what a node's daemon told last.
func (i *internet) status(node string) shim.NATStatus {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.known[node]
}

// unfollow ends follow; the daemons may end then.
func (i *internet) unfollow() error {
	if i.stop == nil {
		return nil
	}
	i.stop()
	return i.following.Wait()
}

// close removes all of it. The nodes' daemons must have ended.
func (i *internet) close() error {
	var errs []error
	for _, server := range i.servers {
		errs = append(errs, server.Close())
	}
	return errors.Join(append(errs, i.Close())...)
}
