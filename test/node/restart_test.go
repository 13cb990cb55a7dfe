//go:build linux

package node

import (
	"context"
	"fmt"
	"testing"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// TestARestartKeepsTheSandboxesConnected ends a daemon under traffic, in order
// and by SIGKILL, and starts it again. With the kernel's WireGuard not one packet
// is lost; a device that lives in the daemon is back with it.
func TestARestartKeepsTheSandboxesConnected(t *testing.T) {
	for _, end := range []struct {
		name string
		end  func(context.Context, *cluster.Node) error
	}{
		{"in order", func(ctx context.Context, n *cluster.Node) error { return n.Stop(ctx) }},
		{"by SIGKILL", func(_ context.Context, n *cluster.Node) error { return n.Kill() }},
	} {
		t.Run(end.name, func(t *testing.T) {
			r := newRig(t, 2)
			r.start()
			a, b := r.sandbox("a"), r.sandbox("b")
			r.mustAdd(r.Nodes[0], a)
			to := r.mustAdd(r.Nodes[1], b)[0].Addr()
			first := startStream(t, a.ns, b.ns, to)
			first.flows(r) // the tunnel's very first packets may be lost
			first.close()
			s := startStream(t, a.ns, b.ns, to)
			n := r.Nodes[1]
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := end.end(ctx, n); err != nil {
				t.Fatal(err)
			}
			r.restart(n, "")
			s.flows(r)
			r.audit(n, 1)
			if r.status(n).Backend == "kernel" {
				s.wantAll(r)
			}
		})
	}
}

// wantAll ends the stream and waits until all that was sent has come back.
func (s *stream) wantAll(r *rig) {
	r.t.Helper()
	s.stop()
	r.eventually("every packet comes back", func() error {
		if lost := s.sent.Load() - s.echoed.Load(); lost != 0 {
			return fmt.Errorf("%d of %d are lost", lost, s.sent.Load())
		}
		return nil
	})
}
