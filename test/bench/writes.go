//go:build linux

package main

import (
	"context"
	"log/slog"
	"strings"
	"sync"
)

// writeCounter is a log handler that counts the peers a userspace device is
// told to change: wireguard-go notes every such line of its configuration,
// whoever wrote it, as "peer(KEY) - UAPI: WHAT". It listens only between watch
// and written, since noting everything takes time.
type writeCounter struct {
	mu    sync.Mutex // guards peers
	peers map[string]bool
}

// watch begins to count.
func (w *writeCounter) watch() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peers = map[string]bool{}
}

// written returns how many peers were written since watch.
func (w *writeCounter) written() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.peers)
	w.peers = nil
	return n
}

// Enabled tells whether it counts now.
func (w *writeCounter) Enabled(context.Context, slog.Level) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.peers != nil
}

// Handle counts a record of wireguard-go's.
func (w *writeCounter) Handle(_ context.Context, record slog.Record) error {
	record.Attrs(func(a slog.Attr) bool {
		if peer, _, found := strings.Cut(a.Value.String(), " - UAPI: "); found {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.peers != nil {
				w.peers[peer] = true
			}
		}
		return true
	})
	return nil
}

// WithAttrs returns the same handler: only records matter.
func (w *writeCounter) WithAttrs([]slog.Attr) slog.Handler { return w }

// WithGroup returns the same handler: only records matter.
func (w *writeCounter) WithGroup(string) slog.Handler { return w }
