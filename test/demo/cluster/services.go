//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// Service is a dedicated service that pods join.
type Service struct {
	// Name is the service's.
	Name string
	// JoinGlobal has its pods reach the rest of the overlay, and the rest them.
	JoinGlobal bool
}

// ServiceEntry is a dedicated service of a node in the nodes file.
type ServiceEntry struct {
	Name      string         `json:"name"`
	PublicKey string         `json:"publicKey"`
	Port      uint16         `json:"port"`
	Blocks    []netip.Prefix `json:"blocks"`
}

// Dial connects to the node's daemon, as an agent does. The caller closes the
// client.
func (n *Node) Dial(ctx context.Context) (*shim.Client, error) {
	client, err := shim.Dial(ctx, n.Socket(), shim.DialOptions{})
	if err != nil {
		return nil, fmt.Errorf("dial overlayd on %s: %w", n.Name, err)
	}
	return client, nil
}

// AddServicePod makes a sandbox and attaches it to a dedicated service, over the
// daemon's socket: a CNI runtime has no word for services. The other nodes learn
// of a new service by TellServices.
func (n *Node) AddServicePod(ctx context.Context, name string, service Service) (*Pod, error) {
	ns, err := netlab.NewNS(name)
	if err != nil {
		return nil, err
	}
	pod := &Pod{Name: name, Node: n, NS: ns, service: service}
	if err := pod.join(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("attach pod %s to service %s on %s: %w", name, service.Name, n.Name, err), ns.Close())
	}
	return pod, nil
}

func (p *Pod) join(ctx context.Context) error {
	return p.ask(ctx, func(client *shim.Client, handle *shim.LinuxNetns) error {
		started := time.Now()
		attached, err := client.Attach(ctx, &shim.AttachContainer{
			Handle: handle, Service: p.service.Name, Mode: shim.ModeDedicated, JoinGlobal: p.service.JoinGlobal,
		})
		p.Took = time.Since(started)
		if err != nil {
			return err
		}
		for _, prefix := range attached.Addresses {
			p.Addrs = append(p.Addrs, prefix.Addr())
		}
		return nil
	})
}

// ask gives fn a connection to the pod's node and the pod as the wire names it.
func (p *Pod) ask(ctx context.Context, fn func(*shim.Client, *shim.LinuxNetns) error) error {
	file, err := p.NS.Open()
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	client, err := p.Node.Dial(ctx)
	if err != nil {
		return err
	}
	err = fn(client, &shim.LinuxNetns{ContainerID: p.Name, IfName: PodInterface, Netns: p.NS.Path, File: file})
	return errors.Join(err, client.Close())
}

// TellServices tells every node which dedicated services the others host now, as
// Kubernetes would, and returns when all devices of services have the peers that
// follow. All daemons must run.
func (c *Cluster) TellServices(ctx context.Context) error {
	for _, node := range c.Nodes {
		status, err := node.Status(ctx)
		if err != nil {
			return err
		}
		node.services = servicesOf(status)
	}
	if err := c.writeNodes(); err != nil {
		return err
	}
	hosts := map[string]int{}
	for _, entry := range c.Entries() {
		for _, service := range entry.Services {
			hosts[service.Name]++
		}
	}
	return c.each(func(n *Node) error {
		return n.await(ctx, "have the peers of its services", func(s shim.StatusSnapshot) bool {
			for _, service := range s.DedicatedServices {
				if service.Problem != "" || int(service.PeerCount) != hosts[service.Service]-1 {
					return false
				}
			}
			return true
		})
	})
}

// servicesOf are a node's dedicated services as its status tells them.
func servicesOf(status shim.StatusSnapshot) []ServiceEntry {
	var entries []ServiceEntry
	for _, s := range status.DedicatedServices {
		entries = append(entries, ServiceEntry{Name: s.Service, PublicKey: s.PublicKey, Port: s.ListenPort, Blocks: s.Subnets})
	}
	return entries
}
