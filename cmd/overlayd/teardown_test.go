package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestMountedFoldersGo has the folders that the manifest's mounts make on a host,
// beside one that the host uses.
func TestMountedFoldersGo(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc", "run/systemd/resolve", "run/NetworkManager", "run/resolvconf", "run/netconfig", "run/other"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(root, "run/NetworkManager/no-stub-resolv.conf"), "")
	var said strings.Builder
	if err := removeMountedFolders(root, &said); err != nil || strings.Count(said.String(), "removed "+filepath.Join(root, "run")) != 4 {
		t.Errorf("%v, said\n%s", err, &said)
	}
	var left []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		left = append(left, filepath.ToSlash(strings.TrimPrefix(path, root)))
		return err
	})
	want := []string{"", "/etc", "/run", "/run/NetworkManager", "/run/NetworkManager/no-stub-resolv.conf", "/run/other"}
	if diff := cmp.Diff(want, left); err != nil || diff != "" {
		t.Errorf("%v, left (-want +got):\n%s", err, diff)
	}
}
