//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// PodInterface is the interface that every pod gets.
const PodInterface = "eth0"

// Pod is a sandbox that was attached by a CNI runtime's own library, or to a
// service over the daemon's socket.
type Pod struct {
	// Name is the pod's, its container ID, and the name of its namespace.
	Name string
	// Node runs it.
	Node *Node
	// NS is its network namespace.
	NS *netlab.NS
	// Addrs are its addresses as the plugin reported them.
	Addrs []netip.Addr
	// Took is the time that ADD took, from libcni's call to its return; of a pod of
	// a service that of the call over the socket.
	Took time.Duration

	service Service // without a name: the pod was attached by the plugin
}

// AddPod makes a sandbox and attaches it.
func (n *Node) AddPod(ctx context.Context, name string) (*Pod, error) {
	ns, err := netlab.NewNS(name)
	if err != nil {
		return nil, err
	}
	pod := &Pod{Name: name, Node: n, NS: ns}
	if err := pod.attach(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("attach pod %s on %s: %w", name, n.Name, err), ns.Close())
	}
	return pod, nil
}

func (p *Pod) attach(ctx context.Context) error {
	runtime, list, err := p.Node.runtime()
	if err != nil {
		return err
	}
	started := time.Now()
	answer, err := runtime.AddNetworkList(ctx, list, p.runtimeConf())
	p.Took = time.Since(started)
	if err != nil {
		return err
	}
	result, err := types100.GetResult(answer)
	if err != nil {
		return err
	}
	for _, ip := range result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return fmt.Errorf("the plugin answered an address of %d bytes", len(ip.Address.IP))
		}
		p.Addrs = append(p.Addrs, addr.Unmap())
	}
	return nil
}

// Check asks, by the way that it was attached, whether the pod is still as it was
// attached.
func (p *Pod) Check(ctx context.Context) error {
	if p.service.Name != "" {
		return p.ask(ctx, func(client *shim.Client, handle *shim.LinuxNetns) error {
			_, err := client.Check(ctx, handle)
			return err
		})
	}
	runtime, list, err := p.Node.runtime()
	if err != nil {
		return err
	}
	return runtime.CheckNetworkList(ctx, list, p.runtimeConf())
}

// Delete detaches the pod and removes its sandbox.
func (p *Pod) Delete(ctx context.Context) error {
	runtime, list, err := p.Node.runtime()
	if err != nil {
		return err
	}
	if err := runtime.DelNetworkList(ctx, list, p.runtimeConf()); err != nil {
		return fmt.Errorf("detach pod %s on %s: %w", p.Name, p.Node.Name, err)
	}
	return p.NS.Close()
}

// Addr returns the pod's address of the family that like belongs to.
func (p *Pod) Addr(ipv6 bool) (netip.Addr, error) {
	for _, addr := range p.Addrs {
		if addr.Is6() == ipv6 {
			return addr, nil
		}
	}
	family := "IPv4"
	if ipv6 {
		family = "IPv6"
	}
	return netip.Addr{}, fmt.Errorf("pod %s has no %s address, only %v", p.Name, family, p.Addrs)
}

func (p *Pod) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: p.Name,
		NetNS:       p.NS.Path,
		IfName:      PodInterface,
		Args:        [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", p.Name}},
	}
}

// runtime is libcni as containerd uses it.
func (n *Node) runtime() (*libcni.CNIConfig, *libcni.NetworkConfigList, error) {
	conf, err := n.NetConf()
	if err != nil {
		return nil, nil, err
	}
	list, err := libcni.ConfListFromBytes(conf)
	if err != nil {
		return nil, nil, err
	}
	cache := filepath.Join(n.dir, "cni-cache")
	return libcni.NewCNIConfigWithCacheDir([]string{n.binaries}, cache, nil), list, nil
}
