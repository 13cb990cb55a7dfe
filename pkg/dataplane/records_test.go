package dataplane

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestStrayKeysAreRemoved finds what a process left that died between the key of
// a thing and its record.
func TestStrayKeysAreRemoved(t *testing.T) {
	guests := records[guestRecord]{filepath.Join(t.TempDir(), "a[b]", guestsDir)}
	if err := guests.removeStrayKeys(nil); err != nil {
		t.Errorf("without a folder: %v", err)
	}
	if err := guests.put(guestRecord{Name: "recorded"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"recorded", "in the kernel", "unreadable", "stray", "another stray"} {
		if _, err := guests.key(name); err != nil {
			t.Fatal(err)
		}
	}
	notes := filepath.Join(guests.dir, "notes.txt")
	for _, path := range []string{guests.path("unreadable", recordSuffix), notes} {
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		guests.path("recorded", recordSuffix), guests.path("recorded", keySuffix), guests.path("in the kernel", keySuffix),
		guests.path("unreadable", recordSuffix), guests.path("unreadable", keySuffix), notes,
	}
	slices.Sort(want)
	for _, when := range []string{"once", "twice"} {
		if err := guests.removeStrayKeys([]string{"in the kernel", "nobody"}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		var left []string
		entries, err := os.ReadDir(guests.dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			left = append(left, filepath.Join(guests.dir, entry.Name()))
		}
		if diff := cmp.Diff(want, left); diff != "" {
			t.Errorf("%s: files (-want +got)\n%s", when, diff)
		}
	}
}
