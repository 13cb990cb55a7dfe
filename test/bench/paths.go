//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// podPath is a cluster of two nodes with a pod on each.
type podPath struct {
	cluster *cluster.Cluster
	way     route
	mtu     int
	kernel  bool
}

func (b *bench) newPodPath(ctx context.Context) (_ *podPath, err error) {
	c, err := b.newCluster(clusterSpec{name: "path", nodes: 2, dualStack: true})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	status, err := c.Nodes[0].Status(ctx)
	if err != nil {
		return nil, err
	}
	from, err := c.Nodes[0].AddPod(ctx, "path-from")
	if err != nil {
		return nil, err
	}
	to, err := c.Nodes[1].AddPod(ctx, "path-to")
	if err != nil {
		return nil, err
	}
	addr, err := to.Addr(false)
	p := &podPath{cluster: c, mtu: status.MTU, kernel: status.Backend == "kernel"}
	p.way = route{
		name: "pod to pod", from: from.NS, to: to.NS, addr: addr,
		pids: func() []int { return []int{c.Nodes[0].PID(), c.Nodes[1].PID()} },
	}
	return p, err
}

func backendName(kernel bool) string {
	if kernel {
		return "the kernel's WireGuard"
	}
	return "wireguard-go"
}

func (p *podPath) close(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	errs := []error{p.cluster.Stop(ctx)}
	for _, node := range p.cluster.Nodes {
		errs = append(errs, node.Teardown(ctx))
	}
	return errors.Join(append(errs, p.way.from.Close(), p.way.to.Close(), p.cluster.Close())...)
}

// barePaths is a bare tunnel between two hosts, and the same tunnel between
// two sandboxes that the hosts route to over plain veths: what a pod network
// without bridge, firewall and pinned sources would do.
type barePaths struct {
	fabric    *netlab.Fabric
	ends      []*bareEnd
	hosts     route
	sandboxes route
}

// bareEnd is one side.
type bareEnd struct {
	host, sandbox  *netlab.NS
	key            wgtypes.Key
	underlay       netip.Addr
	tunnel, inside netip.Addr
	process        *actor
}

func (b *bench) newBarePaths(ctx context.Context, mtu int, kernel bool) (_ *barePaths, err error) {
	fabric, err := netlab.NewFabric("bare-underlay")
	if err != nil {
		return nil, err
	}
	p := &barePaths{fabric: fabric}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	for i := range byte(2) {
		end, err := newBareEnd(fabric, i+1, mtu)
		if err != nil {
			return nil, err
		}
		p.ends = append(p.ends, end)
	}
	for i, end := range p.ends {
		if err := end.start(ctx, p.ends[1-i], mtu, kernel); err != nil {
			return nil, err
		}
	}
	from, to := p.ends[0], p.ends[1]
	pids := func() []int {
		return []int{from.process.pid(), to.process.pid()}
	}
	p.hosts = route{name: "bare tunnel", from: from.host, to: to.host, addr: to.tunnel, pids: pids}
	p.sandboxes = route{name: "bare tunnel, routed veths", from: from.sandbox, to: to.sandbox, addr: to.inside, pids: pids}
	return p, nil
}

// newBareEnd makes a host and, behind it, a sandbox.
func newBareEnd(fabric *netlab.Fabric, number byte, mtu int) (*bareEnd, error) {
	underlay := netip.AddrFrom4([4]byte{172, 31, 1, number})
	host, err := fabric.Host(fmt.Sprintf("bare-%d", number), netip.PrefixFrom(underlay, 24))
	if err != nil {
		return nil, err
	}
	sandbox, err := netlab.NewNS(fmt.Sprintf("bare-pod-%d", number))
	if err != nil {
		return nil, err
	}
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return nil, err
	}
	end := &bareEnd{
		host: host, sandbox: sandbox, key: key, underlay: underlay,
		tunnel: netip.AddrFrom4([4]byte{10, 99, number, 1}), inside: netip.AddrFrom4([4]byte{10, 99, number, 2}),
	}
	if err := end.connect(mtu); err != nil {
		return nil, fmt.Errorf("connect %s to %s: %w", sandbox.Name, host.Name, err)
	}
	return end, forward(host)
}

// connect gives the sandbox a veth with its address, and a default route.
func (e *bareEnd) connect(mtu int) error {
	const port = "pod"
	outside, err := e.host.Handle()
	if err != nil {
		return err
	}
	defer outside.Close()
	inside, err := e.sandbox.Handle()
	if err != nil {
		return err
	}
	defer inside.Close()
	file, err := e.sandbox.Open()
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags, attrs.MTU = port, net.FlagUp, mtu
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: cluster.PodInterface, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(int(file.Fd()))}
	if err := outside.LinkAdd(veth); err != nil {
		return err
	}
	gateway := netip.MustParseAddr("169.254.1.1")
	return errors.Join(
		giveAddress(outside, linkAddress{link: port, addr: gateway, routeTo: netip.PrefixFrom(e.inside, 32)}),
		giveAddress(inside, linkAddress{link: cluster.PodInterface, addr: e.inside, gateway: gateway}),
	)
}

// linkAddress is an address on a link and one route over it.
type linkAddress struct {
	link    string
	addr    netip.Addr
	routeTo netip.Prefix // the zero value: the default route
	gateway netip.Addr   // may be the zero value
}

func giveAddress(handle *netlink.Handle, a linkAddress) error {
	link, err := handle.LinkByName(a.link)
	if err != nil {
		return err
	}
	full := ipNet(netip.PrefixFrom(a.addr, a.addr.BitLen()))
	if err := errors.Join(handle.AddrAdd(link, &netlink.Addr{IPNet: &full}), handle.LinkSetUp(link)); err != nil {
		return fmt.Errorf("address %v: %w", a.addr, err)
	}
	way := &netlink.Route{LinkIndex: link.Attrs().Index}
	if a.gateway.IsValid() {
		way.Gw, way.Flags = a.gateway.AsSlice(), int(netlink.FLAG_ONLINK)
	}
	if a.routeTo.IsValid() {
		destination := ipNet(a.routeTo)
		way.Dst, way.Scope = &destination, netlink.SCOPE_LINK
	}
	if err := handle.RouteAdd(way); err != nil {
		return fmt.Errorf("route: %w", err)
	}
	return nil
}

// start runs the tunnel's end towards peer.
func (e *bareEnd) start(ctx context.Context, peer *bareEnd, mtu int, kernel bool) error {
	args := tunnelArgs{
		Kernel: kernel, PrivateKey: e.key[:], MTU: mtu, Address: e.tunnel,
		Endpoint:   netip.AddrPortFrom(peer.underlay, cluster.ListenPort),
		AllowedIPs: []netip.Prefix{netip.PrefixFrom(peer.tunnel, 24).Masked()},
	}
	public := peer.key.PublicKey()
	args.PeerKey = public[:]
	var ready bool
	var err error
	e.process, err = startRole(ctx, e.host, "tunnel", args, &ready)
	return err
}

// close ends what was started.
func (p *barePaths) close() error {
	var errs []error
	for _, end := range p.ends {
		if end.process != nil {
			errs = append(errs, end.process.end())
		}
		errs = append(errs, end.sandbox.Close())
	}
	return errors.Join(append(errs, p.fabric.Close())...)
}

// forward lets a namespace route packets of others.
func forward(ns *netlab.NS) error {
	// /proc/sys/net shows the namespace of the thread that opens it.
	err := ns.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) })
	if err != nil {
		return fmt.Errorf("forward in %s: %w", ns.Name, err)
	}
	return nil
}
