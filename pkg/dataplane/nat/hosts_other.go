//go:build !linux && !windows

package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// HostAddrs is for Linux and Windows.
func HostAddrs([]netip.Prefix) ([]netip.Addr, error) {
	return nil, fmt.Errorf("list addresses of this node: %w", errors.ErrUnsupported)
}

// WatchNetwork is for Linux and Windows.
func WatchNetwork(context.Context, func()) error {
	return fmt.Errorf("watch the network of this node: %w", errors.ErrUnsupported)
}
