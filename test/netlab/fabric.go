//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// HostLink is the name of a host's link to its fabric.
const HostLink = "eth0"

// Fabric is an underlay: a bridge in a namespace of its own, to which hosts
// are plugged.
type Fabric struct {
	ns *NS

	mu    sync.Mutex // guards hosts
	hosts []*NS
}

const fabricBridge = "fabric"

// NewFabric makes an underlay without hosts.
func NewFabric(name string) (*Fabric, error) {
	ns, err := NewNS(name)
	if err != nil {
		return nil, err
	}
	f := &Fabric{ns: ns}
	if err := f.makeBridge(); err != nil {
		return nil, errors.Join(fmt.Errorf("make fabric %s: %w", name, err), ns.Close())
	}
	return f, nil
}

func (f *Fabric) makeBridge() error {
	handle, err := f.ns.Handle()
	if err != nil {
		return err
	}
	defer handle.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fabricBridge
	// Without snooping, IPv6 neighbours find each other from the first packet on.
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := handle.LinkAdd(bridge); err != nil {
		return err
	}
	return handle.LinkSetUp(bridge)
}

// NS returns the fabric's namespace; the link "fabric" in it sees every frame
// of the underlay in promiscuous mode.
func (f *Fabric) NS() *NS { return f.ns }

// Host plugs a new machine with the given addresses into the fabric. Its link
// is eth0, MTU 1500.
func (f *Fabric) Host(name string, addrs ...netip.Prefix) (*NS, error) {
	host, err := NewNS(name)
	if err != nil {
		return nil, err
	}
	if err := f.plug(host, addrs); err != nil {
		return nil, errors.Join(fmt.Errorf("plug %s into fabric %s: %w", name, f.ns.Name, err), host.Close())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts = append(f.hosts, host)
	return host, nil
}

func (f *Fabric) plug(host *NS, addrs []netip.Prefix) error {
	handle, err := f.ns.Handle()
	if err != nil {
		return err
	}
	defer handle.Close()
	file, err := host.Open()
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	bridge, err := handle.LinkByName(fabricBridge)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.Flags = portName(host.Name), bridge.Attrs().Index, 1 /* net.FlagUp */
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: HostLink, PeerNamespace: netlink.NsFd(int(file.Fd()))}
	if err := handle.LinkAdd(veth); err != nil {
		return err
	}
	return configureHost(netns.NsHandle(file.Fd()), addrs)
}

func configureHost(ns netns.NsHandle, addrs []netip.Prefix) error {
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer handle.Close()
	link, err := handle.LinkByName(HostLink)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		a, err := netlink.ParseAddr(addr.String())
		if err != nil {
			return err
		}
		if addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := handle.AddrAdd(link, a); err != nil {
			return err
		}
	}
	return handle.LinkSetUp(link)
}

// portName keeps within the kernel's 15 bytes.
func portName(host string) string {
	const longest = 15
	name := "p-" + host
	if len(name) > longest {
		name = name[:longest]
	}
	return name
}

// Close removes the hosts' names and the fabric.
func (f *Fabric) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, host := range f.hosts {
		errs = append(errs, host.Close())
	}
	return errors.Join(append(errs, f.ns.Close())...)
}
