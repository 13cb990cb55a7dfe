package wireguard

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const threadNamespace = "/proc/thread-self/ns/net"

// namespace is the network namespace a device was opened in. What is opened
// later for the device, like sockets and TUNs, has to be opened there too,
// whatever thread asks.
type namespace struct {
	file *os.File
}

func currentNamespace() (*namespace, error) {
	file, err := os.Open(threadNamespace)
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return &namespace{file: file}, nil
}

// do runs fn in the namespace: on the calling thread if that is there already,
// as in a daemon it is, else on one that joins it for the time.
func (n *namespace) do(fn func() error) error {
	var here, there unix.Stat_t
	if err := unix.Stat(threadNamespace, &here); err != nil {
		return fmt.Errorf("look at own network namespace: %w", err)
	}
	if err := unix.Fstat(int(n.file.Fd()), &there); err != nil {
		return fmt.Errorf("look at the device's network namespace: %w", err)
	}
	if here.Ino == there.Ino && here.Dev == there.Dev {
		return fn()
	}
	done := make(chan error, 1)
	go func() { done <- n.visit(fn) }()
	return <-done
}

// visit runs fn on a thread that joins the namespace. The thread goes back to
// work only if it has come back; otherwise it ends with the goroutine.
func (n *namespace) visit(fn func() error) error {
	runtime.LockOSThread()
	home, err := os.Open(threadNamespace)
	if err == nil {
		err = unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET)
	}
	if err != nil {
		return fmt.Errorf("join the device's network namespace: %w", err)
	}
	err = fn()
	if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
	return errors.Join(err, home.Close())
}

func (n *namespace) close() error { return n.file.Close() }
