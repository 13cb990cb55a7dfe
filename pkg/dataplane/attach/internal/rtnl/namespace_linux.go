package rtnl

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ownNamespace is the calling thread's network namespace.
const ownNamespace = "/proc/thread-self/ns/net"

// Host reaches network namespaces from threads that must stay in their own:
// the host's namespace, and those of sandboxes by their open files. Safe for
// concurrent use.
type Host struct {
	host *os.File // the namespace that OpenHost was called in
	base *os.File // the namespace of the process's threads, to come back to
}

// OpenHost takes the namespace of the calling thread for the host's.
func OpenHost() (*Host, error) {
	host, err := os.Open(ownNamespace)
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	// A thread that is elsewhere is locked to its goroutine, so a new goroutine runs where the process does.
	opened := make(chan error, 1)
	h := &Host{host: host}
	go func() {
		base, err := os.Open(ownNamespace)
		h.base = base
		opened <- err
	}()
	if err := <-opened; err != nil {
		return nil, errors.Join(fmt.Errorf("open the process's network namespace: %w", err), host.Close())
	}
	return h, nil
}

// IsHost tells whether ns is the host's namespace.
func (h *Host) IsHost(ns *os.File) (bool, error) {
	host, err := h.host.Stat()
	if err != nil {
		return false, fmt.Errorf("look at the host's network namespace: %w", err)
	}
	other, err := ns.Stat()
	if err != nil {
		return false, fmt.Errorf("look at network namespace %s: %w", ns.Name(), err)
	}
	return os.SameFile(host, other), nil
}

// Close forgets the namespaces. Sockets opened through h stay open.
func (h *Host) Close() error { return errors.Join(h.host.Close(), h.base.Close()) }

// Socket opens a socket in the host's namespace.
func (h *Host) Socket() (*Socket, error) { return h.SocketIn(h.host) }

// SocketIn opens a socket in the namespace ns.
func (h *Host) SocketIn(ns *os.File) (*Socket, error) {
	var s *Socket
	err := h.in(ns, func() (err error) {
		s, err = Open()
		return err
	})
	return s, err
}

// Do runs fn on a thread in the host's namespace.
func (h *Host) Do(fn func() error) error { return h.in(h.host, fn) }

// in runs fn on a thread that has joined ns. A thread that cannot come back is
// ended with its goroutine.
func (h *Host) in(ns *os.File, fn func() error) error {
	fd, err := Descriptor(ns)
	if err != nil {
		return err
	}
	base, err := Descriptor(h.base)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("join network namespace: %w", err)
			return
		}
		err := fn()
		if unix.Setns(base, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	err = <-done
	runtime.KeepAlive(ns)
	return err
}

// Descriptor returns f's file descriptor without making it blocking, as Fd
// would. It is valid while f is open.
func Descriptor(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("use network namespace %s: %w", f.Name(), err)
	}
	number := -1
	if err := raw.Control(func(fd uintptr) { number = int(fd) }); err != nil {
		return 0, fmt.Errorf("use network namespace %s: %w", f.Name(), err)
	}
	return number, nil
}
