package dns

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"
)

// resolvPoll is how often the host's upstreams are read.
const resolvPoll = 2 * time.Second

// hostResolver reads the host's upstreams again and again. Not safe for concurrent use.
type hostResolver struct {
	roots []string // at least one, best first; those after one that was read count no more
	log   *slog.Logger

	fault string // what was wrong at the last read
}

func newHostResolver(roots []string, log *slog.Logger) *hostResolver {
	if len(roots) == 0 {
		roots = []string{"/"}
	}
	return &hostResolver{roots: roots, log: log}
}

// read returns the upstreams as they are now. It logs a fault when it appears,
// changes or ends.
func (h *hostResolver) read() ([]netip.AddrPort, error) {
	root, upstreams, skipped := h.readBest()
	fault := ""
	switch {
	case root == "":
		fault = "keeping those known: " + skipped.Error()
	case len(upstreams) == 0:
		fault = "other names are refused: no nameserver in " + upstreamsPlace(root)
	case skipped != nil:
		fault = "taking this container's: " + skipped.Error()
	}
	if fault != h.fault {
		h.fault = fault
		if fault == "" {
			h.log.Info("host's name servers are known again", "op", "dns")
		} else {
			h.log.Warn("host's name servers are not known", "op", "dns", "err", fault)
		}
	}
	if root == "" {
		return nil, skipped
	}
	return upstreams, nil
}

// readBest returns the first root that can be read, what that says, and what was
// wrong with those before it. No root is "".
func (h *hostResolver) readBest() (string, []netip.AddrPort, error) {
	var skipped []error
	for i, root := range h.roots {
		upstreams, err := systemUpstreams(root)
		if err == nil {
			h.roots = h.roots[:i+1]
			return root, upstreams, errors.Join(skipped...)
		}
		skipped = append(skipped, err)
	}
	return "", nil, errors.Join(skipped...)
}

// follow calls refresh now and then until ctx ends. Two small files are read sooner
// than watched: no events tell of a file that is mounted over, or of a folder that comes.
func (h *hostResolver) follow(ctx context.Context, refresh func()) {
	tick := time.NewTicker(resolvPoll)
	defer tick.Stop()
	for {
		refresh()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
