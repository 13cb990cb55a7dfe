package cni

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

func TestOpenSandbox(t *testing.T) {
	pod := netlab.TestNS(t, "pod")
	dir := t.TempDir()
	fifo, plain, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "plain"), filepath.Join(dir, "link")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.WriteFile(plain, nil, 0o600), os.Symlink(pod.Path, link)); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(fifo, os.O_RDWR, 0) // should a reader wait for one
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Close() }()
	tests := []struct {
		name, path string
		ownAllowed bool
		wantErr    string
	}{
		{name: "a pod's", path: pod.Path},
		{name: "a pod's through a link", path: link},
		{name: "the plugin's own", path: "/proc/thread-self/ns/net", wantErr: "own network namespace"},
		{name: "the plugin's own, allowed", path: "/proc/thread-self/ns/net", ownAllowed: true},
		{name: "nothing", path: filepath.Join(dir, "nothing"), wantErr: "no such file"},
		{name: "a plain file", path: plain, wantErr: "not a namespace"},
		{name: "a folder", path: dir, wantErr: "not a namespace"},
		{name: "a named pipe, whose opening would block", path: fifo, wantErr: "not a namespace"},
		{name: "another kind of namespace", path: "/proc/self/ns/mnt", wantErr: "not a network namespace"},
		{name: "another kind of namespace, own allowed", path: "/proc/self/ns/mnt", ownAllowed: true, wantErr: "not a network namespace"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file, err := openSandbox(tt.path, tt.ownAllowed)
			if tt.wantErr == "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := file.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			var e *types.Error
			if !errors.As(err, &e) || e.Code != types.ErrInvalidNetNS || !strings.Contains(e.Error(), tt.wantErr) || !strings.Contains(e.Error(), tt.path) {
				t.Errorf("error %v, want code %d with %q and the path", err, types.ErrInvalidNetNS, tt.wantErr)
			}
		})
	}
}
