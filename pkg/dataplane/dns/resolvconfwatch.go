package dns

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// resolvPoll finds what events cannot tell: a file that is mounted over, a link
	// into another folder, a host out of inotify instances.
	resolvPoll = 10 * time.Second
	// resolvSettle is how long the folders must be quiet before they are read, so
	// that a file that is written in pieces is read whole.
	resolvSettle = 100 * time.Millisecond
	// resolvSettleLimit bounds the wait for that.
	resolvSettleLimit = 2 * time.Second
)

// hostResolver reads the host's upstreams again and again. Not safe for concurrent use.
type hostResolver struct {
	root string
	log  *slog.Logger

	fault   string // what was wrong at the last read
	watcher *fsnotify.Watcher
	refused bool // there was no watcher, and that was logged
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

// follow calls refresh at every change, and now and then, until ctx ends.
func (h *hostResolver) follow(ctx context.Context, refresh func()) {
	defer h.close()
	for {
		h.watch()
		// Read after the watch stands, so no change falls in between.
		refresh()
		var events chan fsnotify.Event
		var faults chan error
		if h.watcher != nil {
			events, faults = h.watcher.Events, h.watcher.Errors
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(resolvPoll):
		case <-events:
			settle(ctx, events)
		case err := <-faults:
			h.log.Debug("watch of the host's name servers, reading anyway", "op", "dns", "err", err)
		}
	}
}

// watch has the folders of all files watched that are there. Folders rather than
// files, because files are replaced by renaming.
func (h *hostResolver) watch() {
	if h.watcher == nil {
		watcher, err := fsnotify.NewWatcher()
		if err != nil {
			if !h.refused {
				h.refused = true
				h.log.Warn("no events for the host's name servers, reading them at intervals", "op", "dns", "every", resolvPoll, "err", err)
			}
			return
		}
		h.watcher, h.refused = watcher, false
	}
	for _, name := range []string{resolvConf, resolvedConf, networkManagerConf} {
		path := filepath.Join(h.root, name)
		h.watchFolder(filepath.Dir(path))
		// Where a link leads, things may change too.
		if target, err := filepath.EvalSymlinks(path); err == nil {
			h.watchFolder(filepath.Dir(target))
		}
	}
}

// watchFolder is repeated without effect. A folder that is not there is watched
// when it is.
func (h *hostResolver) watchFolder(path string) {
	if err := h.watcher.Add(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.log.Debug("folder of name servers is not watched", "op", "dns", "err", err)
	}
}

func (h *hostResolver) close() {
	if h.watcher == nil {
		return
	}
	if err := h.watcher.Close(); err != nil {
		h.log.Debug("close watch of the host's name servers", "op", "dns", "err", err)
	}
	h.watcher = nil
}

// settle waits until there has been no event for a while.
func settle(ctx context.Context, events <-chan fsnotify.Event) {
	limit := time.After(resolvSettleLimit)
	for {
		select {
		case <-ctx.Done():
			return
		case <-limit:
			return
		case _, ok := <-events:
			if !ok {
				return
			}
		case <-time.After(resolvSettle):
			return
		}
	}
}
