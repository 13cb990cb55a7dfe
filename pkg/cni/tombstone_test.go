package cni

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestTombstones(t *testing.T) {
	dir := TombstoneDir(filepath.Join(t.TempDir(), "state"))
	if got, err := Tombstones(dir); err != nil || len(got) != 0 {
		t.Fatalf("without a folder: %v, %v", got, err)
	}
	want := []Tombstone{
		{ContainerID: "c", IfName: "eth0"},
		{ContainerID: "c", IfName: "eth1"},
		{ContainerID: strings.Repeat("x", 4096), IfName: "eth0"},
	}
	for _, tombstone := range append(want, want[0]) { // a repeated DEL writes its own again
		if err := tombstone.Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Tombstones(dir)
	if err != nil {
		t.Fatal(err)
	}
	byKey := cmpopts.SortSlices(func(a, b Tombstone) bool { return a.ContainerID+a.IfName < b.ContainerID+b.IfName })
	if diff := cmp.Diff(want, got, byKey); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for range 2 { // the second time nothing is there
		if err := want[0].Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	if got, err = Tombstones(dir); err != nil || len(got) != 2 {
		t.Errorf("after one was removed: %v, %v", got, err)
	}
	// On Windows a mode keeps nobody out.
	if diff := cmp.Diff(os.FileMode(0o700), mode(t, dir).Perm()); diff != "" && runtime.GOOS != "windows" {
		t.Errorf("folder's mode (-want +got)\n%s", diff)
	}
}

func TestTombstonesAmongOtherFiles(t *testing.T) {
	dir := t.TempDir()
	mine := Tombstone{ContainerID: "c", IfName: "eth0"}
	if err := mine.Write(dir); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"half.json":                  `{"container_id":"c"`,
		"misnamed.json":              `{"container_id":"d","ifname":"eth0"}`,
		tombstoneTemp + "unfinished": `{"contai`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Tombstones(dir)
	if diff := cmp.Diff([]Tombstone{mine}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if err == nil || !strings.Contains(err.Error(), "half.json") || !strings.Contains(err.Error(), "misnamed.json") ||
		strings.Contains(err.Error(), "unfinished") {
		t.Errorf("error %v: want both foreign files named, and not the unfinished one", err)
	}
}

func TestTombstoneThatCannotBeWritten(t *testing.T) {
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mine := Tombstone{ContainerID: "c", IfName: "eth0"}
	if err := mine.Write(TombstoneDir(blocked)); err == nil || !strings.Contains(err.Error(), "sandbox c") {
		t.Errorf("error %v, want one that names the sandbox", err)
	}
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}
