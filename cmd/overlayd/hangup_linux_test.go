package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// holdAt arms a failpoint of the daemons that the test starts. The function that
// it returns waits until one is held there, and returns what lets it go on.
func holdAt(t *testing.T, point string) (await func() (release func())) {
	t.Helper()
	gate := filepath.Join(netlab.TestDir(t), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(failpoint.Env, point+"=hold:"+gate)
	return func() func() {
		t.Helper()
		var held *os.File
		eventually(t, func() (err error) {
			held, err = os.OpenFile(gate, os.O_WRONLY|unix.O_NONBLOCK, 0) // needs a reader
			return err
		})
		return func() {
			t.Helper()
			if err := errors.Join(os.Remove(gate), held.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestDetachOutlivesItsCaller hangs up in the middle of a DEL, as a plugin does
// that its runtime ends. Nobody may ask again.
func TestDetachOutlivesItsCaller(t *testing.T) {
	await := holdAt(t, "detach/before")
	n := newSingle(t)
	n.startReady()
	pod := newSandbox(t, "pod")
	pod.attach(t, n.client())

	ctx, hangUp := context.WithCancel(t.Context())
	plugin, err := shim.Dial(ctx, n.socket, shim.DialOptions{CallTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- plugin.Detach(ctx, pod.handle) }()
	release := await()
	hangUp()
	_ = plugin.Close()
	if err := <-gone; err == nil {
		t.Error("Detach was answered while it was held")
	}
	n.status() // the daemon has read the end of the connection by now
	release()
	eventually(t, func() error {
		if left := n.status().Attachments; len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	n.audit()
}
