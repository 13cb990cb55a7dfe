//go:build linux

// Package audit compares what a node's kernel holds with what its daemon says
// it holds. Tests run it after everything that could leak: a link, an address,
// a block, a route, a rule, a neighbour, a forwarding entry or a firewall
// element that belongs to nobody, or that somebody lacks, is an error that names
// it. It only reads.
package audit

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// Node audits the node in ns, whose daemon answered status. It returns every
// difference found.
func Node(ns *netlab.NS, status shim.StatusSnapshot) error {
	found, err := readKernel(ns, bridgesOf(status))
	if err != nil {
		return fmt.Errorf("read what %s holds: %w", ns.Name, err)
	}
	said, err := expected(status, found.ports)
	return errors.Join(
		err,
		differ("port", said.ports, found.ports),
		differ("bridge", said.bridges, found.bridges),
		differ("device", said.devices, found.devices),
		differ("route", said.routes, found.routes),
		differ("rule", said.rules, found.rules),
		differ("neighbour", said.neighbours, found.neighbours),
		differ("forwarding entry", said.forwarding, found.forwarding),
		differ("pinned port", said.pinnedPorts, found.pinnedPorts),
		differ("pinned source", said.pinnedSources, found.pinnedSources),
		differ("guarded link", said.guarded, found.guarded),
		pools(status),
		blocks(status),
	)
}

// facts are rendered as text, so that a difference reads well.
type facts struct {
	ports         map[string]int // index by name of our host links
	bridges       []string
	devices       []string
	routes        []string
	rules         []string
	neighbours    []string
	forwarding    []string
	pinnedPorts   []string
	pinnedSources []string
	guarded       []string // devices and blocks that the firewall keeps to their service
}

func bridgesOf(status shim.StatusSnapshot) []string {
	var bridges []string
	for _, segment := range status.Segments {
		bridges = append(bridges, segment.Bridge)
	}
	return bridges
}

// expected derives from the status what the kernel should hold. Indexes are
// the kernel's own: only the set of names is the daemon's to say.
func expected(status shim.StatusSnapshot, indexes map[string]int) (facts, error) {
	said := facts{ports: map[string]int{}, routes: deviceRoutes(status), bridges: bridgesOf(status)}
	if status.Interface != "" {
		said.devices = append(said.devices, status.Interface)
	}
	for _, service := range status.DedicatedServices {
		said.addService(service)
	}
	bridgeOf := map[string]string{}
	for _, segment := range status.Segments {
		bridgeOf[segment.Name] = segment.Bridge
		said.addRules(segment.Bridge, routeTable, rulePriority)
	}
	var errs []error
	for _, a := range status.Attachments {
		index := indexes[a.HostInterface]
		said.ports[a.HostInterface] = index
		mac, err := net.ParseMAC(a.MAC)
		if err != nil {
			errs = append(errs, fmt.Errorf("attachment %s/%s: %w", a.ContainerID, a.IfName, err))
			continue
		}
		bridge := bridgeOf[a.Segment]
		said.forwarding = append(said.forwarding, fmt.Sprintf("%s on %s", mac, a.HostInterface))
		said.pinnedPorts = append(said.pinnedPorts, pinnedPort("bridge", index), pinnedPort("inet", index))
		// Without an address yet, and with the one that IPv6 makes itself.
		said.pinnedSources = append(said.pinnedSources, pinnedSource(index, mac, netip.IPv6Unspecified()), pinnedSource(index, mac, linkLocal(mac)))
		for _, addr := range a.Addresses {
			alone := netip.PrefixFrom(addr, addr.BitLen())
			// From the host, and from other sandboxes.
			said.routes = append(said.routes, routeOf(alone, bridge, unix.RT_TABLE_MAIN), routeOf(alone, a.HostInterface, routeTable))
			for _, link := range []string{bridge, a.HostInterface} {
				said.neighbours = append(said.neighbours, fmt.Sprintf("%s is %s on %s", addr, mac, link))
			}
			said.pinnedSources = append(said.pinnedSources, pinnedSource(index, mac, addr))
		}
	}
	return said, errors.Join(errs...)
}

// deviceRoutes are those to the peers, and those that refuse what is in the
// node's own slices and nobody has.
func deviceRoutes(status shim.StatusSnapshot) []string {
	var routes []string
	for _, peer := range status.Peers {
		for _, prefix := range peer.AllowedIPs {
			routes = append(routes, routeOf(prefix, status.Interface, unix.RT_TABLE_MAIN))
		}
	}
	for _, guest := range status.Guests {
		for _, addr := range guest.Addresses {
			routes = append(routes, routeOf(netip.PrefixFrom(addr, addr.BitLen()), status.Interface, unix.RT_TABLE_MAIN))
		}
	}
	for _, slice := range status.SliceCIDRs {
		routes = append(routes, refusalOf(slice, unix.RT_TABLE_MAIN))
	}
	return routes
}

// addService adds what a dedicated service has beside its segment.
func (f *facts) addService(service shim.DedicatedServiceStatus) {
	table := int(service.Table)
	f.devices = append(f.devices, service.Interface)
	f.addRules(service.Bridge, table, serviceRulePriority)
	f.guarded = append(f.guarded, service.Interface)
	for _, block := range service.Subnets {
		f.guarded = append(f.guarded, guardedBlock(service.Bridge, block.Addr()), guardedBlock(service.Interface, block.Addr()))
	}
	for _, peer := range service.Peers {
		for _, prefix := range peer.AllowedIPs {
			// Behind the device's route nothing finds another way.
			f.routes = append(f.routes, routeOf(prefix, service.Interface, table), refusalOf(prefix, table))
		}
	}
	refused := map[netip.Prefix]bool{}
	for _, block := range service.Subnets {
		everything := netip.PrefixFrom(block.Addr(), 0).Masked()
		if !service.JoinGlobal && !refused[everything] {
			f.routes = append(f.routes, refusalOf(everything, table))
		}
		refused[everything] = true
	}
}

func (f *facts) addRules(bridge string, table, priority int) {
	f.rules = append(f.rules, ruleOf("IPv4", bridge, table, priority), ruleOf("IPv6", bridge, table, priority))
}

func routeOf(dst netip.Prefix, link string, table int) string {
	return fmt.Sprintf("%s by %s in table %d", dst, link, table)
}

func refusalOf(dst netip.Prefix, table int) string {
	return fmt.Sprintf("%s refused in table %d", dst, table)
}

func ruleOf(family, bridge string, table, priority int) string {
	return fmt.Sprintf("%s from %s to table %d, priority %d", family, bridge, table, priority)
}

func guardedBlock(link string, first netip.Addr) string {
	return fmt.Sprintf("block at %s by %s", first, link)
}

func pinnedPort(family string, index int) string {
	return fmt.Sprintf("port %d in the %s table", index, family)
}

func pinnedSource(index int, mac net.HardwareAddr, addr netip.Addr) string {
	return fmt.Sprintf("%s with %s on port %d", addr, mac, index)
}

// linkLocal is the EUI-64 address of a MAC (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// differ compares two lists, or the names of two maps, as sets.
func differ[T []string | map[string]int](what string, said, found T) error {
	wanted, there := names(said), names(found)
	var errs []error
	for _, name := range wanted {
		if !slices.Contains(there, name) {
			errs = append(errs, fmt.Errorf("%s missing in the kernel: %s", what, name))
		}
	}
	for _, name := range there {
		if !slices.Contains(wanted, name) {
			errs = append(errs, fmt.Errorf("%s that belongs to nobody: %s", what, name))
		}
	}
	return errors.Join(errs...)
}

func names[T []string | map[string]int](set T) []string {
	switch set := any(set).(type) {
	case []string:
		return set
	case map[string]int:
		var list []string
		for name := range set {
			list = append(list, name)
		}
		return list
	}
	return nil
}

// pools checks that every used address has exactly one holder: a sandbox, a
// guest, or a dedicated service, which has one of every slice.
func pools(status shim.StatusSnapshot) error {
	holders := map[netip.Addr]string{}
	var errs []error
	for _, a := range status.Attachments {
		key := strings.Join([]string{a.ContainerID, a.IfName, a.Key}, "/")
		for _, addr := range a.Addresses {
			if other, taken := holders[addr]; taken {
				errs = append(errs, fmt.Errorf("address %s is held by both %s and %s", addr, other, key))
			}
			holders[addr] = key
		}
	}
	for _, guest := range status.Guests {
		for _, addr := range guest.Addresses {
			if other, taken := holders[addr]; taken {
				errs = append(errs, fmt.Errorf("address %s is held by both %s and guest %s", addr, other, guest.ID))
			}
			holders[addr] = "guest " + guest.ID
		}
	}
	for _, pool := range status.Pools {
		held := len(status.DedicatedServices)
		for addr := range holders {
			if pool.Prefix.Contains(addr) {
				held++
			}
		}
		if pool.Used != held {
			errs = append(errs, fmt.Errorf("pool %s counts %d used addresses, %d are held", pool.Prefix, pool.Used, held))
		}
	}
	return errors.Join(errs...)
}

// blocks checks that the blocks of services lie in the slices and do not
// overlap, and that sandboxes have addresses out of their own service's blocks
// or of none.
func blocks(status shim.StatusSnapshot) error {
	owners := map[netip.Prefix]string{}
	var errs []error
	for _, service := range status.DedicatedServices {
		for _, block := range service.Subnets {
			if !slices.ContainsFunc(status.SliceCIDRs, func(slice netip.Prefix) bool { return slice.Overlaps(block) && slice.Bits() <= block.Bits() }) {
				errs = append(errs, fmt.Errorf("block %s of service %s is in no slice", block, service.Service))
			}
			for other, owner := range owners {
				if other.Overlaps(block) {
					errs = append(errs, fmt.Errorf("block %s of service %s overlaps %s of %s", block, service.Service, other, owner))
				}
			}
			owners[block] = service.Bridge
		}
	}
	bridgeOf := map[string]string{}
	for _, segment := range status.Segments {
		bridgeOf[segment.Name] = segment.Bridge
	}
	dedicated := slices.Collect(maps.Values(owners))
	for _, a := range status.Attachments {
		wanted := bridgeOf[a.Segment]
		if !slices.Contains(dedicated, wanted) {
			wanted = "" // of no block
		}
		for _, addr := range a.Addresses {
			owner := ""
			for block, bridge := range owners {
				if block.Contains(addr) {
					owner = bridge
				}
			}
			if owner != wanted {
				errs = append(errs, fmt.Errorf("address %s of %s is in a block of %q, its segment is %s", addr, a.ContainerID, owner, a.Segment))
			}
		}
	}
	return errors.Join(errs...)
}
