//go:build e2e

package e2e

import "testing"

// TestRollingRestart restarts all daemons while streams run between pods: TCP
// survives, nothing is readable on the wire, and what was lost is printed. With
// WireGuard in the kernel nothing may be lost; with userspace WireGuard traffic
// between nodes pauses with the daemon.
func TestRollingRestart(t *testing.T) {
	underLoad(t, restartDaemons)
}

// TestKilledDaemons does the same with daemons that are killed without warning.
func TestKilledDaemons(t *testing.T) {
	underLoad(t, func(t *testing.T) {
		for _, n := range lab.nodes {
			killDaemon(t, n)
		}
	})
}

// underLoad runs streams across nodes and on one node while fn does something.
func underLoad(t *testing.T, fn func(*testing.T)) {
	watchWire(t)
	awaitServing(t)
	pods := crew(t)
	across := append(startStreams(t, pods[2], pods[1]), startStreams(t, pods[0], pods[2])...)
	local := startStreams(t, pods[2], pods[3])
	fn(t)
	kernel := backend(t) == "kernel"
	for _, s := range across {
		if r := s.finish(t); kernel && s.network == "udp" && r.Lost > 0 {
			t.Errorf("%s: %d of %d packets were lost with WireGuard in the kernel", s.name, r.Lost, r.Sent)
		}
	}
	for _, s := range local {
		if r := s.finish(t); s.network == "udp" && r.Lost > 0 {
			t.Errorf("%s: %d of %d packets were lost on one node, where no daemon is needed", s.name, r.Lost, r.Sent)
		}
	}
}

func backend(t *testing.T) string {
	t.Helper()
	status, err := lab.nodes[1].status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status.Backend
}
