package dns

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"
)

// resolvPoll is how often the host's upstreams are read.
const resolvPoll = 2 * time.Second

// hostResolver reads the host's upstreams again and again. Not safe for concurrent use.
type hostResolver struct {
	root string
	log  *slog.Logger

	fault string // what was wrong at the last read
}

func newHostResolver(root string, log *slog.Logger) *hostResolver {
	return &hostResolver{root: cmp.Or(root, "/"), log: log}
}

// read returns the upstreams as they are now. It logs a fault when it appears,
// changes or ends.
func (h *hostResolver) read() ([]netip.AddrPort, error) {
	upstreams, err := hostUpstreams(h.root)
	fault := ""
	switch {
	case err != nil:
		fault = err.Error()
	case len(upstreams) == 0:
		fault = "no nameserver in " + filepath.Join(h.root, resolvConf)
	}
	if fault != h.fault {
		h.fault = fault
		switch {
		case err != nil:
			h.log.Warn("host's name servers not readable, keeping those known", "op", "dns", "err", err)
		case fault != "":
			h.log.Warn("host has no name servers, names of others are refused", "op", "dns", "err", fault)
		default:
			h.log.Info("host's name servers readable again", "op", "dns")
		}
	}
	return upstreams, err
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
