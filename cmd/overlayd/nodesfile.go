package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

const (
	// settle is how long a folder must be quiet before the file is read, so
	// that a file written in pieces is read whole.
	settle = 100 * time.Millisecond
	// settleLimit bounds the wait in a folder that is never quiet.
	settleLimit = 2 * time.Second
	// poll finds what events cannot tell: a link to a file elsewhere, a folder
	// that was replaced, a host out of inotify instances.
	poll = 10 * time.Second
	// retry is the pace while the file is not in force, because it is missing or
	// wrong or the data plane could not take it: what is awaited is often there
	// a moment later.
	retry = time.Second
)

// nodesFile follows the list of nodes. Only a whole and valid file counts:
// while it is missing or wrong, the last good set stays. Safe for concurrent
// use.
type nodesFile struct {
	config Config
	log    *slog.Logger
	// apply gets every new set, and the same one again after an error.
	apply func(context.Context, dataplane.NodeSet) error

	mu      sync.Mutex // guards the fields below
	data    []byte     // the last file that parsed
	nodes   []wireguard.Node
	applied bool  // apply took nodes
	fault   error // what is wrong with the file now
}

// newNodesFile reads and checks the file once, without applying it. An error
// is one line that names the key.
func newNodesFile(config Config, log *slog.Logger, apply func(context.Context, dataplane.NodeSet) error) (*nodesFile, error) {
	f := &nodesFile{config: config, log: log, apply: apply}
	if err := f.read(); err != nil {
		return nil, fmt.Errorf("nodesFile: %w", err)
	}
	return f, nil
}

// read takes over the file if it changed and is valid.
func (f *nodesFile) read() error {
	data, err := readBounded(f.config.NodesFile, nodesLimit)
	if err != nil {
		return err
	}
	f.mu.Lock()
	same := f.nodes != nil && bytes.Equal(data, f.data)
	f.mu.Unlock()
	if same {
		return nil
	}
	nodes, err := parseNodes(data, f.config)
	if err != nil {
		return fmt.Errorf("%s: %w", f.config.NodesFile, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.data, f.nodes, f.applied = data, nodes, false
	return nil
}

// Fault tells why the file as it is now is not in force, nil if it is.
func (f *nodesFile) Fault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fault
}

// Apply offers the set in force to the data plane unless it has it already.
func (f *nodesFile) Apply(ctx context.Context) error {
	f.mu.Lock()
	nodes, done := f.nodes, f.applied
	f.mu.Unlock()
	if done {
		return nil
	}
	if err := f.apply(ctx, dataplane.NodeSet{Cluster: f.config.ClusterCIDRs, Nodes: nodes}); err != nil {
		return fmt.Errorf("apply nodes file: %w", err)
	}
	f.mu.Lock()
	f.applied = true
	f.mu.Unlock()
	f.log.Info("nodes file applied", "op", "nodes", "nodes", len(nodes))
	return nil
}

// InForce tells whether the data plane has the file as it is now.
func (f *nodesFile) InForce() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied && f.fault == nil
}

// Run follows the file until ctx ends.
func (f *nodesFile) Run(ctx context.Context) error {
	folder := newFolderWatch(filepath.Dir(f.config.NodesFile), f.log)
	defer folder.Close()
	for {
		folder.Ensure()
		// Read after the watch stands, so no change falls in between.
		f.refresh(ctx)
		pause := poll
		if !f.InForce() {
			pause = retry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		case event := <-folder.Events():
			folder.Note(event)
			folder.Settle(ctx)
		case err := <-folder.Errors():
			f.log.Debug("nodes file watch, reading anyway", "op", "nodes", "err", err)
		}
	}
}

// refresh reads and applies once. It logs a fault when it appears, changes or ends.
func (f *nodesFile) refresh(ctx context.Context) {
	err := f.read()
	f.mu.Lock()
	before := f.fault
	f.fault = err
	f.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		f.log.Warn("nodes file not usable, keeping the last good set", "op", "nodes", "err", err)
	case err == nil && before != nil:
		f.log.Info("nodes file usable again", "op", "nodes")
	}
	if err := f.Apply(ctx); err != nil && ctx.Err() == nil {
		f.log.Warn("node set not applied, will try again", "op", "nodes", "err", err)
	}
}

// folderWatch tells of changes in one folder. A folder rather than a file is
// watched because files are replaced by renaming, and a ConfigMap's by
// renaming a link beside them. It does without events where it cannot have
// them. Not safe for concurrent use.
type folderWatch struct {
	path    string
	log     *slog.Logger
	watcher *fsnotify.Watcher // nil while there is none
	refused bool              // the last try failed, and was logged
}

func newFolderWatch(path string, log *slog.Logger) *folderWatch {
	return &folderWatch{path: path, log: log}
}

// Ensure starts the watch if it does not stand.
func (w *folderWatch) Ensure() {
	if w.watcher != nil {
		return
	}
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		if err = watcher.Add(w.path); err == nil {
			w.watcher, w.refused = watcher, false
			return
		}
		err = errors.Join(err, watcher.Close())
	}
	if !w.refused {
		w.refused = true
		w.log.Warn("no events for the nodes file, reading it at intervals", "op", "nodes", "every", poll, "err", err)
	}
}

// Events is nil, and so blocks forever, while there is no watch.
func (w *folderWatch) Events() <-chan fsnotify.Event {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Events
}

// Errors is like Events.
func (w *folderWatch) Errors() <-chan error {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Errors
}

// Note drops the watch when the folder itself went away.
func (w *folderWatch) Note(event fsnotify.Event) {
	if event.Name == w.path && event.Has(fsnotify.Remove|fsnotify.Rename) {
		w.Close()
	}
}

// Settle waits until the folder has been quiet for a while.
func (w *folderWatch) Settle(ctx context.Context) {
	limit := time.After(settleLimit)
	for {
		select {
		case <-ctx.Done():
			return
		case <-limit:
			return
		case event := <-w.Events():
			w.Note(event)
		case <-time.After(settle):
			return
		}
	}
}

// Close ends the watch; Ensure may start it again.
func (w *folderWatch) Close() {
	if w.watcher == nil {
		return
	}
	if err := w.watcher.Close(); err != nil {
		w.log.Debug("close folder watch", "op", "nodes", "err", err)
	}
	w.watcher = nil
}
