package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// setupWith is an agent's set-up, with what it says of NAT traversal.
func setupWith(t *testing.T, enabled bool, said *shim.NATConfig) agentSetup {
	t.Helper()
	d := &daemon{config: defaultConfig("node-a")}
	setup, err := d.setupOf(&shim.SetupGlobalOverlay{
		ClusterCIDR: netip.MustParsePrefix("10.20.0.0/16"), SliceCIDR: netip.MustParsePrefix("10.20.1.0/24"), WGPort: 51820,
		NATEnabled: enabled, NAT: said,
	})
	if err != nil {
		t.Fatal(err)
	}
	return setup
}

// TestNATOfAnAgent hands what an agent says to the data plane, and keeps it for
// the next start, credentials included and for root alone.
func TestNATOfAnAgent(t *testing.T) {
	config := defaultConfig("node-a")
	config.Agent, config.StateDir = true, t.TempDir()
	var got *dataplane.NATConfig
	apply := func(_ context.Context, set dataplane.NodeSet) error {
		got = set.NAT
		return nil
	}
	agent, err := newAgentNodes(config, apply)
	if err != nil {
		t.Fatal(err)
	}
	said := everyNAT()
	if err := agent.setUp(t.Context(), setupWith(t, true, &said)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(new(natConfigOf(said)), got, compareConfigs); diff != "" {
		t.Errorf("handed over (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(agentFile(config)); err != nil || info.Mode().String() != modeHere(0o600) {
		t.Errorf("file %v, %v", info, err)
	}

	// Another word on NAT is no other overlay, and is in force from the next start.
	other := everyNAT()
	other.MaxCandidatePairs = 3
	if err := agent.setUp(t.Context(), setupWith(t, false, &other)); err != nil {
		t.Fatal(err)
	}
	again, err := newAgentNodes(config, apply)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.bringUp(t.Context(), *again.setup); err != nil {
		t.Fatal(err)
	}
	other.Enabled = false
	if diff := cmp.Diff(new(natConfigOf(other)), got, compareConfigs); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}

	elsewhere := setupWith(t, false, &other)
	elsewhere.Port++
	if err := again.setUp(t.Context(), elsewhere); !errors.Is(err, dataplane.ErrConflict) {
		t.Errorf("another port: %v, want %v", err, dataplane.ErrConflict)
	}
}

// TestNATOfAnAgentThatIsWrong names the field.
func TestNATOfAnAgentThatIsWrong(t *testing.T) {
	bad := everyNAT()
	bad.STUNServers[0].Address = "stun.example"
	setup := setupWith(t, true, nil)
	setup.NAT = &bad
	want := `nat.stun_servers[0].address: "stun.example" is not host:port: invalid request`
	if err := setup.check(); !errors.Is(err, dataplane.ErrInvalid) || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}
