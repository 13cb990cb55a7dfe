//go:build linux

package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

const (
	// aliasPrefix begins the alias of every link of ours.
	aliasPrefix = "zlayer/1 "
	bridgeAlias = aliasPrefix + "segment="
	deviceAlias = aliasPrefix + "device="
	// routeProtocol marks our routes and rules.
	routeProtocol = 122
	// routeTable is ours, and rulePriority that of the rules which lead to it.
	routeTable, rulePriority = 122, 1220
	// serviceRulePriority is that of the rules which lead to a service's table.
	serviceRulePriority = 1221
	// firewallTable is the name of our tables.
	firewallTable = "zlayer"
)

// readKernel reads what could be ours: by alias, route protocol and table.
func readKernel(ns *netlab.NS, bridges []string) (facts, error) {
	handle, err := ns.Handle()
	if err != nil {
		return facts{}, err
	}
	defer handle.Close()
	links, err := handle.LinkList()
	if err != nil {
		return facts{}, fmt.Errorf("list links: %w", err)
	}
	found := facts{}
	ours := map[int]string{} // bridges by index
	for _, link := range links {
		if slices.Contains(bridges, link.Attrs().Name) {
			ours[link.Attrs().Index] = link.Attrs().Name
		}
	}
	found.ports, found.bridges, found.devices = ports(links, ours), marked(links, bridgeAlias), marked(links, deviceAlias)
	held := maps.Clone(ours) // bridges and ports by index
	for name, index := range found.ports {
		held[index] = name
	}
	name := map[int]string{}
	for _, link := range links {
		name[link.Attrs().Index] = link.Attrs().Name
	}
	if found.routes, err = routes(handle, name); err != nil {
		return facts{}, err
	}
	if found.rules, err = rules(handle); err != nil {
		return facts{}, err
	}
	if found.neighbours, err = neighbours(handle, held); err != nil {
		return facts{}, err
	}
	if found.forwarding, err = forwarding(handle, name, ours); err != nil {
		return facts{}, err
	}
	err = pins(ns, &found)
	return found, err
}

// ports are the veths with our alias, and whatever else is a port of a bridge
// of ours: an attach that never finished has no alias.
func ports(links []netlink.Link, ours map[int]string) map[string]int {
	found := map[string]int{}
	for _, link := range links {
		attrs := link.Attrs()
		_, port := ours[attrs.MasterIndex]
		if port || link.Type() == "veth" && strings.HasPrefix(attrs.Alias, aliasPrefix) {
			found[attrs.Name] = attrs.Index
		}
	}
	return found
}

// marked are the links with an alias that begins so.
func marked(links []netlink.Link, alias string) []string {
	var found []string
	for _, link := range links {
		if strings.HasPrefix(link.Attrs().Alias, alias) {
			found = append(found, link.Attrs().Name)
		}
	}
	return found
}

// routes lists what carries our protocol number, by whatever link, and whatever
// stands in our table.
func routes(handle *netlink.Handle, name map[int]string) ([]string, error) {
	every := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	var found []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := handle.RouteListFiltered(family, every, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, route := range list {
			switch {
			case route.Protocol != routeProtocol && route.Table != routeTable:
			case route.Type == unix.RTN_UNREACHABLE: // IPv6 has it on the loopback
				found = append(found, refusalOf(prefixOf(route.Dst), route.Table))
			default:
				found = append(found, routeOf(prefixOf(route.Dst), name[route.LinkIndex], route.Table))
			}
		}
	}
	return found, nil
}

// rules lists what carries our protocol number or priority, or leads to our
// table.
func rules(handle *netlink.Handle) ([]string, error) {
	var found []string
	for family, called := range map[int]string{netlink.FAMILY_V4: "IPv4", netlink.FAMILY_V6: "IPv6"} {
		list, err := handle.RuleList(family)
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		for _, rule := range list {
			switch {
			case rule.Protocol != routeProtocol && rule.Table != routeTable && rule.Priority != rulePriority && rule.Priority != serviceRulePriority:
			case rule.Protocol == routeProtocol:
				found = append(found, ruleOf(called, rule.IifName, rule.Table, rule.Priority))
			default:
				found = append(found, fmt.Sprintf("%s %s", called, rule))
			}
		}
	}
	return found, nil
}

func prefixOf(dst *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(dst.IP)
	bits, _ := dst.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

func neighbours(handle *netlink.Handle, ours map[int]string) ([]string, error) {
	var found []string
	for index, link := range ours {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := handle.NeighList(index, family)
			if err != nil {
				return nil, fmt.Errorf("list neighbours of %s: %w", link, err)
			}
			for _, neigh := range list {
				if neigh.State&netlink.NUD_PERMANENT != 0 {
					addr, _ := netip.AddrFromSlice(neigh.IP)
					found = append(found, fmt.Sprintf("%s is %s on %s", addr.Unmap(), neigh.HardwareAddr, link))
				}
			}
		}
	}
	return found, nil
}

// forwarding lists the static entries of our bridges; those of state permanent
// are the ports' own.
func forwarding(handle *netlink.Handle, name, ours map[int]string) ([]string, error) {
	list, err := handle.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries: %w", err)
	}
	var found []string
	for _, entry := range list {
		if _, ok := ours[entry.MasterIndex]; ok && entry.State&netlink.NUD_NOARP != 0 {
			found = append(found, fmt.Sprintf("%s on %s", entry.HardwareAddr, name[entry.LinkIndex]))
		}
	}
	return found, nil
}

// pins reads the sets of both tables that tell of ports.
func pins(ns *netlab.NS, found *facts) error {
	file, err := ns.Open()
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	conn, err := nftables.New(nftables.WithNetNSFd(int(file.Fd())))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	bridge := &nftables.Table{Family: nftables.TableFamilyBridge, Name: firewallTable}
	inet := &nftables.Table{Family: nftables.TableFamilyINet, Name: firewallTable}
	for _, set := range []struct {
		table *nftables.Table
		name  string
		add   func(key []byte)
	}{
		{bridge, "ports", func(key []byte) { found.addPort("bridge", key) }},
		{inet, "ports", func(key []byte) { found.addPort("inet", key) }},
		{bridge, "sources4", found.addSource},
		{bridge, "sources6", found.addSource},
		{inet, "devices", func(key []byte) { found.guarded = append(found.guarded, linkName(key)) }},
		{inet, "near4", found.addBlock},
		{inet, "near6", found.addBlock},
	} {
		elements, err := setElements(conn, set.table, set.name)
		if err != nil {
			return err
		}
		for _, element := range elements {
			if !element.IntervalEnd {
				set.add(element.Key)
			}
		}
	}
	return nil
}

func setElements(conn *nftables.Conn, table *nftables.Table, name string) ([]nftables.SetElement, error) {
	set, err := conn.GetSetByName(table, name)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read set %s: %w", name, err)
	}
	elements, err := conn.GetSetElements(set)
	if err != nil {
		return nil, fmt.Errorf("read set %s: %w", name, err)
	}
	return elements, nil
}

func (f *facts) addPort(family string, key []byte) {
	f.pinnedPorts = append(f.pinnedPorts, pinnedPort(family, int(binary.NativeEndian.Uint32(key))))
}

// addSource decodes port, MAC and address, each padded to four bytes.
func (f *facts) addSource(key []byte) {
	const macAt, addrAt = 4, 12
	addr, _ := netip.AddrFromSlice(key[addrAt:])
	f.pinnedSources = append(f.pinnedSources, pinnedSource(int(binary.NativeEndian.Uint32(key)), net.HardwareAddr(key[macAt:macAt+6]), addr))
}

// addBlock decodes a link's name and the first address of a block.
func (f *facts) addBlock(key []byte) {
	addr, _ := netip.AddrFromSlice(key[unix.IFNAMSIZ:])
	f.guarded = append(f.guarded, guardedBlock(linkName(key), addr))
}

// linkName decodes a name that zeroes end.
func linkName(key []byte) string {
	name, _, _ := bytes.Cut(key[:unix.IFNAMSIZ], []byte{0})
	return string(name)
}
