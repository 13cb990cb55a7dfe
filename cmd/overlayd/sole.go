package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"
)

// sole is held by the only process that may change the data plane. Closing it,
// and the process's end, let the next one in.
type sole interface {
	io.Closer
	// forget removes what is left of it on disk, while it is held.
	forget() error
}

// errInCharge means that another process is the sole one.
var errInCharge = errors.New("another overlayd is in charge")

// succeed is becomeSole that waits until the one in charge has ended. A daemon
// lets go of its socket and its metrics address before.
func succeed(ctx context.Context, log *slog.Logger) (sole, error) {
	const interval = 10 * time.Millisecond // traffic between nodes may be waiting
	for said := false; ; said = true {
		held, err := becomeSole()
		if !errors.Is(err, errInCharge) {
			return held, err
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
