// Package firewall owns two nftables tables, "inet zlayer" and "bridge
// zlayer", and nothing else in the kernel.
//
// The inet table does four things:
//   - It masquerades what pods send out of the cluster.
//   - It fails closed: a packet for a pod of another node leaves by a tunnel, one
//     for a pod of this node by a bridge of ours or a pod's port, and whatever
//     leaves otherwise is counted and dropped, wherever the routes point.
//   - It refuses the cluster's addresses as sources where they cannot come
//     from, and keeps ICMP redirects away from pods.
//   - It keeps dedicated services to their own links: what a service's pods say
//     to each other between two nodes takes its device and no other way, and the
//     device carries nothing else. Isolated services have no other traffic; only
//     the node's own processes may ask their pods, and are answered.
//
// The bridge table pins each pod's port to the pod's own MAC and addresses. A
// port of ours that is not pinned may send nothing.
//
// # Beside other firewalls
//
// A verdict "accept" ends only the chain that holds it: nothing here overrides
// a drop of kube-proxy, Docker or an administrator, nor theirs ours. The base
// chains and why they hook in where they do:
//
//	inet    prerouting   raw    (-300)  before connection tracking: a forged source costs no entry, and is read as it was on the wire
//	inet    postrouting  filter (0)     after every DNAT and reroute, before every source NAT (100)
//	inet    postrouting  srcnat (100)   masquerade, NAT only
//	bridge  prerouting   filter (-200)  before br_netfilter (0) shows bridged packets to the inet tables
//
// and, while there are services:
//
//	inet    prerouting   raw + 1        sources of services, as they were on the wire
//	inet    forward      filter (0)     after every DNAT, where both links of a packet are known
//	inet    input        filter (0)     what isolated pods send to the node itself, by whatever address
//	inet    postrouting  filter + 1     what the node itself sends, which passes no forward hook
//
// Fail closed sits in postrouting rather than in forward and output, because
// postrouting sees both, and because in the output hook a packet that
// kube-proxy's DNAT has just rerouted still shows the interface of its old
// route: a ClusterIP reached from the host would be dropped for nothing. Whether
// a packet may enter a service is for the forward hook to say: it depends on the
// link that it came by, which postrouting doesn't show before Linux 5.7, and what
// the node itself sends to a pod has none. Services need Linux 5.6, which brought
// ranges of concatenated keys; Apply fails with them before.
//
// # Promises
//
// Every change is one netlink transaction: the kernel takes all of it or none,
// and no packet sees half of it. The rules never name an address, a prefix or
// an interface: these are elements of sets, so in daily work only elements
// change; the first service brings its chains, and the last one takes them
// along. What the kernel has is compared with what is wanted, and only the
// difference is written.
//
// # Windows
//
// There are no tables there. A Firewall keeps a few rules in Windows' own firewall
// that let in WireGuard's ports and, from the cluster, echo requests and questions for names: by its COM
// interface INetFwPolicy2, the only documented way to rules that people see and
// other programs leave alone. Filters of the platform below could let nothing in,
// as a block of Windows' firewall counts more than a permit beside it. Masquerading is
// a NAT of Windows (WinNAT) for each subnet of sandboxes, by WMI as the cmdlets do it.
//
// A Firewall is safe for concurrent use.
package firewall

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
)

// DefaultTable is the name of our tables when Config names none.
const DefaultTable = "zlayer"

// ErrNotApplied is returned by Pin before the first Apply: there is no table
// yet that could hold the pin.
var ErrNotApplied = errors.New("the firewall's rules have not been applied")

// Config says where a Firewall works.
type Config struct {
	// Table names the tables, one in the family inet and one in the family
	// bridge; empty means DefaultTable. Firewalls with different names live
	// side by side, in one network namespace too.
	Table string
	// NetNS is an open file descriptor of the network namespace to work in; 0
	// means the one of the calling thread. It must stay open as long as the
	// Firewall is used.
	NetNS int
	// Log receives what was repaired; nil means nowhere.
	Log *slog.Logger
}

// Pin ties a port, the host half of a pod's veth, to what may be sent from it.
type Pin struct {
	// PortIndex is the interface index of the port.
	PortIndex int
	// MAC is the pod's hardware address, six bytes. The link-local IPv6 address
	// that follows from it (EUI-64) is pinned with it.
	MAC net.HardwareAddr
	// Addrs are the pod's addresses. A pod without any may still use its
	// link-local address.
	Addrs []netip.Addr
}

// A Service is a dedicated service on this node. Its pods speak to each other by
// its bridge on one node, and by its WireGuard device and nothing else between
// two nodes; the device carries nothing else.
type Service struct {
	// Bridge and Device are the names of the service's links, which no other
	// service has. Rules.Bridges may name the bridge, too; Rules.Tunnels may not
	// name the device. They need not exist yet.
	Bridge, Device string
	// Own holds the service's blocks of this node's slices, Remote those of
	// other nodes' slices. An address counts as the service's from the Apply on
	// that names its block, so that comes before a pod has it. What two services
	// claim is reached by the links of either.
	Own, Remote []netip.Prefix
	// Isolated cuts the service's pods off from all that is not the service:
	// they reach nothing else, and nothing else reaches them but what the node's
	// own processes begin.
	Isolated bool
}

// Rules is everything the firewall enforces: the whole wanted state.
type Rules struct {
	// Cluster holds the prefixes that every pod of the cluster is in.
	Cluster []netip.Prefix
	// Own holds this node's slices. They count as part of Cluster.
	Own []netip.Prefix
	// Masquerade gives what pods send out of the cluster an address of the node
	// as source.
	Masquerade bool
	// NoMasquerade lists destinations outside the cluster that see the pods' own
	// addresses.
	NoMasquerade []netip.Prefix
	// Bridges are the names of our bridges, Tunnels those of the cluster's
	// WireGuard devices. They need not exist yet. Services add theirs.
	Bridges, Tunnels []string
	// Ports are the UDP ports of this node that its peers send to. Windows lets
	// nothing in that it is not told of; on Linux it is for other firewalls to say,
	// and this is not looked at.
	Ports []uint16
	// NamePorts are the ports, of UDP and TCP, at which the cluster asks this node for names, likewise.
	NamePorts []uint16
	// Subnets are those of this node's sandboxes on Windows, whose packets Masquerade is about. NoMasquerade is not looked at
	// there.
	Subnets []netip.Prefix
	// Services are the dedicated services that this node hosts.
	Services []Service
	// Guests are addresses out of Own that are not on this node but behind one of
	// Tunnels: those of machines that are peers of this node alone.
	Guests []netip.Addr
	// PortGroup is the link group of every port of ours, pinned or not, and of no
	// foreign link. Only its upper half counts, and that isn't zero.
	PortGroup uint32
	// Pins are all ports and their sources. Nil means those that Pin and the
	// last Apply left, which is what a caller wants who applies while pods come
	// and go; an empty slice that is not nil means none.
	Pins []Pin
}

// The names of the counters. Each counts packets that were dropped.
const (
	// CounterFailClosed counts packets for a pod that would have left by
	// anything but a tunnel, or one of our bridges if the pod is on this node.
	CounterFailClosed = "fail_closed"
	// CounterSpoofed counts packets whose source is not the sender's own.
	CounterSpoofed = "spoofed"
	// CounterUnpinned counts what came in by a port of ours that is not pinned.
	CounterUnpinned = "unpinned"
	// CounterRogue counts router advertisements, redirects and DHCP answers that
	// pods tried to send.
	CounterRogue = "rogue"
	// CounterRefused counts frames of pods that are neither IPv4, IPv6 nor ARP,
	// VLAN-tagged ones among them.
	CounterRefused = "refused"
	// CounterIsolated counts packets that would have entered or left a service,
	// or gone from one of its nodes to another, by a way that isn't the service's.
	CounterIsolated = "isolated"
	// CounterRedirects counts ICMP redirects kept away from pods.
	CounterRedirects = "redirects"
)

// Counter is how much a rule has dropped since its table was made.
type Counter struct{ Packets, Bytes uint64 }

// Counters maps the names above to their values, both families added up.
type Counters map[string]Counter

// validate checks what the kernel would refuse, or worse, take for something
// else.
func (r Rules) validate() error {
	for name, prefixes := range map[string][]netip.Prefix{"cluster": r.Cluster, "own": r.Own, "no-masquerade": r.NoMasquerade} {
		if err := validatePrefixes(name, prefixes); err != nil {
			return err
		}
	}
	for _, link := range slices.Concat(r.bridges(), r.tunnels()) {
		if link == "" || len(link) > maxLinkName {
			return fmt.Errorf("interface name %q: want 1 to %d bytes", link, maxLinkName)
		}
	}
	if err := r.validateServices(); err != nil {
		return err
	}
	for _, a := range r.Guests {
		if !a.IsValid() || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("guest %v: not an address of a guest", a)
		}
	}
	ports := make(map[int]struct{}, len(r.Pins))
	for _, p := range r.Pins {
		if err := p.validate(); err != nil {
			return err
		}
		if _, twice := ports[p.PortIndex]; twice {
			return fmt.Errorf("port %d is pinned twice", p.PortIndex)
		}
		ports[p.PortIndex] = struct{}{}
	}
	if r.PortGroup&groupMask == 0 {
		return fmt.Errorf("port group %#x: its upper half is zero, as that of foreign links", r.PortGroup)
	}
	return nil
}

func validatePrefixes(name string, prefixes []netip.Prefix) error {
	for _, p := range prefixes {
		if !p.IsValid() || p.Addr().Is4In6() {
			return fmt.Errorf("%s prefix %v: not an IPv4 or IPv6 prefix", name, p)
		}
	}
	return nil
}

// validateServices wants links that are one service's alone: what two had would
// join them.
func (r Rules) validateServices() error {
	taken := map[string]struct{}{}
	for _, link := range r.Tunnels {
		taken[link] = struct{}{}
	}
	for _, s := range r.Services {
		for _, link := range []string{s.Bridge, s.Device} {
			if _, ok := taken[link]; ok {
				return fmt.Errorf("service at %s: interface %s is also another service's or a tunnel", s.Bridge, link)
			}
			taken[link] = struct{}{}
		}
		if slices.Contains(r.Bridges, s.Device) {
			return fmt.Errorf("service at %s: device %s is also a bridge", s.Bridge, s.Device)
		}
		for name, prefixes := range map[string][]netip.Prefix{"own": s.Own, "remote": s.Remote} {
			if err := validatePrefixes(name, prefixes); err != nil {
				return fmt.Errorf("service at %s: %w", s.Bridge, err)
			}
		}
	}
	return nil
}

// bridges returns the names of all our bridges, once each.
func (r Rules) bridges() []string {
	all := slices.Clone(r.Bridges)
	for _, s := range r.Services {
		all = append(all, s.Bridge)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// tunnels returns the names of all our WireGuard devices, once each.
func (r Rules) tunnels() []string {
	all := slices.Clone(r.Tunnels)
	for _, s := range r.Services {
		all = append(all, s.Device)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// maxLinkName is the kernel's IFNAMSIZ less the terminating zero.
const maxLinkName = 15

func (p Pin) validate() error {
	if p.PortIndex <= 0 {
		return fmt.Errorf("port %d: not an interface index", p.PortIndex)
	}
	if len(p.MAC) != macLen {
		return fmt.Errorf("port %d: MAC %q has %d bytes, want %d", p.PortIndex, p.MAC, len(p.MAC), macLen)
	}
	for _, a := range p.Addrs {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("port %d: %v is no address of a pod", p.PortIndex, a)
		}
	}
	return nil
}

const macLen = 6

// groupMask are the bits of a link group that say whose a link is.
const groupMask = 0xffff0000

// clone keeps what the caller may change later out of our memory.
func (p Pin) clone() Pin {
	return Pin{PortIndex: p.PortIndex, MAC: slices.Clone(p.MAC), Addrs: slices.Clone(p.Addrs)}
}

func (r Rules) clone() Rules {
	r.Cluster, r.Own, r.NoMasquerade = slices.Clone(r.Cluster), slices.Clone(r.Own), slices.Clone(r.NoMasquerade)
	r.Ports, r.NamePorts = slices.Clone(r.Ports), slices.Clone(r.NamePorts)
	r.Subnets = slices.Clone(r.Subnets)
	r.Bridges, r.Tunnels, r.Guests = slices.Clone(r.Bridges), slices.Clone(r.Tunnels), slices.Clone(r.Guests)
	r.Services = slices.Clone(r.Services)
	for i, s := range r.Services {
		r.Services[i].Own, r.Services[i].Remote = slices.Clone(s.Own), slices.Clone(s.Remote)
	}
	r.Pins = nil // kept apart, by port
	return r
}
