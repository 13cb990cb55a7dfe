package main

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// TestGCOfClientsWithoutNetwork checks that the lists of clients that know no
// networks, and those of clients that do, each leave alone what the other
// attached, until the sandbox is attached again with a network.
func TestGCOfClientsWithoutNetwork(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	client := n.client()
	old, named := newSandbox(t, "old"), newSandbox(t, "named")
	attach := func(s *sandbox, network string) {
		t.Helper()
		request := s.request()
		request.Network = network
		if _, err := client.Attach(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	collect := func(network string, left ...string) {
		t.Helper()
		if err := client.GC(t.Context(), network, []shim.Attachment{}); err != nil {
			t.Error(err)
		}
		var got []string
		for _, a := range n.status().Attachments {
			got = append(got, strings.TrimRight(a.ContainerID, "-0")+" of "+a.Network)
		}
		slices.Sort(got)
		if !slices.Equal(got, left) {
			t.Errorf("after GC of network %q: attached %q, want %q", network, got, left)
		}
		n.audit()
	}
	attach(old, "")
	attach(named, "pods")
	collect("others", "named of pods", "old of ")
	collect("pods", "old of ")
	attach(named, "pods")
	collect("", "named of pods")
	attach(old, "")
	attach(old, "pods")
	attach(old, "") // what was told once is not forgotten
	collect("", "named of pods", "old of pods")
	if err := n.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	n.startReady()
	collect("", "named of pods", "old of pods")
	collect("pods")
}
