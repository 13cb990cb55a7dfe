package cni

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// A Tombstone records a DEL that came while overlayd was away. It is one file,
// named after the hash of the attachment's key, since a container ID has no
// upper length. Whoever starts overlayd listens first, then detaches and
// removes every tombstone, and only then serves: a plugin that wrote one dials
// once more afterwards, so no DEL falls between the two.
type Tombstone struct {
	ContainerID string `json:"container_id"`
	IfName      string `json:"ifname"`
}

const (
	tombstoneSuffix = ".json"
	tombstoneTemp   = ".tombstone-"
)

// TombstoneDir returns the folder of tombstones in overlayd's state directory.
func TombstoneDir(stateDir string) string { return filepath.Join(stateDir, "tombstones") }

// Tombstones lists the tombstones in dir, in no meaningful order. A folder that
// is not there holds none. Unreadable and foreign files do not hide the others:
// they come back as one joined error beside the list.
func Tombstones(dir string) ([]Tombstone, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list tombstones: %w", err)
	}
	var found []Tombstone
	var errs []error
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), tombstoneTemp) {
			continue // a plugin is writing it, or died doing so and its caller asks again
		}
		t, err := readTombstone(dir, entry.Name())
		if err != nil {
			errs = append(errs, fmt.Errorf("read tombstone %s: %w", entry.Name(), err))
			continue
		}
		found = append(found, t)
	}
	return found, errors.Join(errs...)
}

func readTombstone(dir, name string) (Tombstone, error) {
	var t Tombstone
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal(data, &t); err != nil {
		return t, err
	}
	if t.file() != name {
		return t, errors.New("its name is not that of its content")
	}
	return t, nil
}

// Write makes t durable in dir, which it creates if need be: when it returns
// nil, the tombstone survives a power failure. Writing it again is fine.
func (t Tombstone) Write(dir string) error {
	if err := t.write(dir); err != nil {
		return fmt.Errorf("write tombstone of sandbox %s: %w", t.ContainerID, err)
	}
	return nil
}

func (t Tombstone) write(dir string) error {
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, tombstoneTemp) // 0600
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(dir, t.file()))
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return syncDir(dir)
}

// Remove removes t from dir. Nothing there is fine, also on a read-only disk.
func (t Tombstone) Remove(dir string) error {
	path := filepath.Join(dir, t.file())
	err := os.Remove(path)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if _, gone := os.Lstat(path); errors.Is(gone, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("remove tombstone of sandbox %s: %w", t.ContainerID, err)
}

// file joins the key with a character that neither half can hold. Keys come
// from the runtime, not from people who gain by a collision, and the package
// of a cryptographic hash would cost every start of the plugin 0.1 ms.
func (t Tombstone) file() string {
	h := fnv.New128a()
	_, _ = h.Write([]byte(t.ContainerID + "/" + t.IfName)) // never fails
	return hex.EncodeToString(h.Sum(nil)) + tombstoneSuffix
}

// makeDir is os.MkdirAll whose folders survive a power failure.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // NTFS journals names itself, and a folder cannot be opened for writing
	}
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}
