//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// footprint lists what a namespace holds, a line per thing, sorted: links,
// addresses, routes, rules and nftables tables, without what the kernel itself
// adds for IPv6 on every link, sooner or later. The demo takes one before the
// daemons start and one after they are gone.
func footprint(ns *netlab.NS) ([]string, error) {
	handle, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	var things []string
	for _, list := range []func(*netlink.Handle) ([]string, error){listLinks, listRoutes, listRules} {
		more, err := list(handle)
		if err != nil {
			return nil, fmt.Errorf("list what %s holds: %w", ns.Name, err)
		}
		things = append(things, more...)
	}
	tables, err := listTables(ns)
	if err != nil {
		return nil, fmt.Errorf("list what %s holds: %w", ns.Name, err)
	}
	things = append(things, tables...)
	slices.Sort(things)
	return things, nil
}

func listLinks(handle *netlink.Handle) ([]string, error) {
	links, err := handle.LinkList()
	if err != nil {
		return nil, err
	}
	var things []string
	for _, link := range links {
		things = append(things, "link "+link.Attrs().Name)
		addrs, err := handle.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		for _, addr := range addrs {
			if addr.IP.IsLinkLocalUnicast() {
				continue
			}
			things = append(things, "address "+addr.IPNet.String()+" on "+link.Attrs().Name)
		}
	}
	return things, nil
}

func listRoutes(handle *netlink.Handle) ([]string, error) {
	// Without a table filter only the main table is listed.
	every := &netlink.Route{Table: 0}
	var things []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := handle.RouteListFiltered(family, every, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		for _, route := range routes {
			if route.Table == unix.RT_TABLE_LOCAL || route.Dst != nil && route.Dst.IP.IsLinkLocalUnicast() {
				continue
			}
			things = append(things, fmt.Sprintf("route of type %d %s", route.Type, route)) // refusals count, too
		}
	}
	return things, nil
}

func listRules(handle *netlink.Handle) ([]string, error) {
	rules, err := handle.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var things []string
	for _, rule := range rules {
		things = append(things, rule.String())
	}
	return things, nil
}

func listTables(ns *netlab.NS) ([]string, error) {
	file, err := ns.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	conn, err := nftables.New(nftables.WithNetNSFd(int(file.Fd())))
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, err
	}
	var things []string
	for _, table := range tables {
		things = append(things, "nftables table "+table.Name)
	}
	return things, nil
}

// sameFootprint returns an error that names what is there now and was not
// before, or the reverse.
func sameFootprint(node string, before, after []string) error {
	var changes []string
	for _, thing := range after {
		if !slices.Contains(before, thing) {
			changes = append(changes, "left over: "+thing)
		}
	}
	for _, thing := range before {
		if !slices.Contains(after, thing) {
			changes = append(changes, "gone: "+thing)
		}
	}
	if len(changes) == 0 {
		return nil
	}
	return fmt.Errorf("node %s is not as it was: %s", node, strings.Join(changes, "; "))
}
