package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"
)

// soleName is an abstract Unix socket. Each network namespace has its own of
// that name, and the kernel takes it back from a process that dies.
const soleName = "@zlayer-overlayd"

// errInCharge means that another process is the sole one.
var errInCharge = errors.New("another overlayd is in charge of this network namespace")

// becomeSole makes this process the only one that may change the data plane of
// its network namespace, until the listener is closed. The lock beside the
// daemon's socket does not tell: a forgotten --config names another socket, on
// the same kernel.
func becomeSole(ctx context.Context) (net.Listener, error) {
	sole, err := new(net.ListenConfig).Listen(ctx, "unix", soleName)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%w: end it first (`ss -xlp src %s` names it)", errInCharge, soleName)
	case err != nil:
		return nil, fmt.Errorf("lock network namespace: %w", err)
	}
	return sole, nil
}

// succeed is becomeSole that waits until the one in charge has ended. A daemon
// lets go of its socket and its metrics address before.
func succeed(ctx context.Context, log *slog.Logger) (net.Listener, error) {
	const interval = 10 * time.Millisecond // traffic between nodes may be waiting
	for said := false; ; said = true {
		sole, err := becomeSole(ctx)
		if !errors.Is(err, errInCharge) {
			return sole, err
		}
		if !said {
			log.Info("waiting until the daemon in charge ends", "op", "run")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(interval):
		}
	}
}
