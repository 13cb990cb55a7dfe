package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// reachable is clusterOfOne with an endpoint, which guests need.
func reachable() NodeSet {
	set := clusterOfOne()
	set.Nodes[0].Endpoint = "192.0.2.1:51820"
	return set
}

// newReachablePlane is newRunningPlane with an endpoint.
func newReachablePlane(t *testing.T) *Dataplane {
	t.Helper()
	d := newPlane(t)
	if err := d.SetNodes(t.Context(), reachable()); err != nil {
		t.Fatal(err)
	}
	return d
}

// mustAddGuest adds a guest.
func mustAddGuest(t *testing.T, d *Dataplane, name string) GuestConfig {
	t.Helper()
	config, err := d.AddGuest(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// identity is what of a guest may never change.
func identity(config GuestConfig) string {
	return fmt.Sprint(config.PublicKey, " ", config.PrivateKey.Reveal(), " ", config.Addresses)
}

// peersOf are the names of the cluster's peers, in their order.
func peersOf(t *testing.T, d *Dataplane) []string {
	t.Helper()
	status, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, peer := range status.Device.Peers {
		names = append(names, peer.Node)
	}
	return names
}

// wantFiles wants so many files in a folder of the state directory.
func wantFiles(t *testing.T, d *Dataplane, dir string, want int) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(d.cfg.StateDir, dir, "*")); err != nil || len(left) != want {
		t.Errorf("files in %s: %v, %v; want %d", dir, left, err, want)
	}
}

// openGuest brings up a guest's device in a namespace of its own, on a link to
// the node.
func openGuest(t *testing.T, config GuestConfig) {
	t.Helper()
	ns := netlab.TestNS(t, "laptop")
	ip(t, "link", "add", "under", "type", "veth", "peer", "name", "eth0", "netns", "laptop")
	t.Cleanup(func() { ip(t, "link", "del", "under") })
	ip(t, "addr", "add", "192.0.2.1/24", "dev", "under")
	ip(t, "link", "set", "under", "up")
	ip(t, "-n", "laptop", "addr", "add", "192.0.2.9/24", "dev", "eth0")
	ip(t, "-n", "laptop", "link", "set", "eth0", "up")
	nodeKey, err := wgtypes.ParseKey(config.NodeKey)
	if err != nil {
		t.Fatal(err)
	}
	var device *wireguard.Device
	if err := ns.Do(func() (err error) {
		device, err = wireguard.Open(t.Context(), wireguard.Config{
			Name: "zl-laptop", PrivateKey: config.PrivateKey, Addresses: config.Addresses, MTU: config.MTU,
		})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := device.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := device.SetPeers(t.Context(), []wireguard.Peer{{
		Node: "one", PublicKey: nodeKey, Endpoint: netip.MustParseAddrPort(config.Endpoint),
		AllowedIPs: config.AllowedIPs, Keepalive: config.Keepalive,
	}}); err != nil {
		t.Fatal(err)
	}
}

func TestGuestAndSandboxReachEachOtherUntilItIsRemoved(t *testing.T) {
	d := newReachablePlane(t)
	sandbox := mustAttach(t, d, request(t, "pod", "pod"))
	config := mustAddGuest(t, d, "laptop")
	openGuest(t, config)
	for i, addr := range sandbox.Addrs {
		for deadline := time.Now().Add(time.Minute); !reaches(t, "laptop", addr.String()); {
			if time.Now().After(deadline) {
				t.Fatalf("the guest does not reach a sandbox at %s", addr)
			}
		}
		if !reaches(t, "pod", config.Addresses[i].String()) {
			t.Errorf("a sandbox does not reach the guest at %s", config.Addresses[i])
		}
	}
	guests, err := d.Guests(t.Context())
	if err != nil || len(guests) != 1 || guests[0].Peer.LastHandshake.IsZero() || guests[0].Peer.RxBytes == 0 {
		t.Errorf("guests: %+v, %v", guests, err)
	}
	if err := d.RemoveGuest(t.Context(), "laptop"); err != nil {
		t.Fatal(err)
	}
	if reaches(t, "laptop", sandbox.Addrs[0].String()) {
		t.Error("a guest that was removed is still let in")
	}
}

// guestEndpoint is where the device reaches the only guest.
func guestEndpoint(t *testing.T, d *Dataplane) netip.AddrPort {
	t.Helper()
	guests, err := d.Guests(t.Context())
	if err != nil || len(guests) != 1 {
		t.Fatalf("guests: %+v, %v", guests, err)
	}
	return guests[0].Peer.Endpoint
}

// moveGuest makes the device believe that the guest was heard of elsewhere.
func moveGuest(t *testing.T, key string, to netip.AddrPort) {
	t.Helper()
	client, err := wgctrl.New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	public, err := wgtypes.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	peer := wgtypes.PeerConfig{PublicKey: public, UpdateOnly: true, Endpoint: net.UDPAddrFromAddrPort(to)}
	if err := client.ConfigureDevice(deviceName(), wgtypes.Config{Peers: []wgtypes.PeerConfig{peer}}); err != nil {
		t.Fatal(err)
	}
}

// TestGuestIsKnownWhereItWasAfterARestart is about guests on nodes whose device
// forgets its peers' endpoints with the daemon.
func TestGuestIsKnownWhereItWasAfterARestart(t *testing.T) {
	d := newReachablePlane(t)
	key := mustAddGuest(t, d, "laptop").PublicKey
	home := netip.MustParseAddrPort("192.0.2.9:41000")
	moveGuest(t, key, home)
	for range 2 { // the second time writes nothing
		if err := d.noteGuests(t.Context(), d.current()); err != nil {
			t.Fatal(err)
		}
	}
	d = restartWith(t, d, reachable())
	if at := guestEndpoint(t, d); at != home {
		t.Errorf("after a restart the guest is at %v, want %v", at, home)
	}
}

// TestSameGuestHasOneIdentity is about guests that got another key and address
// with every request elsewhere, and about keys that a restart forgot.
func TestSameGuestHasOneIdentity(t *testing.T) {
	d := newReachablePlane(t)
	first, other := mustAddGuest(t, d, "vm 1"), mustAddGuest(t, d, "vm 2")
	if first.PublicKey == other.PublicKey || first.Addresses[0] == other.Addresses[0] {
		t.Errorf("two guests share key or address: %+v, %+v", first.Guest, other.Guest)
	}
	if again := mustAddGuest(t, d, "vm 1"); identity(again) != identity(first) {
		t.Errorf("added again: %+v, before %+v", again.Guest, first.Guest)
	}
	if diff := cmp.Diff([]string{"guest vm 1", "guest vm 2"}, peersOf(t, d)); diff != "" {
		t.Errorf("peers (-want +got)\n%s", diff)
	}
	d = restartWith(t, d, reachable())
	if diff := cmp.Diff([]string{"guest vm 1", "guest vm 2"}, peersOf(t, d)); diff != "" {
		t.Errorf("peers after a restart (-want +got)\n%s", diff)
	}
	if again := mustAddGuest(t, d, "vm 1"); identity(again) != identity(first) {
		t.Errorf("after a restart: %+v, before %+v", again.Guest, first.Guest)
	}
	if sandbox := mustAttach(t, d, request(t, "pod", "pod")); sandbox.Addrs[0] == first.Addresses[0] || sandbox.Addrs[0] == other.Addresses[0] {
		t.Errorf("a sandbox got a guest's address %s", sandbox.Addrs[0])
	}
	for range 2 {
		for _, name := range []string{"vm 1", "vm 2", "never was there"} {
			if err := d.RemoveGuest(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
	}
	wantFiles(t, d, guestsDir, 0)
	if peers := peersOf(t, d); len(peers) > 0 {
		t.Errorf("peers after the guests were removed: %v", peers)
	}
	if again := mustAddGuest(t, d, "vm 1"); again.PublicKey == first.PublicKey || again.Addresses[0] == first.Addresses[0] {
		t.Errorf("added after it was removed, it has the key or address from before: %+v", again.Guest)
	}
}

func TestFailedGuestLeavesNothing(t *testing.T) {
	for _, tc := range []struct {
		name, guest string
		arrange     func(*testing.T, *Dataplane)
		want        error
	}{
		{"no name", "", nil, ErrInvalid},
		{"a name of 254 bytes", strings.Repeat("g", 254), nil, ErrInvalid},
		{"a name of two lines", "a\nb", nil, ErrInvalid},
		{"no endpoint of the node", "vm", func(t *testing.T, d *Dataplane) {
			t.Helper()
			if err := d.SetNodes(t.Context(), clusterOfOne()); err != nil {
				t.Fatal(err)
			}
		}, ErrInvalid},
		{"no free address", "vm", func(t *testing.T, d *Dataplane) {
			t.Helper()
			for pool := d.current().addresses.pools[0]; ; {
				if _, err := pool.Allocate(fmt.Sprint("filler", pool.Stats().Used)); err != nil {
					break
				}
			}
		}, ipam.ErrExhausted},
		{"a step fails", "vm", func(t *testing.T, _ *Dataplane) {
			t.Helper()
			t.Setenv(failpoint.Env, "guest/recorded=error")
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newReachablePlane(t)
			if tc.arrange != nil {
				tc.arrange(t, d)
			}
			used := d.current().addresses.stats()[1].Used
			_, err := d.AddGuest(t.Context(), tc.guest)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("error %v, want %v", err, tc.want)
			}
			wantFiles(t, d, guestsDir, 0)
			if left := peersOf(t, d); len(left) > 0 {
				t.Errorf("peers are left: %v", left)
			}
			if now := d.current().addresses.stats()[1].Used; now != used {
				t.Errorf("%d addresses are held, before %d", now, used)
			}
			if guests, err := d.Guests(t.Context()); err != nil || len(guests) > 0 {
				t.Errorf("guests are left: %v, %v", guests, err)
			}
		})
	}
	t.Run("no node set yet", func(t *testing.T) {
		if _, err := newPlane(t).AddGuest(t.Context(), "vm"); !errors.Is(err, ErrNotReady) {
			t.Errorf("error %v, want ErrNotReady", err)
		}
	})
}

func TestManyGuestsAtOnce(t *testing.T) {
	d := newReachablePlane(t)
	const many = 100
	var wg sync.WaitGroup
	var mu sync.Mutex
	addrs, keys := map[netip.Addr]bool{}, map[string]bool{}
	for i := range many {
		wg.Go(func() {
			config, err := d.AddGuest(t.Context(), fmt.Sprintf("vm%d", i))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			addrs[config.Addresses[0]], keys[config.PublicKey] = true, true
		})
	}
	wg.Wait()
	if peers := peersOf(t, d); len(addrs) != many || len(keys) != many || len(peers) != many {
		t.Errorf("%d guests have %d addresses, %d keys and are %d peers", many, len(addrs), len(keys), len(peers))
	}
	for i := range many {
		wg.Go(func() {
			if err := d.RemoveGuest(t.Context(), fmt.Sprintf("vm%d", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantFiles(t, d, guestsDir, 0)
	wantNothing(t, d)
}

// TestGuestsKeyIsNobodyElses has a node and a peer claim a guest's key.
func TestGuestsKeyIsNobodyElses(t *testing.T) {
	d := newReachablePlane(t)
	config := mustAddGuest(t, d, "vm")
	thief := Node{Name: "thief", PublicKey: config.PublicKey, Slices: prefixes("10.200.2.0/24")}
	if err := d.AddPeer(t.Context(), AddedPeer{PublicKey: config.PublicKey, AllowedIPs: thief.Slices}); !errors.Is(err, ErrConflict) {
		t.Errorf("peer with a guest's key: %v, want ErrConflict", err)
	}
	set := reachable()
	set.Nodes = append(set.Nodes, thief)
	for _, when := range []string{"while it runs", "after a restart"} {
		if err := d.SetNodes(t.Context(), set); err != nil {
			t.Fatal(err)
		}
		if problems := d.Problems(); len(problems) != 1 || !errors.Is(problems[0].Err, wireguard.ErrDuplicateKey) {
			t.Errorf("%s: problems %v, want one of a key that is taken", when, problems)
		}
		if diff := cmp.Diff([]string{"guest vm"}, peersOf(t, d)); diff != "" {
			t.Errorf("%s: peers (-want +got)\n%s", when, diff)
		}
		d = restartWith(t, d, set)
	}
}

func TestGuestWhosePrivateKeyIsLost(t *testing.T) {
	d := newReachablePlane(t)
	first := mustAddGuest(t, d, "vm")
	if err := removeFile(d.guests.store.path("vm", keySuffix)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AddGuest(t.Context(), "vm"); !errors.Is(err, ErrConflict) {
		t.Errorf("error %v, want ErrConflict", err)
	}
	if err := d.RemoveGuest(t.Context(), "vm"); err != nil {
		t.Fatal(err)
	}
	if again := mustAddGuest(t, d, "vm"); again.PublicKey == first.PublicKey || again.PrivateKey.PublicKey().String() != again.PublicKey {
		t.Errorf("added anew: %+v", again.Guest)
	}
}

// TestGuestThatCannotBeRemovedStaysAsItIs has the removal fail before its peer is
// gone.
func TestGuestThatCannotBeRemovedStaysAsItIs(t *testing.T) {
	d := newReachablePlane(t)
	first := mustAddGuest(t, d, "vm")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.RemoveGuest(ended, "vm"); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want context.Canceled", err)
	}
	wantFiles(t, d, guestsDir, 2)
	if diff := cmp.Diff(identity(first), identity(mustAddGuest(t, d, "vm"))); diff != "" {
		t.Errorf("added again (-before +after):\n%s", diff)
	}
	if err := d.RemoveGuest(t.Context(), "vm"); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, d, guestsDir, 0)
	wantNothing(t, d)
}

// TestGuestOfAnotherSliceIsNoPeer restarts the node with another slice.
func TestGuestOfAnotherSliceIsNoPeer(t *testing.T) {
	d := newReachablePlane(t)
	mustAddGuest(t, d, "vm")
	if err := Teardown(context.WithoutCancel(t.Context()), d.cfg.StateDir, d.log); err != nil {
		t.Fatal(err)
	}
	set := reachable()
	set.Nodes[0].Slices = prefixes("10.200.7.0/24", "fd00:200:0:7::/64")
	d = restartWith(t, d, set)
	if peers := peersOf(t, d); len(peers) > 0 {
		t.Errorf("peers: %v", peers)
	}
	wantNothing(t, d)
	if again := mustAddGuest(t, d, "vm"); !set.Nodes[0].Slices[0].Contains(again.Addresses[0]) {
		t.Errorf("added again, the guest has %v", again.Addresses)
	}
}
