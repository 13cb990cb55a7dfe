//go:build linux

package audit

import (
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
	// routeProtocol marks our routes.
	routeProtocol = 122
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
	found.ports = ports(links, ours)
	held := maps.Clone(ours) // bridges and ports by index
	for name, index := range found.ports {
		held[index] = name
	}
	if found.routes, err = routes(handle, held); err != nil {
		return facts{}, err
	}
	if found.neighbours, err = neighbours(handle, held); err != nil {
		return facts{}, err
	}
	if found.forwarding, err = forwarding(handle, links, ours); err != nil {
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

// routes lists those of every table.
func routes(handle *netlink.Handle, ours map[int]string) ([]string, error) {
	every := &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_UNSPEC}
	var found []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := handle.RouteListFiltered(family, every, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, route := range list {
			if link, ok := ours[route.LinkIndex]; ok {
				found = append(found, fmt.Sprintf("%s by %s", prefixOf(route.Dst), link))
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
func forwarding(handle *netlink.Handle, links []netlink.Link, ours map[int]string) ([]string, error) {
	list, err := handle.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries: %w", err)
	}
	name := map[int]string{}
	for _, link := range links {
		name[link.Attrs().Index] = link.Attrs().Name
	}
	var found []string
	for _, entry := range list {
		if _, ok := ours[entry.MasterIndex]; ok && entry.State&netlink.NUD_NOARP != 0 {
			found = append(found, fmt.Sprintf("%s on %s", entry.HardwareAddr, name[entry.LinkIndex]))
		}
	}
	return found, nil
}

// pins reads the sets of the bridge table.
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
	table := &nftables.Table{Family: nftables.TableFamilyBridge, Name: firewallTable}
	for _, set := range []string{"ports", "sources4", "sources6"} {
		elements, err := setElements(conn, table, set)
		if err != nil {
			return err
		}
		for _, element := range elements {
			found.addPin(set, element.Key)
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

// addPin decodes port, MAC and address, each padded to four bytes.
func (f *facts) addPin(set string, key []byte) {
	index := int(binary.NativeEndian.Uint32(key))
	if set == "ports" {
		f.pinnedPorts = append(f.pinnedPorts, pinnedPort(index))
		return
	}
	const macAt, addrAt = 4, 12
	addr, _ := netip.AddrFromSlice(key[addrAt:])
	f.pinnedSources = append(f.pinnedSources, pinnedSource(index, net.HardwareAddr(key[macAt:macAt+6]), addr))
}
