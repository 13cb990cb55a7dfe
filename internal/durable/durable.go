// Package durable replaces files so that whoever looks, also after a power cut,
// finds a whole one: the old or the new.
package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Pending is where a file is written before it takes its place: beside it, under
// a name that folders of configuration ignore.
func Pending(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// Replace makes content the file at path, whose folder must exist, with that
// mode whatever the umask. After an error the file is as it was. One caller at a
// time may replace a path.
func Replace(path string, content io.Reader, mode fs.FileMode) error {
	pending := Pending(path)
	// A rest of an earlier try may have another mode.
	if err := os.Remove(pending); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(pending, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	err = errors.Join(err, file.Chmod(mode), file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(pending, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(pending))
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder makes a rename last through a power cut.
func syncFolder(path string) error {
	if runtime.GOOS == "windows" { // where folders cannot be flushed
		return nil
	}
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
