package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// newTraversingPlane returns a data plane that is up, with a peer, of which
// packets are sent nowhere.
func newTraversingPlane(t *testing.T) (*traversal, wgtypes.Key) {
	t.Helper()
	d := newPlane(t)
	d.cfg.NAT = NATConfig{Enabled: true}
	if err := d.SetNodes(t.Context(), twoNodes(t)); err != nil {
		t.Fatal(err)
	}
	return d.current().traversal, d.currentPeers()[0].PublicKey
}

// TestPeersArePointedTo checks that the device sends to where it is pointed,
// stays there when the node set is given again, and is left as it was by an error.
func TestPeersArePointedTo(t *testing.T) {
	tr, peer := newTraversingPlane(t)
	moved := netip.MustParseAddrPort("192.0.2.3:51820")
	published, found := netip.MustParseAddrPort("192.0.2.2:51820"), netip.MustParseAddrPort("203.0.113.7:4500")
	ended, end := context.WithCancel(t.Context())
	end()
	to := func(endpoint netip.AddrPort) map[wgtypes.Key]netip.AddrPort {
		return map[wgtypes.Key]netip.AddrPort{peer: endpoint}
	}
	for _, step := range []struct {
		name string
		do   func() error
		fail bool
		want netip.AddrPort
	}{
		{"an error", func() error { return tr.Use(ended, to(found)) }, true, published},
		{"the same peers after an error", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, published},
		{"an error of the device", func() error {
			return tr.point(t.Context(), to(found), func(context.Context, []wireguard.Peer) error { return context.DeadlineExceeded })
		}, true, published},
		{"the same peers after an error of the device", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, published},
		{"used", func() error { return tr.Use(t.Context(), to(found)) }, false, found},
		{"the same peers", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, found},
		{"held elsewhere", func() error { return tr.Hold(t.Context(), to(published)) }, false, found},
		{"never heard there", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, published},
		{"used and given back", func() error {
			if err := tr.Use(t.Context(), to(found)); err != nil {
				return err
			}
			return tr.Use(t.Context(), to(netip.AddrPort{}))
		}, false, published},
		{"published elsewhere while another is used", func() error {
			set := NodeSet{Cluster: tr.plane.clusterPrefixes(), Nodes: slices.Clone(tr.plane.nodes)}
			set.Nodes[1].Endpoint = moved.String()
			return errors.Join(tr.Use(t.Context(), to(found)), tr.plane.SetNodes(t.Context(), set))
		}, false, moved},
		{"the same peers, published elsewhere", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, moved},
		{"used again", func() error { return tr.Use(t.Context(), to(found)) }, false, found},
		{"the same peers, used again", func() error { return tr.plane.setPeers(t.Context(), tr.parts, tr.plane.currentPeers()) }, false, found},
	} {
		if err := step.do(); (err != nil) != step.fail {
			t.Fatalf("%s: %v", step.name, err)
		}
		states, err := tr.Peers(t.Context())
		if err != nil || len(states) != 1 {
			t.Fatalf("%s: %v, %v", step.name, states, err)
		}
		if states[0].Endpoint != step.want {
			t.Errorf("%s: sends to %s, want %s", step.name, states[0].Endpoint, step.want)
		}
	}
}

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
		for tr.listens.Load() != step.listens || rawSockets(t) != want {
			if time.Now().After(deadline) {
				t.Fatalf("%s: listens %v with %d raw sockets, want %v with %d", step.name, tr.listens.Load(), rawSockets(t), step.listens, want)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// rawSockets counts those for UDP.
func rawSockets(t *testing.T) int {
	t.Helper()
	count := 0
	for _, file := range []string{"/proc/net/raw", "/proc/net/raw6"} {
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
