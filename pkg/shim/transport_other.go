//go:build !linux

package shim

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// Listen is not available on this system.
func Listen(path string) (net.Listener, error) {
	return nil, fmt.Errorf("listen on %s: %w", path, errors.ErrUnsupported)
}

func dialSocket(path string) (net.Conn, error) {
	return nil, fmt.Errorf("dial %s: %w", path, errors.ErrUnsupported)
}

func writeWithFile(net.Conn, []byte, *os.File) error {
	return fmt.Errorf("pass a file: %w", errors.ErrUnsupported)
}

func readWithFile(conn net.Conn, header []byte) (int, *os.File, error) {
	n, err := conn.Read(header)
	return n, nil, err
}
