package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
)

// patience is how long a condition may take to come true: long, because the
// tests also run in an emulated machine.
const patience = time.Minute

// eventually polls until check returns nil.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", patience, err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// applied records the sets that a nodesFile hands over.
type applied struct {
	mu    sync.Mutex // guards the fields below
	names []string
	count int
	fail  error
}

func (a *applied) apply(_ context.Context, set dataplane.NodeSet) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count++
	if a.fail != nil {
		return a.fail
	}
	a.names = nil
	for _, node := range set.Nodes {
		a.names = append(a.names, node.Name)
	}
	return nil
}

func (a *applied) setFail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = err
}

func (a *applied) calls() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.count
}

// is returns an error unless the last set has the names.
func (a *applied) is(want string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if got := strings.Join(a.names, " "); got != want {
		return errors.New("applied: " + got + ", want: " + want)
	}
	return nil
}

// follow starts a nodesFile on path and stops it with the test.
func follow(t *testing.T, path string) (*nodesFile, *applied, *syncBuffer) {
	t.Helper()
	config := dualStack()
	config.NodesFile = path
	sets, log := &applied{}, &syncBuffer{}
	file, err := newNodesFile(config, slog.New(slog.NewTextHandler(log, nil)), sets.apply)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- file.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return file, sets, log
}

// syncBuffer is a buffer that a test reads while others write.
type syncBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func nodesText(names ...string) string {
	text := "nodes:\n"
	for _, name := range names {
		text += "- name: " + name + "\n"
	}
	return text
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace writes a file the way tools do that care: a new one, renamed.
func replace(t testing.TB, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestNodesFileFollowsEveryWayToChangeIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nodes.yaml")
	write(t, path, nodesText("a"))
	_, sets, _ := follow(t, path)
	eventually(t, func() error { return sets.is("a") })

	replace(t, path, nodesText("a", "b"))
	eventually(t, func() error { return sets.is("a b") })

	write(t, path, nodesText("a", "c"))
	eventually(t, func() error { return sets.is("a c") })

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, path, nodesText("a", "d"))
	eventually(t, func() error { return sets.is("a d") })
}

func TestNodesFileFollowsAConfigMap(t *testing.T) {
	// As kubelet's atomic writer does: nodes.yaml -> ..data/nodes.yaml, ..data
	// -> a dated folder, and an update renames a new ..data over the old.
	dir := t.TempDir()
	publish := func(version, text string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version, "nodes.yaml"), text)
		if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	publish("..2026_01", nodesText("a"))
	if err := os.Symlink("..data/nodes.yaml", filepath.Join(dir, "nodes.yaml")); err != nil {
		t.Fatal(err)
	}
	_, sets, _ := follow(t, filepath.Join(dir, "nodes.yaml"))
	eventually(t, func() error { return sets.is("a") })
	publish("..2026_02", nodesText("a", "b"))
	if err := os.RemoveAll(filepath.Join(dir, "..2026_01")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return sets.is("a b") })
}

func TestNodesFileKeepsTheLastGoodSet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nodes.yaml")
	good := nodesText("a", "b")
	tests := []struct {
		name  string
		spoil func() error
		want  string
	}{
		{"removed", func() error { return os.Remove(path) }, "open " + path + ": "},
		{"truncated", func() error { return os.Truncate(path, 0) }, "the file is empty"},
		{"cut short", func() error { return os.Truncate(path, int64(len(good)-4)) }, "nodes[1].name"},
		{"garbage", func() error { return os.WriteFile(path, []byte("\x00\x01{{{{"), 0o600) }, path},
		{"without this node", func() error { return os.WriteFile(path, []byte(nodesText("b")), 0o600) }, "this node, a, is not in the list"},
		{"a folder in its place", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, "read " + path + ": "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			write(t, path, good)
			file, sets, log := follow(t, path)
			eventually(t, func() error { return sets.is("a b") })
			if err := tt.spoil(); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error {
				if fault := file.Fault(); fault == nil || !strings.Contains(fault.Error(), tt.want) {
					return errors.New("no fault with " + tt.want)
				}
				return nil
			})
			eventually(t, func() error {
				if !strings.Contains(log.String(), "keeping the last good set") {
					return errors.New("not logged")
				}
				return nil
			})
			if err := sets.is("a b"); err != nil {
				t.Errorf("set in force: %v", err)
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			replace(t, path, nodesText("a", "c"))
			eventually(t, func() error { return sets.is("a c") })
			eventually(t, file.Fault)
		})
	}
}

func TestNodesFileSurvivesItsFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	path := filepath.Join(dir, "nodes.yaml")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, path, nodesText("a"))
	file, sets, _ := follow(t, path)
	eventually(t, func() error { return sets.is("a") })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if file.Fault() == nil {
			return errors.New("no fault")
		}
		return nil
	})
	// On Windows the name may be taken until the watch has let go of the folder.
	eventually(t, func() error { return os.Mkdir(dir, 0o700) })
	write(t, path, nodesText("a", "b"))
	eventually(t, func() error { return sets.is("a b") })
}

func TestNodesFileOffersARefusedSetAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nodes.yaml")
	write(t, path, nodesText("a"))
	config := dualStack()
	config.NodesFile = path
	sets := &applied{fail: errors.New("no device")}
	file, err := newNodesFile(config, slog.New(slog.DiscardHandler), sets.apply)
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Apply(t.Context()); err == nil {
		t.Error("the refusal was not returned")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- file.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	sets.setFail(nil)
	eventually(t, func() error { return sets.is("a") })
	// A set that is in force is not offered again when the file comes back.
	before := sets.calls()
	replace(t, path, "garbage")
	eventually(t, func() error {
		if file.Fault() == nil {
			return errors.New("no fault")
		}
		return nil
	})
	replace(t, path, nodesText("a"))
	eventually(t, file.Fault)
	replace(t, path, nodesText("a", "b"))
	eventually(t, func() error { return sets.is("a b") })
	if got := sets.calls() - before; got != 1 {
		t.Errorf("%d calls for one new set", got)
	}
}

func TestNodesFileMustBeGoodAtStart(t *testing.T) {
	config := dualStack()
	config.NodesFile = filepath.Join(t.TempDir(), "nodes.yaml")
	if _, err := newNodesFile(config, slog.New(slog.DiscardHandler), nil); err == nil || !strings.HasPrefix(err.Error(), "nodesFile: ") {
		t.Errorf("missing file: %v", err)
	}
	write(t, config.NodesFile, "nodes: [{name: b}]")
	if _, err := newNodesFile(config, slog.New(slog.DiscardHandler), nil); err == nil || !strings.Contains(err.Error(), "nodes.yaml: nodes: this node, a, is not in the list") {
		t.Errorf("file without this node: %v", err)
	}
}

func TestFolderWatchOutlivesItsFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	watch := newFolderWatch(dir, slog.New(slog.DiscardHandler))
	defer watch.Close()
	for range 2 {
		watch.Ensure()
		if watch.Events() != nil {
			t.Fatal("events of a folder that is not there")
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		watch.Ensure()
		write(t, filepath.Join(dir, "file"), "x")
		next(t, watch)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		for watch.Events() != nil {
			watch.Note(next(t, watch))
		}
	}
}

// next waits for an event.
func next(t *testing.T, watch *folderWatch) fsnotify.Event {
	t.Helper()
	select {
	case event := <-watch.Events():
		return event
	case <-time.After(patience):
		t.Fatal("no event")
		return fsnotify.Event{}
	}
}
