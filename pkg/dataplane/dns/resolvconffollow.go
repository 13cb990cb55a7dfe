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
	roots []string // at least one, best first
	log   *slog.Logger

	fault string // what was wrong at the last read
	using string // the root of the last read that went well
}

func newHostResolver(roots []string, log *slog.Logger) *hostResolver {
	if len(roots) == 0 {
		roots = []string{"/"}
	}
	return &hostResolver{roots: roots, log: log, using: roots[0]}
}

// read returns the upstreams as they are now. It logs a fault when it appears,
// changes or ends, and when another root is read than before.
func (h *hostResolver) read() ([]netip.AddrPort, error) {
	root, upstreams, err := h.readBest()
	fault := ""
	switch {
	case root == "":
		fault = err.Error()
	case len(upstreams) == 0:
		fault = "no nameserver in " + filepath.Join(root, resolvConf)
	}
	if root != "" && root != h.using {
		h.using = root
		h.log.Warn("host's name servers are read elsewhere than before", "op", "dns", "file", filepath.Join(root, resolvConf), "err", err)
	}
	if fault != h.fault {
		h.fault = fault
		switch {
		case root == "":
			h.log.Warn("host's name servers not readable, keeping those known", "op", "dns", "err", err)
		case fault != "":
			h.log.Warn("host has no name servers, names of others are refused", "op", "dns", "err", fault)
		default:
			h.log.Info("host's name servers readable again", "op", "dns")
		}
	}
	if root == "" {
		return nil, err
	}
	return upstreams, nil
}

// readBest returns what the first root says that can be read, which root that is,
// and what was wrong with those before it. No root is "".
func (h *hostResolver) readBest() (string, []netip.AddrPort, error) {
	var errs []error
	for _, root := range h.roots {
		upstreams, err := hostUpstreams(root)
		if err == nil {
			return root, upstreams, errors.Join(errs...)
		}
		errs = append(errs, err)
	}
	return "", nil, errors.Join(errs...)
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
