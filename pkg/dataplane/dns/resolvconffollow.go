package dns

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
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
	text, fault := "", ""
	switch {
	case root == "":
		text, fault = "host's name servers not readable, keeping those known", skipped.Error()
	case len(upstreams) == 0:
		text, fault = "host has no name servers, names of others are refused", "no nameserver in "+filepath.Join(root, resolvConf)
	case skipped != nil:
		text, fault = "host's name servers not readable, taking this container's", skipped.Error()
	}
	switch {
	case fault == h.fault:
	case fault == "":
		h.log.Info("host's name servers readable again", "op", "dns")
	default:
		h.log.Warn(text, "op", "dns", "err", fault)
	}
	h.fault = fault
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
		upstreams, err := hostUpstreams(root)
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
