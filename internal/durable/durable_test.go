package durable_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/zlayer/zlayer-cni/internal/durable"
)

func TestReplace(t *testing.T) {
	fault := errors.New("the disk is full")
	// Windows knows of a mode whether a file may be written, and has other words.
	mode, folderThere := fs.FileMode(0o640), "file exists"
	if runtime.GOOS == "windows" {
		mode, folderThere = 0o666, "denied"
	}
	tests := []struct {
		name          string
		prepare       func(path string) error
		content       io.Reader
		want, failure string
	}{
		{name: "no file yet", content: strings.NewReader("new"), want: "new"},
		{name: "a file that others may write", prepare: func(path string) error { return os.WriteFile(path, []byte("old"), 0o666) }, content: strings.NewReader("new"), want: "new"},
		{name: "rest of a try that died", prepare: func(path string) error { return os.WriteFile(durable.Pending(path), []byte("half a fi"), 0o444) }, content: strings.NewReader("new"), want: "new"},
		{
			name: "content that cannot be read", prepare: func(path string) error { return os.WriteFile(path, []byte("old"), 0o640) },
			content: io.MultiReader(strings.NewReader("half"), iotest.ErrReader(fault)), want: "old", failure: fault.Error(),
		},
		{
			name: "a folder in its place", prepare: func(path string) error { return os.MkdirAll(filepath.Join(path, "inside"), 0o755) },
			content: strings.NewReader("new"), failure: folderThere,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file.json")
			if tt.prepare != nil {
				if err := tt.prepare(path); err != nil {
					t.Fatal(err)
				}
			}
			err := durable.Replace(path, tt.content, 0o640)
			if (err == nil) != (tt.failure == "") || err != nil && !strings.Contains(err.Error(), tt.failure) {
				t.Fatalf("error %v, want %q", err, tt.failure)
			}
			if _, err := os.Lstat(durable.Pending(path)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the pending file: %v", err)
			}
			if tt.want == "" {
				return
			}
			content, err := os.ReadFile(path)
			if err != nil || string(content) != tt.want {
				t.Errorf("content %q, %v", content, err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != mode {
				t.Errorf("file %v, %v", info, err)
			}
		})
	}
}
