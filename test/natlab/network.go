//go:build linux

package natlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// fabricLink is the bridge in the namespace of a netlab.Fabric.
const fabricLink = "fabric"

// patience bounds a wait for the kernel; the machine may be an emulated one.
const patience = time.Minute

// network is a fabric with a gateway that leads out of it.
type network struct {
	fabric  *netlab.Fabric
	gateway *netlab.NS
	link    string  // of the gateway, to this network
	owner   *Router // whose LAN it is; nil for the internet
	v4, v6  []*pool // none where the network lacks the family
	members []netip.Addr
	ports   int // how many links were plugged in
}

// pool is a prefix whose addresses are given out one after the other. The first
// is the gateway's.
type pool struct {
	prefix netip.Prefix
	last   netip.Addr
}

// lease is an address with its way out.
type lease struct {
	addr    netip.Prefix
	gateway netip.Addr
}

func newPool(prefix netip.Prefix) *pool {
	p := &pool{prefix: prefix.Masked()}
	p.last = p.gateway()
	return p
}

func (p *pool) gateway() netip.Addr { return p.prefix.Addr().Next() }

func (p *pool) take() (lease, error) {
	next := p.last.Next()
	if !p.prefix.Contains(next.Next()) { // the last one is IPv4's broadcast
		return lease{}, fmt.Errorf("%s has no more addresses", p.prefix)
	}
	p.last = next
	return lease{addr: netip.PrefixFrom(next, p.prefix.Bits()), gateway: p.gateway()}, nil
}

// take returns the next address of a family, out of its prefixes in turn.
func (n *network) take(v6 bool) (lease, error) {
	pools, family := &n.v4, "IPv4"
	if v6 {
		pools, family = &n.v6, "IPv6"
	}
	if len(*pools) == 0 {
		return lease{}, fmt.Errorf("the network has no %s", family)
	}
	first := (*pools)[0]
	*pools = append((*pools)[1:], first)
	taken, err := first.take()
	if err != nil {
		return lease{}, err
	}
	n.members = append(n.members, taken.addr.Addr())
	return taken, nil
}

// takeAfter returns the next address of old's family, out of another prefix if
// there is one.
func (n *network) takeAfter(old lease) (lease, error) {
	next, err := n.take(old.addr.Addr().Is6())
	if err == nil && next.gateway == old.gateway && old.addr.Addr().Is4() && len(n.v4) > 1 {
		return n.take(false)
	}
	return next, err
}

// open gives the gateway's link its addresses and lets it forward.
func (n *network) open() error {
	err := withLink(n.gateway, n.link, func(handle *netlink.Handle, link netlink.Link) error {
		// A bridge takes the lowest address of its ports. When that changes,
		// neighbours send to the former one for most of a minute.
		return handle.LinkSetHardwareAddr(link, net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01})
	})
	if err != nil {
		return fmt.Errorf("set the MAC of %s of %s: %w", n.link, n.gateway.Name, err)
	}
	conf := "/conf/" + n.link
	err = setSysctls(n.gateway, "ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1",
		// Machines of one network reach each other by the gateway where their prefixes differ.
		"ipv4/conf/all/send_redirects=0", "ipv4"+conf+"/send_redirects=0",
		// A bridge has begun to look for others with its address, and for seconds finds no neighbour.
		"ipv6/conf/all/accept_dad=0", "ipv6"+conf+"/accept_dad=0",
		"ipv6"+conf+"/disable_ipv6=1", "ipv6"+conf+"/disable_ipv6=0",
	)
	if err != nil {
		return err
	}
	return withLink(n.gateway, n.link, func(handle *netlink.Handle, link netlink.Link) error {
		for _, p := range append(append([]*pool{}, n.v4...), n.v6...) {
			if err := addAddress(handle, link, netip.PrefixFrom(p.gateway(), p.prefix.Bits())); err != nil {
				return err
			}
		}
		return nil
	})
}

// join plugs a machine into the network by a link of the given name, with
// addresses of the families it asks for and default routes.
func (n *network) join(ns *netlab.NS, link string, v4, v6 bool) ([]lease, error) {
	var leases []lease
	for _, family := range []struct{ v6, wanted bool }{{false, v4}, {true, v6}} {
		if !family.wanted {
			continue
		}
		taken, err := n.take(family.v6)
		if err != nil {
			return nil, err
		}
		leases = append(leases, taken)
	}
	if err := n.plug(ns, link); err != nil {
		return nil, err
	}
	err := withLink(ns, link, func(handle *netlink.Handle, link netlink.Link) error {
		for _, l := range leases {
			if err := l.assign(handle, link); err != nil {
				return err
			}
		}
		return nil
	})
	return leases, err
}

// plug makes a link of ns into the fabric.
func (n *network) plug(ns *netlab.NS, name string) error {
	n.ports++
	port := fmt.Sprintf("port%d", n.ports)
	file, err := ns.Open()
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	err = withLink(n.fabric.NS(), fabricLink, func(handle *netlink.Handle, bridge netlink.Link) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex, attrs.Flags = port, bridge.Attrs().Index, net.FlagUp
		return handle.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(int(file.Fd()))})
	})
	if err != nil {
		return fmt.Errorf("plug %s of %s into %s: %w", name, ns.Name, n.fabric.NS().Name, err)
	}
	err = withLink(ns, name, func(handle *netlink.Handle, link netlink.Link) error { return handle.LinkSetUp(link) })
	if err != nil {
		return fmt.Errorf("bring up %s of %s: %w", name, ns.Name, err)
	}
	return errors.Join(waitUp(ns, name), waitUp(n.fabric.NS(), port), waitUp(n.fabric.NS(), fabricLink))
}

// waitUp returns when packets pass a link. Its two ends and the bridge learn of
// each other only after they were brought up, and drop packets until then.
func waitUp(ns *netlab.NS, name string) error {
	return withLink(ns, name, func(handle *netlink.Handle, _ netlink.Link) error {
		return wait(fmt.Sprintf("link %s of %s to be up", name, ns.Name), func() (bool, error) {
			link, err := handle.LinkByName(name)
			return err == nil && link.Attrs().OperState == netlink.OperUp, err
		})
	})
}

// waitLocal returns when the kernel takes packets for an IPv6 address, which it
// does some time after it was added.
func waitLocal(handle *netlink.Handle, addr netip.Addr) error {
	filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: ipNet(netip.PrefixFrom(addr, addr.BitLen()))}
	return wait("a local route for "+addr.String(), func() (bool, error) {
		routes, err := handle.RouteListFiltered(unix.AF_INET6, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			return false, nil
		}
		return len(routes) > 0, err
	})
}

// wait polls a condition of the kernel's.
func wait(what string, condition func() (bool, error)) error {
	deadline, tick := time.After(patience), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if done, err := condition(); done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("wait for %s: not in %s", what, patience)
		}
	}
}

// route has the gateway send what is for prefix to via.
func (n *network) route(prefix netip.Prefix, via netip.Addr) error {
	return withLink(n.gateway, n.link, func(handle *netlink.Handle, link netlink.Link) error {
		return replaceRoute(handle, link, prefix, via)
	})
}

// changed lets the network's owner know of members it did not have.
func (n *network) changed() error {
	if n.owner == nil {
		return nil
	}
	return n.owner.apply()
}

// assign gives link the address and its default route.
func (l lease) assign(handle *netlink.Handle, link netlink.Link) error {
	if err := addAddress(handle, link, l.addr); err != nil {
		return err
	}
	any4, any6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	if l.gateway.Is6() {
		return replaceRoute(handle, link, any6, l.gateway)
	}
	return replaceRoute(handle, link, any4, l.gateway)
}

// addresses returns the lease of each family.
func addresses(leases []lease) (v4, v6 netip.Addr) {
	for _, l := range leases {
		if addr := l.addr.Addr(); addr.Is4() {
			v4 = addr
		} else {
			v6 = addr
		}
	}
	return v4, v6
}

func addAddress(handle *netlink.Handle, link netlink.Link, prefix netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := handle.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add %s to %s: %w", prefix, link.Attrs().Name, err)
	}
	if prefix.Addr().Is6() {
		return waitLocal(handle, prefix.Addr())
	}
	return nil
}

func replaceRoute(handle *netlink.Handle, link netlink.Link, prefix netip.Prefix, via netip.Addr) error {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(prefix), Gw: via.AsSlice()}
	if err := handle.RouteReplace(route); err != nil {
		return fmt.Errorf("route %s by %s via %s: %w", prefix, link.Attrs().Name, via, err)
	}
	return nil
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}

func withLink(ns *netlab.NS, name string, do func(*netlink.Handle, netlink.Link) error) error {
	handle, err := ns.Handle()
	if err != nil {
		return err
	}
	defer handle.Close()
	link, err := handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s of %s: %w", name, ns.Name, err)
	}
	return do(handle, link)
}

// setSysctls writes values, each as name=value, below /proc/sys/net, which shows
// the namespace of the thread that opens it.
func setSysctls(ns *netlab.NS, settings ...string) error {
	return ns.Do(func() error {
		for _, setting := range settings {
			name, value, _ := strings.Cut(setting, "=")
			if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0o644); err != nil {
				return fmt.Errorf("set %s in %s: %w", setting, ns.Name, err)
			}
		}
		return nil
	})
}
