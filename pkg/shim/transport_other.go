//go:build !linux && !windows

package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// DefaultSocket is where overlayd would listen unless told otherwise.
const DefaultSocket = "/run/zlayer/overlayd.sock"

// Listen is not available on this system.
func Listen(path string) (net.Listener, error) {
	return nil, fmt.Errorf("listen on %s: %w", path, errors.ErrUnsupported)
}

// CheckSocket is not available on this system.
func CheckSocket(string) error { return errors.ErrUnsupported }

func dialSocket(_ context.Context, path string) (net.Conn, error) {
	return nil, fmt.Errorf("dial %s: %w", path, errors.ErrUnsupported)
}

func shortages() []syscall.Errno { return nil }

func writeWithFile(net.Conn, []byte, *os.File) error {
	return fmt.Errorf("pass a file: %w", errors.ErrUnsupported)
}

func readWithFile(conn net.Conn, header []byte) (int, *os.File, error) {
	n, err := conn.Read(header)
	return n, nil, err
}
