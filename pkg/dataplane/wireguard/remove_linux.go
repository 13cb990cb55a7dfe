package wireguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Remove removes the device that link names, of this or a former process, with
// its routes. What is not there, or not ours, is left as it is. An unfinished
// link has no routes. The device must not be open.
func Remove(ctx context.Context, link Link) error {
	if err := remove(ctx, link); err != nil {
		return fmt.Errorf("remove WireGuard device %s: %w", link.Name, err)
	}
	return nil
}

func remove(ctx context.Context, link Link) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := link.check(); err != nil {
		return err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer nl.Close()
	found, err := findLink(nl, link.Name)
	if err == nil && found != nil && link.checkOurs(found) == nil {
		err = deleteLink(nl, found)
	}
	if !link.Unfinished {
		err = errors.Join(err, removeRefusals(link.Table))
	}
	return errors.Join(err, removeStaleSocket(link.Name))
}

// removeRefusals removes the routes of a table that refuse: no other routes with
// our protocol number do.
func removeRefusals(table int) error {
	routes, err := openRouteSocket(table)
	if err != nil {
		return err
	}
	return errors.Join(routes.removeRefusals(), routes.close())
}

func (s *routeSocket) removeRefusals() error {
	const noLink = 0
	found, err := s.ours(noLink)
	if err != nil {
		return err
	}
	return s.remove(found, noLink)
}

// RemoveRefusals removes the routes that refuse from all tables between first and
// last, which Remove misses where a device is gone already: they outlive it, and
// [List] no longer tells its table. Routes of others stay.
func RemoveRefusals(ctx context.Context, first, last int) error {
	routes, err := openRouteSocket(first)
	for table := first; table <= last && err == nil; table++ {
		routes.table = uint32(table)
		err = cmp.Or(context.Cause(ctx), routes.removeRefusals())
	}
	if routes != nil {
		err = errors.Join(err, routes.close())
	}
	if err != nil {
		return fmt.Errorf("remove the routes of WireGuard devices that are gone: %w", err)
	}
	return nil
}

// List returns the devices of ours that the kernel has, with whatever process
// or none: those whose owners are gone are to be removed.
func List(ctx context.Context) ([]Link, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("list WireGuard devices: open netlink: %w", err)
	}
	defer nl.Close()
	links, err := nl.LinkList()
	for range dumpTries {
		if !errors.Is(err, netlink.ErrDumpInterrupted) || ctx.Err() != nil {
			break
		}
		links, err = nl.LinkList()
	}
	if err = cmp.Or(context.Cause(ctx), err); err != nil {
		return nil, fmt.Errorf("list WireGuard devices: %w", err)
	}
	var ours []Link
	for _, link := range links {
		if found, err := ourLink(link); err == nil {
			ours = append(ours, found)
		}
	}
	return ours, nil
}

// ourLink tells which device of ours link is.
func ourLink(link netlink.Link) (Link, error) {
	attrs := link.Attrs()
	if unfinished(link) && attrs.Name != probeName {
		return Link{Name: attrs.Name, Unfinished: true}, nil
	}
	if backendOf(link) == "" {
		return Link{}, fmt.Errorf("link %s (%s) %w", attrs.Name, link.Type(), errForeign)
	}
	found, err := parseAlias(attrs.Alias)
	found.Name = attrs.Name
	return found, err
}

// removeStaleSocket removes what a killed process left for wgctrl, and the
// folder if nobody else has something in it.
func removeStaleSocket(name string) error {
	defer func() { _ = os.Remove(UAPIDir) }()
	conn, err := net.Dial("unix", uapiPath(name))
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(uapiPath(name))
	}
	return nil
}
