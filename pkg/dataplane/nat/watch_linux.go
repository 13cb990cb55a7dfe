package nat

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// WatchNetwork calls changed when addresses that [HostAddrs] may return, or
// default routes of the main table, are not what they were: some second after the
// change, one call at a time, and first when it begins to watch, so that nothing is
// missed between what its caller read before and then. It watches the
// network namespace that it is called in, and returns nil when ctx ends.
//
// What the kernel announces only makes it look. So announcements that got lost,
// or that the kernel never makes (of IPv4 routes that went with their link), are
// seen by the next one; and containers that come and go cost one look a second
// and no call.
func WatchNetwork(ctx context.Context, changed func()) error {
	if err := watchNetwork(ctx, changed); err != nil {
		return fmt.Errorf("watch the network of this node: %w", err)
	}
	return nil
}

func watchNetwork(ctx context.Context, changed func()) error {
	socket, err := openEvents()
	if err != nil {
		return err
	}
	defer func() { _ = socket.Close() }()
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer nl.Close()
	before, err := readNetwork(nl) // after the subscription, so that nothing gets in between
	if err != nil {
		return err
	}
	events := make(chan struct{}, 1)
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	defer stop()
	group.Go(func() error { return receiveEvents(ctx, socket, events) })
	group.Go(func() error {
		changed()
		for waitFor(ctx, events) {
			now, err := readNetwork(nl)
			if err != nil {
				return err
			}
			if !now.equal(before) {
				before = now
				changed()
			}
		}
		return nil
	})
	return group.Wait()
}

// receiveEvents signals that something was announced, or that announcements
// were lost, until ctx ends, which closes the socket.
func receiveEvents(ctx context.Context, socket *os.File, events chan<- struct{}) error {
	buf := make([]byte, 1<<16) // what they say does not matter
	for {
		_, err := socket.Read(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("receive changes: %w", err)
		}
		select {
		case events <- struct{}{}:
		default:
		}
	}
}

// openEvents subscribes to changes of links, addresses and default routes.
func openEvents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes: %w", os.NewSyscallError("socket", err))
	}
	socket := os.NewFile(uintptr(fd), "rtnetlink")
	filter := eventFilter()
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE)
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to changes: %w", err), socket.Close())
	}
	return socket, nil
}

// eventFilter drops routes that are no default routes: every container has
// some, and a router may have a million.
func eventFilter() []unix.SockFilter {
	const typeOffset = 4                         // in struct nlmsghdr
	const dstLenOffset = unix.SizeofNlMsghdr + 1 // in struct rtmsg
	foreign := func(kind uint16) uint32 {        // BPF loads in network byte order
		return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, kind)))
	}
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: typeOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: foreign(unix.RTM_NEWROUTE), Jt: 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: foreign(unix.RTM_DELROUTE), Jf: 2},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: dstLenOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}
