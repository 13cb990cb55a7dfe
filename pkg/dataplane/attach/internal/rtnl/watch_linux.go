package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrOverrun says that the kernel had more to tell than the socket could hold.
// It says so once, and keeps silent until the socket is empty, so subscribe
// anew and then read what may have changed.
var ErrOverrun = errors.New("changes were lost")

// watchBuffer holds the announcements of some thousand links at once.
const watchBuffer = 4 << 20

// Watch is a subscription to changes of a namespace. It belongs to one
// goroutine, except for Close.
type Watch struct {
	file *os.File
	buf  []byte
}

// Watch subscribes to the groups (unix.RTNLGRP_*) and lets only messages of
// the given types through.
func (h *Host) Watch(groups, types []uint16) (*Watch, error) {
	var w *Watch
	err := h.Do(func() (err error) {
		w, err = openWatch(groups, types)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes: %w", err)
	}
	return w, nil
}

func openWatch(groups, types []uint16) (*Watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	w := &Watch{file: os.NewFile(uintptr(fd), "rtnetlink"), buf: make([]byte, dumpSize)}
	// Beyond the system's limit it takes a privilege in the first user namespace; less room only means reading anew earlier.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchBuffer)
	}
	if err := subscribe(fd, groups, types); err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	return w, nil
}

// subscribe filters before it joins, so that nothing unwanted gets in between.
func subscribe(fd int, groups, types []uint16) error {
	filter := typeFilter(types)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	for _, group := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group)); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// typeFilter is a BPF program that passes messages of the given types, whole,
// and nothing else. On a busy host the rest is a thousand times more.
func typeFilter(types []uint16) []unix.SockFilter {
	const typeOffset = 4 // in struct nlmsghdr
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: typeOffset}}
	for i, t := range types {
		var native [2]byte
		binary.NativeEndian.PutUint16(native[:], t)
		program = append(program, unix.SockFilter{
			Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(types) - i),
			K: uint32(binary.BigEndian.Uint16(native[:])), // BPF loads in network byte order
		})
	}
	return append(program,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1})
}

// Receive waits for changes and hands them out. After an error, ErrOverrun
// among them, the subscription must be closed.
func (w *Watch) Receive(each func(m Message)) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("read changes: %w", err)
	}
	n := 0
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, _, failed = unix.Recvfrom(int(fd), w.buf, unix.MSG_DONTWAIT)
		return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
	})
	switch {
	case err != nil:
		return fmt.Errorf("read changes: %w", err)
	case errors.Is(failed, unix.ENOBUFS):
		return ErrOverrun
	case failed != nil:
		return fmt.Errorf("read changes: %w", os.NewSyscallError("recvfrom", failed))
	}
	return split(w.buf[:n], func(h unix.NlMsghdr, data []byte) { each(Message{Type: h.Type, Data: data}) })
}

// Close ends the subscription and a Receive under way. Closing twice is fine.
func (w *Watch) Close() error {
	if err := w.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("end subscription: %w", err)
	}
	return nil
}
