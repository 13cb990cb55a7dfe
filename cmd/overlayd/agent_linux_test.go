package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// newAgentNode starts a node whose overlay is set up over the socket.
func newAgentNode(t *testing.T) *node {
	t.Helper()
	netlab.NeedTunnel(t)
	n := newNode(t, netlab.TestFabric(t, "fabric"), "node-a", 1)
	write(t, n.config, fmt.Sprintf("nodeName: node-a\nagent: true\nendpoint: 198.51.100.1:51820\nsocket: %s\nstateDir: %s/state\n", n.socket, n.dir))
	n.start()
	return n
}

// agentSays is what an agent says of the overlay.
func agentSays() *shim.SetupGlobalOverlay {
	return &shim.SetupGlobalOverlay{
		Deployment: "prod", InstanceID: "1", WGPort: 51820,
		ClusterCIDR: netip.MustParsePrefix("10.20.0.0/16"), SliceCIDR: netip.MustParsePrefix("10.20.1.0/24"),
	}
}

// mustCall asks for something that has to succeed.
func mustCall[T shim.Response](t *testing.T, client *shim.Client, request shim.Request) T {
	t.Helper()
	response, err := client.Call(t.Context(), request)
	answer, ok := response.(T)
	if err != nil || !ok {
		t.Fatalf("%s: %v, %v", request.Op(), response, err)
	}
	return answer
}

// wantRefused wants a request to be refused with a code and a text.
func wantRefused(t *testing.T, client *shim.Client, request shim.Request, code shim.Code, text string) {
	t.Helper()
	answer, err := client.Call(t.Context(), request)
	if err == nil || codeOfCall(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: answer %+v, %v: %v; want code %s with %q", request.Op(), answer, codeOfCall(err), err, code, text)
	}
}

// setups are set-ups that contradict agentSays in one thing each.
func setups() map[string]*shim.SetupGlobalOverlay {
	cluster, slice, port := agentSays(), agentSays(), agentSays()
	cluster.ClusterCIDR = netip.MustParsePrefix("10.0.0.0/8")
	slice.SliceCIDR = netip.MustParsePrefix("10.20.2.0/24")
	port.WGPort = 40000
	return map[string]*shim.SetupGlobalOverlay{"cluster": cluster, "slice": slice, "port": port}
}

func TestAgentsOverlayLife(t *testing.T) {
	n := newAgentNode(t)
	untouched := n.kernelState()
	client, pod := n.client(), newSandbox(t, "pod")
	wantRefused(t, client, pod.request(), shim.CodeUnavailable, "no agent has set the overlay up yet")
	mustCall[*shim.OK](t, client, &shim.TeardownGlobalOverlay{}) // nothing to do

	device := mustCall[*shim.BridgeName](t, client, agentSays())
	if status := n.status(); !status.Ready || status.Interface != device.Name || status.SliceCIDR != agentSays().SliceCIDR || status.ListenPort != 51820 {
		t.Errorf("status after the set-up of %s: %+v", device.Name, status)
	}
	attached := pod.attach(t, client)

	// The same again keeps what is there, whoever says it.
	again := agentSays()
	again.Deployment, again.InstanceID = "other", "2"
	if name := mustCall[*shim.BridgeName](t, client, again).Name; name != device.Name {
		t.Errorf("set up again: %s, before %s", name, device.Name)
	}
	if diff := cmp.Diff(attached, pod.attach(t, client), compareConfigs, compareAddrs); diff != "" {
		t.Errorf("lease after the set-up was repeated (-before +after):\n%s", diff)
	}
	before := n.kernelState()
	for what, other := range setups() {
		t.Run("another "+what, func(t *testing.T) {
			wantRefused(t, client, other, shim.CodeConflict, "tear it down first")
		})
	}
	wantRefused(t, client, &shim.TeardownGlobalOverlay{}, shim.CodeConflict, "in use by 1 sandboxes")
	if diff := cmp.Diff(before, n.kernelState()); diff != "" {
		t.Errorf("kernel (-before +after what was refused):\n%s", diff)
	}
	n.audit()

	// A start does not wait for the agent.
	if err := n.end(syscall.SIGTERM); err != nil {
		t.Errorf("exit after SIGTERM: %v", err)
	}
	n.startReady()
	if diff := cmp.Diff(attached, pod.attach(t, client), compareConfigs, compareAddrs); diff != "" {
		t.Errorf("lease after a restart (-before +after):\n%s", diff)
	}
	if name := mustCall[*shim.BridgeName](t, client, agentSays()).Name; name != device.Name {
		t.Errorf("set up after a restart: %s, before %s", name, device.Name)
	}
	n.audit()
	if err := client.Detach(t.Context(), pod.handle); err != nil {
		t.Fatal(err)
	}
	n.takeDown(client, untouched)

	// Another one may come now.
	other := setups()["slice"]
	eventually(t, func() error { _, err := client.Call(t.Context(), other); return err })
	if got := pod.attach(t, client); !other.SliceCIDR.Contains(got.IP) {
		t.Errorf("in another slice the sandbox got %s", got.IP)
	}
}

// takeDown tears the overlay down and wants the daemon to be as before the
// first set-up.
func (n *node) takeDown(client *shim.Client, untouched string) {
	n.t.Helper()
	mustCall[*shim.OK](n.t, client, &shim.TeardownGlobalOverlay{})
	n.awaitTakenDown(untouched)
}

// awaitTakenDown wants the daemon to become as before the first set-up.
func (n *node) awaitTakenDown(untouched string) {
	n.t.Helper()
	eventually(n.t, func() error {
		if status, body := n.get("/healthz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "no agent") {
			return fmt.Errorf("healthz: %d %s", status, body)
		}
		return nil
	})
	if diff := cmp.Diff(untouched, n.kernelState()); diff != "" {
		n.t.Errorf("kernel (-before the set-up +after the teardown):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "state", "overlay.json")); !errors.Is(err, os.ErrNotExist) {
		n.t.Errorf("what the agent set up is still on disk: %v", err)
	}
}

func TestOverlayInUseIsNotTakenDown(t *testing.T) {
	n := newAgentNode(t)
	untouched := n.kernelState()
	client := n.client()
	mustCall[*shim.BridgeName](t, client, agentSays())
	mustCall[*shim.ServiceOverlay](t, client, &shim.SetupServiceOverlay{Service: "web", Mode: shim.ModeShared})
	guest := &shim.GuestManaged{ID: "vm"}
	mustCall[*shim.GuestConfig](t, client, &shim.AttachContainer{Handle: guest, JoinGlobal: true})
	wantRefused(t, client, &shim.TeardownGlobalOverlay{}, shim.CodeConflict, "in use by 1 services, 1 guests")
	mustCall[*shim.OK](t, client, &shim.TeardownServiceOverlay{Service: "web"})
	mustCall[*shim.OK](t, client, &shim.DetachContainer{Handle: guest})
	n.takeDown(client, untouched)
}

func TestAgentsMistakesChangeNothing(t *testing.T) {
	n := newAgentNode(t)
	client, before := n.client(), n.kernelState()
	for _, tc := range []struct{ name, cluster, slice, want string }{
		{"host bits in the cluster", "10.20.1.0/16", "10.20.1.0/24", "cluster_cidr: 10.20.1.0/16 has host bits"},
		{"a cluster that is not for hosts", "169.254.0.0/16", "169.254.1.0/24", "cluster_cidr: "},
		{"host bits in the slice", "10.20.0.0/16", "10.20.1.1/24", "slice_cidr: 10.20.1.1/24 has host bits"},
		{"a slice outside the cluster", "10.20.0.0/16", "10.99.1.0/24", "slice_cidr: "},
		{"a slice of the other family", "10.20.0.0/16", "fd20::/64", "slice_cidr: "},
		{"a slice without room", "10.20.0.0/16", "10.20.1.0/31", "slice_cidr: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			request := agentSays()
			request.ClusterCIDR, request.SliceCIDR = netip.MustParsePrefix(tc.cluster), netip.MustParsePrefix(tc.slice)
			wantRefused(t, client, request, shim.CodeInvalid, tc.want)
		})
	}
	for _, dir := range []string{"/run/wg", "wireguard", "/var/run/wireguard/../wg"} {
		request := agentSays()
		request.UAPISocketDir = dir
		wantRefused(t, client, request, shim.CodeInvalid, "uapi_socket_dir: "+dir)
	}
	ports := agentSays()
	ports.WGPort = 15353
	wantRefused(t, client, ports, shim.CodeInvalid, "dns.ports: 15353 is that of WireGuard")
	if diff := cmp.Diff(before, n.kernelState()); diff != "" {
		t.Errorf("kernel (-before +after):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "state", "overlay.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused set-up is on disk: %v", err)
	}
	for _, dir := range []string{"", "/run/wireguard", "/var/run/wireguard/"} {
		request := agentSays()
		request.UAPISocketDir = dir
		mustCall[*shim.BridgeName](t, client, request)
	}
}

// TestFailedSetupIsForgotten has another program hold the UDP port.
func TestFailedSetupIsForgotten(t *testing.T) {
	n := newAgentNode(t)
	client, before := n.client(), n.kernelState()
	var taken net.PacketConn
	if err := n.ns.Do(func() (err error) {
		taken, err = net.ListenPacket("udp", ":51820")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for range 2 {
		wantRefused(t, client, agentSays(), shim.CodeInternal, "51820")
	}
	if diff := cmp.Diff(before, n.kernelState()); diff != "" {
		t.Errorf("kernel (-before +after):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "state", "overlay.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a set-up that failed is on disk: %v", err)
	}
	corrected := setups()["slice"]
	corrected.WGPort = 40000
	mustCall[*shim.BridgeName](t, client, corrected)
	if status := n.status(); !status.Ready || status.ListenPort != 40000 || status.SliceCIDR != corrected.SliceCIDR {
		t.Errorf("status after the corrected set-up: %+v", status)
	}
	if got := newSandbox(t, "pod").attach(t, client); !corrected.SliceCIDR.Contains(got.IP) {
		t.Errorf("the sandbox got %s", got.IP)
	}
	n.audit()
}

// TestAgentWithoutASlice gets the one that its node's name is carved.
func TestAgentWithoutASlice(t *testing.T) {
	n := newAgentNode(t)
	client, request := n.client(), agentSays()
	request.SliceCIDR, request.WGPort = netip.Prefix{}, 0
	mustCall[*shim.BridgeName](t, client, request)
	status := n.status()
	if slice := status.SliceCIDR; slice.Bits() != 24 || !request.ClusterCIDR.Contains(slice.Addr()) || status.ListenPort != 51820 {
		t.Errorf("slice %s, UDP port %d", slice, status.ListenPort)
	}
	mustCall[*shim.BridgeName](t, client, request)
	if slice := n.status().SliceCIDR; slice != status.SliceCIDR {
		t.Errorf("slice %s, then %s", status.SliceCIDR, slice)
	}
}

// TestAgentOfAFilesOverlay may say what the file says, and nothing else.
func TestAgentOfAFilesOverlay(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	client, before := n.client(), n.kernelState()
	sliceless := agentSays()
	sliceless.SliceCIDR = netip.Prefix{}
	for _, same := range []*shim.SetupGlobalOverlay{agentSays(), sliceless} {
		if name := mustCall[*shim.BridgeName](t, client, same).Name; name != "zl-cluster-g" {
			t.Errorf("device %s", name)
		}
	}
	others := setups()
	others["cluster"].ClusterCIDR = netip.MustParsePrefix("10.20.0.0/17")
	for what, other := range others {
		t.Run("another "+what, func(t *testing.T) {
			wantRefused(t, client, other, shim.CodeConflict, map[string]string{"cluster": "cluster_cidr", "slice": "slice_cidr", "port": "wg_port"}[what])
		})
	}
	wantRefused(t, client, &shim.TeardownGlobalOverlay{}, shim.CodeConflict, "overlayd teardown")
	if diff := cmp.Diff(before, n.kernelState()); diff != "" {
		t.Errorf("kernel (-before +after):\n%s", diff)
	}
}

func TestBrokenSetupOnDiskIsNamed(t *testing.T) {
	n := newNode(t, netlab.TestFabric(t, "fabric"), "node-a", 1)
	write(t, n.config, fmt.Sprintf("nodeName: node-a\nagent: true\nsocket: %s\nstateDir: %s\n", n.socket, n.dir))
	path := filepath.Join(n.dir, "overlay.json")
	for _, text := range []string{"", "{", `{"cluster":"10.20.0.0"}`, `{"port":"x"}`} {
		write(t, path, text)
		if _, stderr, err := n.run("run", "--config", n.config); exitCode(err) != 1 || !strings.Contains(stderr, path) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("with %q: %v\n%s", text, err, stderr)
		}
	}
}
