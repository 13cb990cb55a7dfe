package dataplane

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// TestDeviceHearsSTUNOnlyIfOfUse has no socket listen in a cluster without NAT,
// and does while a peer is behind one.
func TestDeviceHearsSTUNOnlyIfOfUse(t *testing.T) {
	tr, _ := newTraversingPlane(t)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = tr.run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	heard := map[wireguard.Backend]int{wireguard.Kernel: 2}[tr.parts.device.Backend()]
	for _, step := range []struct {
		name       string
		candidates []string
		listens    bool
	}{
		{"no NAT", nil, false},
		{"another address", []string{"host/192.0.2.2:51820", "host/192.0.2.3:51820"}, false},
		{"a peer behind a NAT", []string{"host/192.0.2.2:51820", "server_reflexive/203.0.113.7:4500"}, true},
		{"no more", []string{"host/192.0.2.2:51820"}, false},
	} {
		set := twoNodes(t)
		for i := range set.Nodes {
			if set.Nodes[i].Name != tr.plane.cfg.Node {
				set.Nodes[i].Candidates = step.candidates
			}
		}
		if err := tr.plane.SetNodes(t.Context(), set); err != nil {
			t.Fatal(err)
		}
		if err := tr.Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := 0
		if step.listens {
			want = heard
		}
		deadline := time.Now().Add(time.Minute)
		for tr.stun.wanted.Load() != step.listens || rawSockets(t) != want {
			if time.Now().After(deadline) {
				t.Fatalf("%s: listens %v with %d raw sockets, want %v with %d", step.name, tr.stun.wanted.Load(), rawSockets(t), step.listens, want)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// rawSockets counts those for UDP. The thread that the process began with may be in
// the namespace of a test that has ended, and /proc/net shows what that sees.
func rawSockets(t *testing.T) int {
	t.Helper()
	count := 0
	for _, file := range []string{"/proc/thread-self/net/raw", "/proc/thread-self/net/raw6"} {
		list, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(list)) {
			if fields := strings.Fields(line); len(fields) > 1 && strings.HasSuffix(fields[1], ":0011") {
				count++
			}
		}
	}
	return count
}
