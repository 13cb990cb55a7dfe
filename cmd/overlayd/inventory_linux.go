package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/firewall"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// aliasMark begins the alias of every link of ours.
const aliasMark = linkalias.Mark + " "

// takeInventory reads the network namespace of the process.
func takeInventory(context.Context) (inventory, error) {
	found := inventory{}
	err := errors.Join(found.countLinks(), found.countRoutes(), found.countTables())
	if err != nil {
		return nil, fmt.Errorf("look for what is ours: %w", err)
	}
	return found, nil
}

func (i inventory) countLinks() error {
	links, err := listAgain(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, link := range links {
		if !strings.HasPrefix(link.Attrs().Alias, aliasMark) {
			continue
		}
		switch link.Type() {
		case "veth":
			i[kindPort]++
		case "bridge":
			i[kindBridge]++
		default:
			i[kindDevice]++
		}
	}
	return nil
}

func (i inventory) countRoutes() error {
	routes, err := listAgain(func() ([]netlink.Route, error) {
		filter := &netlink.Route{Protocol: wireguard.RouteProtocol, Table: unix.RT_TABLE_UNSPEC}
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	i.add(kindRoute, len(routes))
	return nil
}

func (i inventory) countTables() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("list firewall tables: %w", err)
	}
	ours := slices.DeleteFunc(tables, func(t *nftables.Table) bool {
		return t.Name != firewall.DefaultTable || t.Family != nftables.TableFamilyINet && t.Family != nftables.TableFamilyBridge
	})
	i.add(kindTable, len(ours))
	return nil
}

// listAgain repeats a listing that the kernel says was changed while it was read.
func listAgain[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 10
	for try := 1; ; try++ {
		items, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == tries {
			return items, err
		}
	}
}
