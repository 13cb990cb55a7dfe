package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// TestOverlayIsNotTakenDownDuringAnAttach tears down in the middle of an ADD,
// whose sandbox nobody can count yet.
func TestOverlayIsNotTakenDownDuringAnAttach(t *testing.T) {
	await := holdAt(t, "dataplane/allocated")
	n := newAgentNode(t)
	client, pod := n.client(), newSandbox(t, "pod")
	mustCall[*shim.BridgeName](t, client, agentSays())
	attached := make(chan error, 1)
	go func() {
		_, err := client.Attach(t.Context(), pod.request())
		attached <- err
	}()
	release := await()
	wantRefused(t, client, &shim.TeardownGlobalOverlay{}, shim.CodeConflict, "under way")
	release()
	if err := <-attached; err != nil {
		t.Errorf("attach: %v", err)
	}
	wantRefused(t, client, &shim.TeardownGlobalOverlay{}, shim.CodeConflict, "in use by 1 sandboxes")
	if status := n.status(); !status.Ready || len(status.Attachments) != 1 {
		t.Errorf("status after teardowns that were refused: %+v", status)
	}
	n.audit()
}

// TestTeardownEndsTheOldOverlay holds a teardown: no other daemon may begin, and
// nothing that the old overlay knew is in the next.
func TestTeardownEndsTheOldOverlay(t *testing.T) {
	await := holdAt(t, "dataplane/teardown")
	n := newAgentNode(t)
	untouched, client := n.kernelState(), n.client()
	mustCall[*shim.BridgeName](t, client, agentSays())
	key := n.status().PublicKey
	peer := &shim.AddPeer{PeerSpec: shim.PeerSpec{PublicKey: keyA, Endpoint: "198.51.100.9:51820", AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.20.9.0/24")}}}
	mustCall[*shim.OK](t, client, peer)
	mustCall[*shim.OK](t, client, &shim.RegisterDNS{Name: "db.example", IP: netip.MustParseAddr("10.20.9.1")})
	reserved := mustCall[*shim.AllocatedIP](t, client, &shim.AllocateIP{Owner: "vm"}).IP

	mustCall[*shim.OK](t, client, &shim.TeardownGlobalOverlay{})
	release := await()
	other := filepath.Join(n.dir, "other.yaml")
	write(t, other, fmt.Sprintf("nodeName: node-a\nagent: true\nsocket: %s/other.sock\nstateDir: %s/other\nmetricsAddress: ''\n", n.dir, n.dir))
	if _, stderr, err := n.run("run", "--config", other); exitCode(err) != 1 || !strings.Contains(stderr, errInCharge.Error()) {
		t.Errorf("another daemon during the teardown: %v\n%s", err, stderr)
	}
	release()
	n.awaitTakenDown(untouched)

	var left []string
	entries, err := os.ReadDir(filepath.Join(n.dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	if diff := cmp.Diff([]string{"key"}, left); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	eventually(t, func() error { _, err := client.Call(t.Context(), agentSays()); return err })
	if status := n.status(); status.PeerCount != 0 || status.PublicKey != key {
		t.Errorf("the next overlay has %d peers and the key %s, before %s", status.PeerCount, status.PublicKey, key)
	}
	if again := mustCall[*shim.AllocatedIP](t, client, &shim.AllocateIP{Owner: "other"}).IP; again != reserved {
		t.Errorf("%s is reserved, though %s is free", again, reserved)
	}
}
