package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// soleName is an abstract Unix socket. Each network namespace has its own of
// that name, and the kernel takes it back from a process that dies.
const soleName = "@zlayer-overlayd"

// becomeSole makes this process the only one that may change the data plane of
// its network namespace, until the listener is closed. The lock beside the
// daemon's socket does not tell: a forgotten --config names another socket, on
// the same kernel.
func becomeSole(ctx context.Context) (net.Listener, error) {
	sole, err := new(net.ListenConfig).Listen(ctx, "unix", soleName)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("another overlayd is in charge of this network namespace: end it first (`ss -xlp src %s` names it)", soleName)
	case err != nil:
		return nil, fmt.Errorf("lock network namespace: %w", err)
	}
	return sole, nil
}
