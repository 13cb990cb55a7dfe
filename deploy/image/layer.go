package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path"
)

// layerOf returns the files below tree as an uncompressed tar archive.
func layerOf(tree, goos string) (blob, error) {
	var buf bytes.Buffer
	l := layer{archive: tar.NewWriter(&buf), made: map[string]bool{}}
	if goos == windows {
		if err := l.becomeWindows(); err != nil {
			return nil, err
		}
	}
	found := 0
	err := walkFiles(os.DirFS(tree), func(name string, content []byte) error {
		found++
		return l.add(name, content)
	})
	if err != nil {
		return nil, err
	}
	if found == 0 {
		return nil, errors.New("no file in it")
	}
	if err := l.archive.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// layer is a layer being written.
type layer struct {
	archive *tar.Writer
	root    string // of the container's files, with a slash; the archive's own if empty
	made    map[string]bool
}

// becomeWindows writes what every image of Windows begins with: folders are made
// by nobody else there, and a layer without a parent is unpacked only with the
// files of a registry, which HostProcess containers do not use
// (github.com/microsoft/windows-host-process-containers-base-image).
func (l *layer) becomeWindows() error {
	l.root = "Files/"
	for _, name := range []string{"DEFAULT", "SAM", "SECURITY", "SOFTWARE", "SYSTEM"} {
		if err := l.add("Windows/System32/config/"+name, emptyHive()); err != nil {
			return err
		}
	}
	return nil
}

func (l *layer) add(name string, content []byte) error {
	name = l.root + name
	if l.root != "" {
		if err := l.makeFolder(path.Dir(name)); err != nil {
			return err
		}
	}
	return addFile(l.archive, name, 0o755, content)
}

// makeFolder writes a folder, and before it those that it is in, each once.
func (l *layer) makeFolder(folder string) error {
	if folder == "." || l.made[folder] {
		return nil
	}
	l.made[folder] = true
	if err := l.makeFolder(path.Dir(folder)); err != nil {
		return err
	}
	return l.archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder + "/", Mode: 0o755, Format: tar.FormatUSTAR})
}
