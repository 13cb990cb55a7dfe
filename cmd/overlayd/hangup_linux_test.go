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

// TestDetachOutlivesItsCaller hangs up in the middle of a DEL, as a plugin does
// that its runtime ends. Nobody may ask again.
func TestDetachOutlivesItsCaller(t *testing.T) {
	gate := filepath.Join(netlab.TestDir(t), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(failpoint.Env, "detach/before=hold:"+gate)
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
	var held *os.File
	eventually(t, func() (err error) {
		held, err = os.OpenFile(gate, os.O_WRONLY|unix.O_NONBLOCK, 0) // needs a reader
		return err
	})
	hangUp()
	_ = plugin.Close()
	if err := <-gone; err == nil {
		t.Error("Detach was answered while it was held")
	}
	n.status() // the daemon has read the end of the connection by now
	if err := errors.Join(os.Remove(gate), held.Close()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if left := n.status().Attachments; len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	n.audit()
}
