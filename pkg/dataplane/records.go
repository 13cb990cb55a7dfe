package dataplane

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/zlayer/zlayer-cni/internal/durable"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// What is kept in the state directory.
const (
	keyFile         = "key"
	servicesDir     = "services"
	guestsDir       = "guests"
	peersDir        = "peers"
	reservationsDir = "reservations"
	namesDir        = "names"
)

const (
	recordSuffix = ".json"
	keySuffix    = ".key"
	// recordLimit bounds a file, in bytes.
	recordLimit = 1 << 20
)

// records are what the kernel cannot hold, one file for each thing in a folder
// of its own, so that writing one costs nothing for the others. A thing that
// has a private key keeps it in a file beside. Not safe for concurrent use on
// the same name.
type records[T interface{ recordName() string }] struct{ dir string }

// path is the file of the thing called name, which may be of any length.
func (r records[T]) path(name, suffix string) string {
	const digits = 32
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(r.dir, hex.EncodeToString(sum[:])[:digits]+suffix)
}

// load reads all there are. What cannot be read is told by the error and stays
// as it is; the others are returned all the same.
func (r records[T]) load() ([]T, error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []T
	var errs []error
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") || !strings.HasSuffix(entry.Name(), recordSuffix) {
			continue
		}
		record, err := r.read(filepath.Join(r.dir, entry.Name()))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, record)
	}
	return all, errors.Join(errs...)
}

func (r records[T]) read(path string) (T, error) {
	var record T
	info, err := os.Stat(path)
	if err != nil {
		return record, err
	}
	if info.Size() > recordLimit {
		return record, fmt.Errorf("read %s: more than %d bytes", path, recordLimit)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return record, err
	}
	if err := json.Unmarshal(data, &record); err != nil {
		return record, fmt.Errorf("read %s: %w", path, err)
	}
	if r.path(record.recordName(), recordSuffix) != path {
		return record, fmt.Errorf("read %s: its name is not that of its content", path)
	}
	return record, nil
}

// put writes a record, over an earlier one of the same name.
func (r records[T]) put(record T) error {
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	return durable.Replace(r.path(record.recordName(), recordSuffix), bytes.NewReader(data), 0o600)
}

// key returns the private key of the thing called name, made on first use.
func (r records[T]) key(name string) (wireguard.PrivateKey, error) {
	return wireguard.LoadKey(r.path(name, keySuffix))
}

// remove removes a record, and then its key: no record stays without. What is
// not there is none to remove.
func (r records[T]) remove(name string) error {
	if err := removeFile(r.path(name, recordSuffix)); err != nil {
		return err
	}
	return removeFile(r.path(name, keySuffix))
}

// removeStrayKeys removes the keys of things that have neither a record nor a name
// in known: a process that died between the two left them. A record that cannot be
// read keeps its key. Nobody may make a thing meanwhile.
func (r records[T]) removeStrayKeys(known []string) error {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, entry := range entries {
		if thing, is := strings.CutSuffix(entry.Name(), recordSuffix); is {
			keep[filepath.Join(r.dir, thing+keySuffix)] = true
		}
	}
	for _, name := range known {
		keep[r.path(name, keySuffix)] = true
	}
	var errs []error
	for _, entry := range entries {
		path := filepath.Join(r.dir, entry.Name())
		if strings.HasSuffix(path, keySuffix) && !strings.HasPrefix(entry.Name(), ".") && !keep[path] {
			errs = append(errs, removeFile(path))
		}
	}
	return errors.Join(errs...)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
