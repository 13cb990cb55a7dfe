package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestRequestsWaitForTheStart(t *testing.T) {
	plane, err := dataplane.New(dataplane.Config{Node: "a", StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{plane: plane, nodes: &nodesFile{}, tried: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.mayServe(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("before the first attempt: %v", err)
	}
	close(d.tried)
	if err := d.mayServe(t.Context()); codeOfCall(err) != shim.CodeUnavailable {
		t.Errorf("after one that failed: %v", err)
	}
	d.open.Store(true)
	if err := d.mayServe(t.Context()); err != nil {
		t.Errorf("after one that did not: %v", err)
	}
}

// TestAPartThatBreaksEndsTheDaemon runs a daemon in this process whose node has
// another key than the file says, so that it never touches the kernel.
func TestAPartThatBreaksEndsTheDaemon(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	dir := netlab.TestDir(t)
	config := dualStack()
	config.NodesFile, config.StateDir, config.Socket = filepath.Join(dir, "nodes.yaml"), dir, filepath.Join(dir, "s")
	write(t, config.NodesFile, "nodes: [{name: a, publicKey: "+keyA+"}]")
	log := slog.New(slog.DiscardHandler)
	d := &daemon{config: config, log: log, requests: newRequestMetrics(), tried: make(chan struct{})}
	var err error
	if d.nodes, err = newNodesFile(config, log, d.setNodes); err != nil {
		t.Fatal(err)
	}
	if d.plane, err = dataplane.New(dataplane.Config{Node: "a", StateDir: dir, Log: log}); err != nil {
		t.Fatal(err)
	}
	d.installer = &installer{}
	d.graves = &graveyard{dir: cni.TombstoneDir(dir), log: log, detach: d.plane.Detach}
	socket, err := shim.Listen(config.Socket)
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := listenMetrics(t.Context(), netip.MustParseAddrPort("127.0.0.1:9552"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.run(t.Context(), socket, metrics) }()
	<-d.tried
	if err := metrics.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.HasPrefix(err.Error(), "serve metrics: ") {
			t.Errorf("run: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the daemon runs on")
	}
	if _, err := os.Lstat(config.Socket); !os.IsNotExist(err) {
		t.Errorf("socket after the end: %v", err)
	}
}
