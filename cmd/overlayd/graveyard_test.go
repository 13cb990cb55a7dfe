package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

// detached records what a graveyard detaches. Those in stuck fail.
type detached struct {
	mu    sync.Mutex // guards the fields below
	keys  []string
	stuck string
}

func (d *detached) detach(_ context.Context, key attach.Key) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if key.ContainerID == d.stuck {
		return errors.New("stuck")
	}
	d.keys = append(d.keys, key.ContainerID+"/"+key.IfName)
	return nil
}

func (d *detached) sorted() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(slices.Values(d.keys))
}

func newGraveyard(t *testing.T, d *detached, names ...string) (*graveyard, *syncBuffer) {
	t.Helper()
	log := &syncBuffer{}
	g := &graveyard{dir: filepath.Join(t.TempDir(), "tombstones"), log: slog.New(slog.NewTextHandler(log, nil)), detach: d.detach}
	for _, name := range names {
		if err := (cni.Tombstone{ContainerID: name, IfName: "eth0"}).Write(g.dir); err != nil {
			t.Fatal(err)
		}
	}
	return g, log
}

// left lists the containers whose tombstones are still there.
func left(t *testing.T, g *graveyard) []string {
	t.Helper()
	graves, err := cni.Tombstones(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, grave := range graves {
		names = append(names, grave.ContainerID)
	}
	slices.Sort(names)
	return names
}

func TestDrainDetachesAndRemoves(t *testing.T) {
	d := &detached{stuck: "c"}
	g, log := newGraveyard(t, d, "a", "b", "c")
	g.drain(t.Context())
	if diff := cmp.Diff([]string{"a/eth0", "b/eth0"}, d.sorted()); diff != "" {
		t.Errorf("detached (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"c"}, left(t, g)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	if got := g.drained.Load(); got != 2 || !strings.Contains(log.String(), "late detach, will try again") {
		t.Errorf("counted %d, logged:\n%s", got, log)
	}
	d.stuck = ""
	g.drain(t.Context())
	if names := left(t, g); len(names) > 0 {
		t.Errorf("left after the second time: %v", names)
	}
}

func TestDrainWithoutAFolder(t *testing.T) {
	g, log := newGraveyard(t, &detached{})
	g.drain(t.Context())
	if log.String() != "" {
		t.Errorf("logged:\n%s", log)
	}
}

func TestDrainIsNotStoppedByGarbage(t *testing.T) {
	d := &detached{}
	g, log := newGraveyard(t, d, "a")
	write(t, filepath.Join(g.dir, "garbage.json"), "{")
	if err := os.Mkdir(filepath.Join(g.dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	g.drain(t.Context())
	if diff := cmp.Diff([]string{"a/eth0"}, d.sorted()); diff != "" || !strings.Contains(log.String(), "garbage.json") {
		t.Errorf("detached (-want +got):\n%slogged:\n%s", diff, log)
	}
}

func TestAnAttachIsYoungerThanItsTombstone(t *testing.T) {
	d := &detached{}
	g, _ := newGraveyard(t, d, "a", "b")
	if err := g.forget(attach.Key{ContainerID: "a", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	g.drain(t.Context())
	if diff := cmp.Diff([]string{"b/eth0"}, d.sorted()); diff != "" {
		t.Errorf("detached (-want +got):\n%s", diff)
	}
}
