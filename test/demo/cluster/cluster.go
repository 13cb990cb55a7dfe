//go:build linux

// Package cluster runs real overlayd daemons and attaches real pods on
// machines that are network namespaces, for the demo and the benchmarks.
//
// It owns the fabric, the daemons' processes and files, and the sandboxes; it
// must run inside test/netlab, which removes all of that with the process. It
// uses only what a user of the project has: the two binaries, their
// configuration, and libcni. Methods of different nodes are safe for
// concurrent use; a node's daemon is started and stopped by one goroutine at a
// time.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// ListenPort is WireGuard's UDP port on every node.
const ListenPort = 51820

// Patience bounds each wait for a daemon. It is long because the lab may be an
// emulated machine.
const Patience = 5 * time.Minute

// Config says what to build.
type Config struct {
	// Name begins the names of the lab's namespaces.
	Name string
	// NodeNames are the nodes, which are the names of their namespaces too.
	NodeNames []string
	// Binaries is the folder of overlayd and zlayer-cni.
	Binaries string
	// Dir is an existing folder for state, sockets, logs and configuration.
	Dir string
	// ClusterCIDRs hold the pods; every node's slice is carved from them.
	ClusterCIDRs []netip.Prefix
	// Backend is overlayd's choice of WireGuard: auto, kernel or userspace.
	Backend string
	// Slices are those of the nodes that shall not carve theirs, by name.
	Slices map[string][]netip.Prefix
	// Kubeconfig, if given, has the daemons take their nodes from an API server
	// instead of the nodes file.
	Kubeconfig string
	// Strangers are further nodes, which exist in the nodes file alone.
	Strangers []Entry
	// Machines are those of the nodes that are not on the fabric, by name.
	Machines map[string]Machine
	// NAT is what daemons are told of ways through NATs, by name.
	NAT map[string]NAT
}

// Cluster is a number of nodes on one underlay.
type Cluster struct {
	// Fabric is the underlay.
	Fabric *netlab.Fabric
	// Nodes are in the order of Config.NodeNames.
	Nodes []*Node

	config Config
}

// Underlay is the prefix of the nodes' own addresses.
func Underlay() netip.Prefix { return netip.MustParsePrefix("172.31.0.0/24") }

// New makes the underlay and the nodes' files. No daemon runs yet.
func New(config Config) (*Cluster, error) {
	fabric, err := netlab.NewFabric(config.Name)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Fabric: fabric, config: config}
	addr := Underlay().Addr()
	for _, name := range config.NodeNames {
		addr = addr.Next()
		machine, err := c.machine(name, addr)
		if err != nil {
			return nil, errors.Join(err, fabric.Close())
		}
		node, err := c.newNode(name, machine)
		if err != nil {
			return nil, errors.Join(err, fabric.Close())
		}
		c.Nodes = append(c.Nodes, node)
	}
	if err := c.writeNodes(); err != nil {
		return nil, errors.Join(err, fabric.Close())
	}
	return c, nil
}

// machine returns the node's own, or plugs a new one into the fabric.
func (c *Cluster) machine(name string, addr netip.Addr) (Machine, error) {
	if machine, own := c.config.Machines[name]; own {
		return machine, nil
	}
	host, err := c.Fabric.Host(name, netip.PrefixFrom(addr, Underlay().Bits()))
	return Machine{NS: host, Addr: addr}, err
}

func (c *Cluster) newNode(name string, machine Machine) (*Node, error) {
	dir := filepath.Join(c.config.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	node := &Node{Name: name, NS: machine.NS, Underlay: machine.Addr, dir: dir, binaries: c.config.Binaries}
	return node, node.writeConfig(c.config)
}

// Start starts all daemons, tells them each other's keys as soon as they have
// made them, and returns when every node is ready and knows all of its peers.
func (c *Cluster) Start(ctx context.Context) error {
	if err := c.each(func(n *Node) error { return n.Start(ctx) }); err != nil {
		return err
	}
	err := c.each(func(n *Node) error {
		status, err := n.awaitKey(ctx)
		n.PublicKey = status.PublicKey
		return err
	})
	if err != nil {
		return err
	}
	if err := c.writeNodes(); err != nil {
		return err
	}
	peers := len(c.Nodes) + len(c.config.Strangers) - 1
	return c.each(func(n *Node) error { return n.AwaitPeers(ctx, peers) })
}

// Replug gives a node a new network namespace in place of its own, as a reboot
// does: links, routes and firewall are gone, files stay. No daemon may run.
func (c *Cluster) Replug(ctx context.Context, n *Node) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	if err := n.NS.Close(); err != nil {
		return err
	}
	for {
		// The kernel takes a moment to remove the old namespace's link to the fabric.
		host, err := c.Fabric.Host(n.Name, netip.PrefixFrom(n.Underlay, Underlay().Bits()))
		if err == nil {
			n.NS = host
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("replug %s: %w: %w", n.Name, ctx.Err(), err)
		case <-time.After(pollInterval):
		}
	}
}

// Stop ends all daemons as a service manager would.
func (c *Cluster) Stop(ctx context.Context) error {
	return c.each(func(n *Node) error { return n.Stop(ctx) })
}

// Close kills what still runs and removes the underlay and the nodes' names.
func (c *Cluster) Close() error {
	err := c.each(func(n *Node) error { return n.Kill() })
	return errors.Join(err, c.Fabric.Close())
}

// each calls fn for all nodes at once and returns the first error.
func (c *Cluster) each(fn func(*Node) error) error {
	var group errgroup.Group
	for _, node := range c.Nodes {
		group.Go(func() error { return fn(node) })
	}
	return group.Wait()
}
