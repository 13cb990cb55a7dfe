package wireguard

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestTwoNodesReachEachOther(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		a, b := pair(t, backend)
		for fam := range 2 {
			ping(t, a, b.addr(fam))
			ping(t, b, a.addr(fam))
		}
		if err := a.device.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
	})
}

func TestAutoTakesTheKernelWhereItCan(t *testing.T) {
	backends := availableBackends(t)
	node := newTestNode(t, netlab.TestFabric(t, "fabric"), Auto, 1)
	if got, want := node.open(t).Backend(), backends[len(backends)-1]; got != want {
		t.Errorf("backend %s, want %s of %v", got, want, backends)
	}
	if link := node.link(t); backendOf(link) != node.device.Backend() {
		t.Errorf("the link is %s", link.Type())
	}
}

// What the kernel holds for a node with two peers, as `ip` prints it.
func TestLinkAddressesAndRoutes(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
		node.open(t)
		setPeers(t, node, planned(2), planned(3))
		link := node.link(t)
		if attrs := link.Attrs(); attrs.Alias != "zlayer/1 device=cluster" || attrs.MTU != 1420 || attrs.Flags&net.FlagUp == 0 {
			t.Errorf("alias %q, MTU %d, flags %v", attrs.Alias, attrs.MTU, attrs.Flags)
		}
		expectLines(t, "addresses", node.ip(t, "-o", "addr", "show", "dev", "zl-test1"), []string{"inet 10.1.1.1/32", "inet6 fd00:1:1::1/128"})
		expectLines(t, "IPv4 routes", node.ip(t, "route", "show", "proto", "122"), []string{
			"unreachable 10.1.1.0/24",
			"10.200.2.0/24 dev zl-test1 scope link src 10.1.1.1",
			"10.200.3.0/24 dev zl-test1 scope link src 10.1.1.1",
		})
		expectLines(t, "IPv6 routes", node.ip(t, "-6", "route", "show", "proto", "122"), []string{
			"unreachable fd00:1:1::/64 dev lo metric 1024",
			"fd00:200:0:2::/64 dev zl-test1 src fd00:1:1::1 metric 1024",
			"fd00:200:0:3::/64 dev zl-test1 src fd00:1:1::1 metric 1024",
		})
	})
}

// expectLines wants text to consist of as many lines, each of which holds one
// of the wanted texts.
func expectLines(t *testing.T, what, text string, want []string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for _, w := range want {
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, w) }) {
			t.Errorf("%s lack %q", what, w)
		}
	}
	if len(lines) != len(want) {
		t.Errorf("%d lines of %s, want %d", len(lines), what, len(want))
	}
	if t.Failed() {
		t.Logf("%s:\n%s", what, text)
	}
}

func TestPeersChangeByDifference(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		fabric := netlab.TestFabric(t, "fabric")
		a, b := newTestNode(t, fabric, backend, 1), newTestNode(t, fabric, backend, 2)
		told := &uapiWrites{}
		a.config.Log = slog.New(told)
		a.open(t)
		b.open(t)
		setPeers(t, a, b.peer(), planned(3))
		setPeers(t, b, a.peer())
		ping(t, a, b.addr(0))
		session := a.peerOf(t, b).LastHandshakeTime
		expect := func(what string, want []string) {
			t.Helper()
			if backend == Kernel {
				want = nil
			}
			if diff := cmp.Diff(want, told.take()); diff != "" {
				t.Errorf("%s wrote (-want +got):\n%s", what, diff)
			}
			if now := a.peerOf(t, b).LastHandshakeTime; now != session {
				t.Errorf("%s ended a session: handshake of %v is one of %v", what, session, now)
			}
		}
		_ = told.take()
		setPeers(t, a, b.peer(), planned(3))
		expect("no change", nil)
		setPeers(t, a, b.peer(), planned(3), planned(4))
		expect("a new peer", []string{"Created", "Updating endpoint", "Updating persistent keepalive interval", "Removing all allowedips", "Adding allowedip", "Adding allowedip"})
		changed := planned(3)
		changed.Endpoint = netip.MustParseAddrPort("192.0.2.99:1")
		setPeers(t, a, b.peer(), changed, planned(4))
		expect("another endpoint", []string{"Updating endpoint"})
		setPeers(t, a, planned(4), b.peer())
		expect("a peer gone", []string{"Removing"})
		if err := pingOnce(t, a, b.addr(1)); err != nil {
			t.Error(err)
		}
	})
}

// Routes are written by difference too; the kernel tells of every write.
func TestRoutesChangeByDifference(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
		node.open(t)
		setPeers(t, node, planned(2), planned(3))
		updates := make(chan netlink.RouteUpdate, 100)
		done := make(chan struct{})
		defer close(done)
		if err := node.ns.Do(func() error { return netlink.RouteSubscribe(updates, done) }); err != nil {
			t.Fatal(err)
		}
		marker := prefixes("203.0.113.0/24")[0]
		written := func() (destinations []string) {
			node.ip(t, "route", "add", "unreachable", marker.String()) // whatever came before it has been heard
			for update := range updates {
				if update.Dst.String() == marker.String() {
					if update.Type == unix.RTM_DELROUTE {
						continue
					}
					break
				}
				if update.Protocol == RouteProtocol { // the kernel makes some of its own for addresses, when it finds time
					destinations = append(destinations, update.Dst.String())
				}
			}
			node.ip(t, "route", "del", "unreachable", marker.String())
			slices.Sort(destinations)
			return destinations
		}
		setPeers(t, node, planned(3), planned(2))
		if got := written(); len(got) != 0 {
			t.Errorf("no change wrote routes to %v", got)
		}
		setPeers(t, node, planned(3), planned(4))
		if diff := cmp.Diff([]string{"10.200.2.0/24", "10.200.4.0/24", "fd00:200:0:2::/64", "fd00:200:0:4::/64"}, written()); diff != "" {
			t.Errorf("routes written (-want +got):\n%s", diff)
		}
	})
}

// A node that moves keeps its sessions, and passes do not send its peers back
// to where it was.
func TestRoaming(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		a, b := pair(t, backend)
		ping(t, a, b.addr(0))
		session := a.peerOf(t, b).LastHandshakeTime
		b.ip(t, "addr", "del", "192.0.2.2/24", "dev", "eth0") // and with it the source of b's packets so far
		b.ip(t, "addr", "add", "192.0.2.77/24", "dev", "eth0")
		ping(t, b, a.addr(0))
		moved := netip.MustParseAddrPort("192.0.2.77:51822")
		check := func(when string) {
			t.Helper()
			if peer := a.peerOf(t, b); addrPort(peer.Endpoint) != moved || peer.LastHandshakeTime != session {
				t.Errorf("%s: endpoint %v, handshake %v, want %v and %v", when, peer.Endpoint, peer.LastHandshakeTime, moved, session)
			}
		}
		check("after the move")
		setPeers(t, a, b.peer())
		check("after another pass")
		ping(t, a, b.addr(1))
	})
}

// A peer that the device refuses costs only itself.
func TestRefusedPeer(t *testing.T) {
	if !slices.Contains(availableBackends(t), Userspace) {
		t.Skip("the kernel refuses no peer that can be written")
	}
	node := newTestNode(t, netlab.TestFabric(t, "fabric"), Userspace, 1)
	node.open(t)
	bad := planned(3)
	bad.Keepalive = 100_000 * time.Second // more than the protocol's 16 bits
	if err := node.device.SetPeers(t.Context(), []Peer{planned(2), bad, planned(4)}); err != nil {
		t.Errorf("one bad peer is the device's error: %v", err)
	}
	err := node.fault(t)
	if err == nil || !strings.Contains(err.Error(), bad.PublicKey.String()) || strings.Count(err.Error(), "write peer") != 1 {
		t.Errorf("error %v does not name that peer alone", err)
	}
	var keys []wgtypes.Key
	for _, peer := range node.wgDevice(t).Peers {
		if len(peer.AllowedIPs) == 2 && peer.Endpoint != nil {
			keys = append(keys, peer.PublicKey)
		}
	}
	for _, want := range []Peer{planned(2), planned(4)} {
		if !slices.Contains(keys, want.PublicKey) {
			t.Errorf("%s is missing", want.Node)
		}
	}
	if err := node.device.Ready(); err != nil {
		t.Errorf("one bad peer makes the device unready: %v", err)
	}
}

func TestStatus(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		a, b := pair(t, backend)
		ping(t, a, b.addr(0))
		status, err := a.device.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(status.Peers) != 1 {
			t.Fatalf("%d peers", len(status.Peers))
		}
		peer := status.Peers[0]
		if peer.LastHandshake.IsZero() || peer.RxBytes == 0 || peer.TxBytes == 0 {
			t.Errorf("no traffic in %+v", peer)
		}
		peer.LastHandshake, peer.RxBytes, peer.TxBytes = time.Time{}, 0, 0
		status.Peers = nil
		want := Status{
			Device: "zl-test1", Backend: backend, PublicKey: a.key.PublicKey(), ListenPort: 51821, MTU: 1420,
			Addresses: []netip.Addr{a.addr(0), a.addr(1)},
		}
		wantPeer := PeerStatus{Node: b.ns.Name, PublicKey: b.key.PublicKey(), Endpoint: b.peer().Endpoint, AllowedIPs: b.slices}
		equal := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
		if diff := cmp.Diff(want, status, append(compare, equal)...); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(wantPeer, peer, compare...); diff != "" {
			t.Errorf("peer (-want +got):\n%s", diff)
		}
	})
}

func TestSetMTU(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
		d := node.open(t)
		if err := d.SetMTU(t.Context(), 1300); err != nil {
			t.Fatal(err)
		}
		if mtu := node.link(t).Attrs().MTU; mtu != 1300 || d.MTU() != 1300 {
			t.Errorf("MTU %d of the link and %d of the device, want 1300", mtu, d.MTU())
		}
		if err := d.SetMTU(t.Context(), 1279); err == nil {
			t.Error("an MTU too small for IPv6 was set")
		}
	})
}

func TestClosedDevice(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
		d := node.open(t)
		run(t, d)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		_, statusErr := d.Status(t.Context())
		for what, err := range map[string]error{"Ready": d.Ready(), "SetPeers": d.SetPeers(t.Context(), nil), "Status": statusErr} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, err := os.Stat(uapiPath(d.Name())); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket for wgctrl is left: %v", err)
		}
	})
}

func TestTunnelMTU(t *testing.T) {
	fabric := netlab.TestFabric(t, "fabric")
	node := newTestNode(t, fabric, Auto, 1)
	v4, v6, far := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("198.51.100.1")
	expect := func(what string, want int, endpoints ...netip.Addr) {
		t.Helper()
		var got int
		if err := node.ns.Do(func() (err error) { got, err = TunnelMTU(endpoints); return err }); err != nil || got != want {
			t.Errorf("%s: MTU %d (%v), want %d", what, got, err, want)
		}
	}
	expect("IPv4", 1440, v4)
	expect("IPv6", 1420, v6)
	expect("both", 1420, v4, v6)
	expect("IPv4 in IPv6", 1440, netip.MustParseAddr("::ffff:192.0.2.9"))
	expect("one without a route", 1440, v4, far)
	expect("nobody known, and no default route", 1420)
	node.ip(t, "route", "add", "default", "via", "192.0.2.3", "mtu", "1492")
	expect("nobody known, but a default route", 1432)
	node.ip(t, "route", "del", "default")
	node.ip(t, "route", "add", "198.51.100.0/24", "via", "192.0.2.3", "mtu", "1390")
	expect("a route with an MTU", 1330, v4, far)
	node.ip(t, "link", "set", "eth0", "mtu", "1400")
	expect("a smaller link", 1340, v4)
	node.ip(t, "link", "set", "eth0", "mtu", "1300")
	expect("too small a link", MinMTU, v4, v6)
	node.ip(t, "link", "set", "eth0", "mtu", "1500")
	own4, own6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	expect("this machine alone", 1420, own4, own6, netip.MustParseAddr("127.0.0.1"))
	expect("this machine beside another", 1440, own4, v4, own6)
	node.ip(t, "addr", "add", "192.88.99.1/32", "dev", "eth0")
	node.ip(t, "addr", "add", "100::1/128", "dev", "eth0", "nodad")
	expect("nobody known, and it has the addresses that only default routes lead to", 1420)
}

func TestOpenLeavesNothingWhenItFails(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
		err := node.ns.Do(func() error {
			taken, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(node.port)})
			if err != nil {
				return err
			}
			defer func() { _ = taken.Close() }()
			_, err = Open(t.Context(), node.config)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), fmt.Sprint(node.port)) || !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("error %v does not say that port %d is in use", err, node.port)
		}
		if link := node.link(t); link != nil {
			t.Errorf("link %v is left", link.Attrs())
		}
		if routes := node.ip(t, "route", "show", "proto", "122") + node.ip(t, "-6", "route", "show", "proto", "122"); routes != "" {
			t.Errorf("routes are left:\n%s", routes)
		}
		node.open(t) // and works when the port is free
	})
}

// TestRedirect has a peer that roamed be sent to where it was set again, until it is
// heard from elsewhere.
func TestRedirect(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		a, b := pair(t, backend)
		ping(t, a, b.addr(0))
		b.ip(t, "addr", "del", "192.0.2.2/24", "dev", "eth0")
		b.ip(t, "addr", "add", "192.0.2.77/24", "dev", "eth0")
		ping(t, b, a.addr(0))
		set := b.peer().Endpoint
		if got := addrPort(a.peerOf(t, b).Endpoint); got == set {
			t.Fatalf("the peer did not roam from %s", set)
		}
		if err := a.device.Redirect(t.Context(), []Peer{{PublicKey: wgtypes.Key{1}, Endpoint: set}}); err != nil {
			t.Errorf("redirect nobody: %v", err)
		}
		if err := a.device.Redirect(t.Context(), []Peer{b.peer()}); err != nil {
			t.Fatal(err)
		}
		if got := addrPort(a.peerOf(t, b).Endpoint); got != set {
			t.Errorf("redirected to %s, want %s", got, set)
		}
		ping(t, b, a.addr(0))
		if got := addrPort(a.peerOf(t, b).Endpoint); got == set {
			t.Error("the peer roams no more")
		}
	})
}

// TestHold has a peer that roamed and is quiet stay where it was last heard, and
// go back to where the node set has it once it is not held any more.
func TestHold(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		fabric := netlab.TestFabric(t, "fabric")
		a, b := newTestNode(t, fabric, backend, 1), newTestNode(t, fabric, backend, 2) // of which one is never heard
		a.open(t)
		setPeers(t, a, b.peer())
		set, roamed := b.peer(), netip.MustParseAddrPort("192.0.2.77:4500")
		endpoint := func() netip.AddrPort {
			if err := a.device.SetMTU(t.Context(), a.device.MTU()); err != nil { // which compares everything
				t.Fatal(err)
			}
			return addrPort(a.peerOf(t, b).Endpoint)
		}
		roam := wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: b.key.PublicKey(), UpdateOnly: true, Endpoint: udpAddr(roamed)}}}
		if err := a.device.wg.ConfigureDevice(a.device.Name(), roam); err != nil {
			t.Fatal(err)
		}
		held := set
		held.Endpoint = roamed
		if err := a.device.Hold(t.Context(), []Peer{held, {PublicKey: wgtypes.Key{1}, Endpoint: roamed}}); err != nil {
			t.Fatal(err)
		}
		if got := endpoint(); got != roamed {
			t.Errorf("held, and is at %s, want %s", got, roamed)
		}
		if err := a.device.Hold(t.Context(), []Peer{set}); err != nil {
			t.Fatal(err)
		}
		if got := endpoint(); got != set.Endpoint {
			t.Errorf("not held any more, and is at %s, want %s", got, set.Endpoint)
		}
	})
}
