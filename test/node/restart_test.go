//go:build linux

package node

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// ending is a way for a daemon to end.
type ending struct {
	name string
	end  func(context.Context, *cluster.Node) error
}

func endings() []ending {
	return []ending{
		{"in order", func(ctx context.Context, n *cluster.Node) error { return n.Stop(ctx) }},
		{"by SIGKILL", func(_ context.Context, n *cluster.Node) error { return n.Kill() }},
	}
}

// TestARestartKeepsTheSandboxesConnected ends a daemon under traffic, in order
// and by SIGKILL, and starts it again. With the kernel's WireGuard not one packet
// is lost; a device that lives in the daemon is back with it.
func TestARestartKeepsTheSandboxesConnected(t *testing.T) {
	for _, end := range endings() {
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

// TestARestartKeepsServicesAndGuestsConnected does the same to a daemon that hosts
// dedicated services and a guest, all of them under traffic.
func TestARestartKeepsServicesAndGuestsConnected(t *testing.T) {
	for _, end := range endings() {
		t.Run(end.name, func(t *testing.T) {
			lab := newServiceLab(t)
			n := lab.Nodes[1]
			g := lab.addGuest(n, "laptop")
			for _, first := range lab.streams(g) {
				first.flows(lab.rig) // the tunnel's very first packets may be lost
				first.close()
			}
			streams := lab.streams(g)
			before := lab.identities(n)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := end.end(ctx, n); err != nil {
				t.Fatal(err)
			}
			if err := n.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if err := n.AwaitPeers(ctx, len(lab.Nodes)-1); err != nil {
				t.Fatal(err)
			}
			for called, s := range streams {
				s.flows(lab.rig)
				t.Logf("longest pause of %s: %v", called, time.Duration(s.longest.Load()).Round(time.Millisecond))
			}
			if diff := cmp.Diff(before, lab.identities(n)); diff != "" {
				t.Errorf("after the restart (-before +after):\n%s", diff)
			}
			if lab.status(n).Backend == "kernel" {
				for _, s := range streams {
					s.wantAll(lab.rig)
				}
			}
		})
	}
}

// streams are between the first two nodes: of each service, of none and of a
// guest.
func (lab *serviceLab) streams(g *guest) map[string]*stream {
	lab.t.Helper()
	between := func(kind string) *stream {
		to := lab.pods[kind+"2"]
		return startStream(lab.t, lab.pods[kind+"1"].NS, to.NS, to.Addrs[0])
	}
	return map[string]*stream{
		"web": between("w"), "the cut-off service": between("l"), "no service": between("d"),
		"the guest": startStream(lab.t, g.ns, lab.pods["w2"].NS, lab.addr("w2", 1)),
	}
}

// identities is what others know a node, its services and its guests by.
func (r *rig) identities(n *cluster.Node) []string {
	r.t.Helper()
	status := r.status(n)
	known := []string{status.PublicKey, status.Interface}
	for _, s := range status.DedicatedServices {
		known = append(known, fmt.Sprint(s.Service, s.PublicKey, s.ListenPort, s.Interface, s.Bridge, s.Table, s.Subnets, s.OverlayIP, s.JoinGlobal, s.Attachments, s.PeerCount, s.Problem))
	}
	for _, g := range r.guests(n) {
		known = append(known, fmt.Sprint(g.ID, g.PublicKey, g.Addresses))
	}
	return known
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
