package dataplane

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// twoNodes is clusterOfOne with a peer.
func twoNodes(t *testing.T) NodeSet {
	t.Helper()
	key, err := wireguard.LoadKey(t.TempDir() + "/key")
	if err != nil {
		t.Fatal(err)
	}
	set := clusterOfOne()
	set.Nodes = append(set.Nodes, Node{
		Name: "two", PublicKey: key.PublicKey().String(), Endpoint: "192.0.2.2:51820",
		Slices: prefixes("10.200.2.0/24", "fd00:200:0:2::/64"),
	})
	return set
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestATakenRouteCostsOnlyItself has another program hold the route to a peer's
// slice, at the start and at a change.
func TestATakenRouteCostsOnlyItself(t *testing.T) {
	d := newPlane(t)
	ip(t, "route", "add", "10.200.2.0/24", "dev", "lo")
	removed := false
	t.Cleanup(func() {
		if !removed {
			ip(t, "route", "del", "10.200.2.0/24", "dev", "lo")
		}
	})
	set := twoNodes(t)
	for _, when := range []string{"coming up", "changing"} {
		if err := d.SetNodes(t.Context(), set); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		status, err := d.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if fault := status.Device.Fault; fault == nil || !strings.Contains(fault.Error(), "10.200.2.0/24") {
			t.Errorf("%s: the status tells of %v", when, fault)
		}
		if len(status.Waiting) > 0 || len(status.Device.Peers) != 1 {
			t.Errorf("%s: waiting for %q with %d peers", when, status.Waiting, len(status.Device.Peers))
		}
		if err := d.reconcile(t.Context(), d.current()); err != nil {
			t.Errorf("%s: reconcile: %v", when, err)
		}
	}
	ip(t, "route", "del", "10.200.2.0/24", "dev", "lo")
	removed = true
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	if status, err := d.Status(t.Context()); err != nil || status.Device.Fault != nil {
		t.Errorf("with the route free: %v, %v", err, status.Device.Fault)
	}
}

// TestReconcileLeavesPeersAlone: it does not wait its turn behind SetNodes, so
// what it read of the peers could be an older set.
func TestReconcileLeavesPeersAlone(t *testing.T) {
	d := newRunningPlane(t)
	newer, _ := wireguard.Plan(wireguard.PlanInput{Self: "one", Nodes: twoNodes(t).Nodes})
	if err := d.current().device.SetPeers(t.Context(), newer); err != nil {
		t.Fatal(err)
	}
	if err := d.reconcile(t.Context(), d.current()); err != nil {
		t.Fatal(err)
	}
	if status, err := d.Status(t.Context()); err != nil || len(status.Device.Peers) != 1 {
		t.Errorf("%d peers after reconcile, want 1 (%v)", len(status.Device.Peers), err)
	}
}

func TestReconcileEnablesForwarding(t *testing.T) {
	d := newRunningPlane(t)
	for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		path := d.cfg.Sysctls + "/" + name
		if err := os.WriteFile(path, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
		if err := d.reconcile(t.Context(), d.current()); err != nil {
			t.Fatal(err)
		}
		if value, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(value)) != "1" {
			t.Errorf("%s is %q (%v)", name, value, err)
		}
	}
}

// TestMTUFollowsTheUnderlay changes the link to the peer. Device, segment and
// what is attached later follow; a small sandbox makes nobody else's smaller.
func TestMTUFollowsTheUnderlay(t *testing.T) {
	d := newPlane(t)
	d.cfg.MTU = 0
	ip(t, "link", "add", "under", "mtu", "1400", "type", "bridge")
	t.Cleanup(func() { ip(t, "link", "del", "under") })
	ip(t, "addr", "add", "192.0.2.1/24", "dev", "under")
	ip(t, "link", "set", "under", "up")
	if err := d.SetNodes(t.Context(), twoNodes(t)); err != nil {
		t.Fatal(err)
	}
	small := request(t, "small", "pod-small")
	small.MTU = 1280
	if _, err := d.Attach(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		underlay  string
		want      int
		container string
	}{{"1400", 1340, "first"}, {"1380", 1320, "second"}, {"1500", 1440, "third"}} {
		ip(t, "link", "set", "under", "mtu", step.underlay)
		if err := d.reconcile(t.Context(), d.current()); err != nil {
			t.Fatal(err)
		}
		attached, err := d.Attach(t.Context(), request(t, step.container, "pod-"+step.container))
		if err != nil {
			t.Fatal(err)
		}
		bridge, err := net.InterfaceByName(attached.Bridge)
		if err != nil {
			t.Fatal(err)
		}
		if d.MTU() != step.want || bridge.MTU != step.want || attached.MTU != step.want {
			t.Errorf("underlay of %s: overlay %d, bridge %d, sandbox %d, want %d", step.underlay, d.MTU(), bridge.MTU, attached.MTU, step.want)
		}
	}
}
