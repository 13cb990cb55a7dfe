package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// service gives the node another device beside that of the cluster: for service
// number s with a key, a port, table 1000+s and blocks of its own, 10.(10+s).n.0/28
// and fd00:1(s):n::/120. The first addresses of the blocks stand in for pods, and
// what comes from them asks the table.
func (n *testNode) service(t testing.TB, s int) *testNode {
	t.Helper()
	number := int(n.port) - 51820
	service := *n
	service.device = nil
	service.key = NewPrivateKey(testKey(t))
	service.port = n.port + uint16(100*s)
	service.slices = []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/28", 10+s, number)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:1%d:%d::/120", s, number)),
	}
	service.config = Config{
		Name: fmt.Sprintf("zl-svc%d-%d", s, number), Service: fmt.Sprintf("ns/svc%d", s), Table: 1000 + s, Backend: n.config.Backend,
		PrivateKey: service.key, ListenPort: int(service.port), Refuse: prefixes("0.0.0.0/0", "::/0"),
	}
	for fam, version := range []string{"-4", "-6"} {
		n.ip(t, "addr", "add", service.addr(fam).String(), "dev", "lo")
		n.ip(t, version, "rule", "add", "from", service.slices[fam].String(), "lookup", strconv.Itoa(service.config.Table))
	}
	return &service
}

// pingFrom pings from an address of the node's own.
func pingFrom(t testing.TB, from *testNode, source, to netip.Addr) error {
	out, err := from.ns.Command(t.Context(), "ping", "-n", "-c", "1", "-W", "2", "-I", source.String(), to.String()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ping %v from %v of %s: %w: %s", to, source, from.ns.Name, err, out)
	}
	return nil
}

// allRoutes are our routes of every table but the kernel's local one.
func allRoutes(t testing.TB, n *testNode) string {
	t.Helper()
	return n.ip(t, "-4", "route", "show", "table", "all", "proto", "122") + n.ip(t, "-6", "route", "show", "table", "all", "proto", "122")
}

// threeDevices makes two nodes with the cluster's device and two services each,
// every one with its counterpart as its peer.
func threeDevices(t testing.TB, backend Backend) (as, bs []*testNode) {
	t.Helper()
	fabric := netlab.TestFabric(t, "fabric")
	a, b := newTestNode(t, fabric, backend, 1), newTestNode(t, fabric, backend, 2)
	as, bs = []*testNode{a, a.service(t, 1), a.service(t, 2)}, []*testNode{b, b.service(t, 1), b.service(t, 2)}
	for i := range as {
		for _, n := range []*testNode{as[i], bs[i]} {
			run(t, n.open(t))
		}
		setPeers(t, as[i], bs[i].peer())
		setPeers(t, bs[i], as[i].peer())
	}
	return as, bs
}

// reach pings from each of the nodes' first addresses to its counterpart's.
func reach(t testing.TB, as, bs []*testNode) {
	t.Helper()
	for i := range as {
		for fam := range 2 {
			eventually(t, "services reach each other", func() error {
				return pingFrom(t, as[i], as[i].addr(fam), bs[i].addr(fam))
			})
		}
	}
}

func TestDevicesBesideEachOther(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		as, bs := threeDevices(t, backend)
		reach(t, as, bs)
		for i, n := range as {
			peer := n.peerOf(t, bs[i])
			if peer.ReceiveBytes == 0 || peer.TransmitBytes == 0 {
				t.Errorf("%s carried nothing", n.config.Name)
			}
		}
		a := as[0]
		expectLines(t, "routes of the main table", ourRoutes(t, a), []string{
			"unreachable 10.1.1.0/24", "10.1.2.0/24 dev zl-test1", "unreachable fd00:1:1::/64", "fd00:1:2::/64 dev zl-test1",
		})
		expectLines(t, "routes of a service's table", a.ip(t, "route", "show", "table", "1001"), []string{
			"unreachable default", "10.11.2.0/28 dev zl-svc1-1 proto 122", "unreachable 10.11.2.0/28 proto 122 metric 1000000",
		})
		expectLines(t, "IPv6 routes of a service's table", a.ip(t, "-6", "route", "show", "table", "1001"), []string{
			"unreachable default dev lo proto 122 metric 1024", "fd00:11:2::/120 dev zl-svc1-1 proto 122 metric 1024", "unreachable fd00:11:2::/120 dev lo proto 122 metric 1000000",
		})
		var got []Link
		if err := a.ns.Do(func() (err error) { got, err = List(t.Context()); return err }); err != nil {
			t.Fatal(err)
		}
		want := []Link{{Name: "zl-test1"}, {Name: "zl-svc1-1", Service: "ns/svc1", Table: 1001}, {Name: "zl-svc2-1", Service: "ns/svc2", Table: 1002}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("devices (-want +got):\n%s", diff)
		}
	})
}

// What goes to a service's peers finds no other way when the device is gone, and
// what goes anywhere else has none at all.
func TestAServiceWithoutItsDeviceIsCutOff(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		as, bs := threeDevices(t, backend)
		reach(t, as, bs)
		service := as[1]
		if err := service.device.Close(); err != nil {
			t.Fatal(err)
		}
		service.ip(t, "link", "del", service.config.Name)
		for fam := range 2 {
			service.ip(t, "route", "add", bs[1].slices[fam].String(), "dev", "zl-test1") // the way through the cluster's device
			for _, to := range []netip.Addr{bs[1].addr(fam), bs[0].addr(fam), bs[2].addr(fam)} {
				out, err := service.ns.Command(t.Context(), "ip", "route", "get", to.String(), "from", service.addr(fam).String()).CombinedOutput()
				if err == nil {
					t.Errorf("a service without its device has a route to %v: %s", to, out)
				}
			}
		}
		service.open(t)
		setPeers(t, service, bs[1].peer())
		reach(t, as, bs)
	})
}

// A device that is removed takes its own routes with it, and those of the others
// stay, whatever is removed first.
func TestRemoveLeavesTheOthers(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		as, bs := threeDevices(t, backend)
		reach(t, as, bs)
		for i, gone := range []string{"table 1001 metric 1000000", "unreachable 10.1.1.0/24", "unreachable default table 1002"} {
			n := as[[]int{1, 0, 2}[i]]
			before := allRoutes(t, n)
			if err := errors.Join(n.device.Close(), n.removeByName(t)); err != nil {
				t.Fatal(err)
			}
			var kept []string
			table := "table " + strconv.Itoa(n.config.Table)
			for line := range strings.Lines(before) {
				if ofMain := !strings.Contains(line, "table "); n.config.Table != 0 && !strings.Contains(line, table) || n.config.Table == 0 && !ofMain {
					kept = append(kept, line)
				}
			}
			if diff := cmp.Diff(strings.Join(kept, ""), allRoutes(t, n)); diff != "" {
				t.Errorf("routes without %s (-want +got):\n%s", n.config.Name, diff)
			}
			if !strings.Contains(before, gone) {
				t.Errorf("there was no %q in\n%s", gone, before)
			}
		}
		if routes := allRoutes(t, as[0]); routes != "" {
			t.Errorf("routes are left:\n%s", routes)
		}
	})
}

// Two devices of ours never take each other over, finished or not.
func TestDevicesDoNotTakeEachOtherOver(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
		service := node.service(t, 1)
		service.open(t)
		for name, change := range map[string]func(c *Config){
			"the cluster":     func(c *Config) { c.Service, c.Table = "", 0 },
			"another service": func(c *Config) { c.Service = "ns/other" },
		} {
			thief := *service
			change(&thief.config)
			if err := thief.tryOpen(t.Context()); !errors.Is(err, errForeign) {
				t.Errorf("%s opens the link of a service: %v", name, err)
			}
			if err := thief.removeByName(t); err != nil || service.link(t) == nil {
				t.Errorf("%s removed the link of a service (%v)", name, err)
			}
		}
		if alias := service.link(t).Attrs().Alias; alias != "zlayer/1 device=service name=ns/svc1 table=1001" {
			t.Errorf("alias %q", alias)
		}
	})
}

func TestUnfinishedLinksAreTheirNames(t *testing.T) {
	if !slices.Contains(availableBackends(t), Kernel) {
		return // an unfinished TUN ends with its process
	}
	node := newTestNode(t, netlab.TestFabric(t, "fabric"), Kernel, 1)
	service := node.service(t, 1)
	for _, name := range []string{service.config.Name, "zl-left-d"} {
		if err := addKernelLink(node.handle(t), name); err != nil {
			t.Fatal(err)
		}
	}
	node.open(t)
	service.open(t)
	list := func() (links []Link) {
		if err := node.ns.Do(func() (err error) { links, err = List(t.Context()); return err }); err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(links, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
		return links
	}
	want := []Link{{Name: "zl-left-d", Unfinished: true}, service.config.link(), node.config.link()}
	if diff := cmp.Diff(want, list()); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	for _, link := range []Link{want[0], {Name: service.config.Name, Unfinished: true}} { // the second is finished
		if err := node.ns.Do(func() error { return Remove(t.Context(), link) }); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want[1:], list()); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	if routes := ourRoutes(t, node); !strings.Contains(routes, "unreachable 10.1.1.0/24") {
		t.Errorf("the cluster's refusals went with an unfinished link:\n%s", routes)
	}
}

// A service that gets another table leaves nothing in the old one.
func TestAnotherTable(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		service := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1).service(t, 1)
		service.open(t)
		setPeers(t, service, planned(2))
		service.config.Table = 70000 // more than a header has room for
		service.reopen(t)
		setPeers(t, service, planned(2))
		if routes := allRoutes(t, service); strings.Contains(routes, "table 1001") || strings.Count(routes, "table 70000") != 6 {
			t.Errorf("routes:\n%s", routes)
		}
	})
}

// Before the peers are known, the routes of a service's device stay with those
// that refuse behind them.
func TestAServiceIsAdopted(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		service := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1).service(t, 1)
		service.open(t)
		setPeers(t, service, planned(2), planned(3))
		index, routes := service.link(t).Attrs().Index, allRoutes(t, service)
		service.config.Refuse = nil // it may leave by the cluster's device from now on
		service.reopen(t)
		var want []string
		for line := range strings.Lines(routes) {
			if !strings.Contains(line, "default") {
				want = append(want, line)
			}
		}
		if diff := cmp.Diff(strings.Join(want, ""), allRoutes(t, service)); diff != "" || service.link(t).Attrs().Index != index {
			t.Errorf("routes after a restart (-want +got):\n%s", diff)
		}
		setPeers(t, service, planned(3))
		if routes := allRoutes(t, service); strings.Contains(routes, "10.200.2.0/24") || strings.Count(routes, "10.200.3.0/24") != 2 {
			t.Errorf("routes with another set of peers:\n%s", routes)
		}
	})
}

// The caller can take the next port when one is taken, by a stranger or by
// another device of ours, at the start and later.
func TestAPortInUseIsNamed(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
		node.open(t)
		var taken *net.UDPConn
		if err := node.ns.Do(func() (err error) {
			taken, err = net.ListenUDP("udp6", &net.UDPAddr{Port: 40001})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = taken.Close() }()
		service := node.service(t, 1)
		expect := func(what string, port int) {
			t.Helper()
			service.config.ListenPort = port
			err := service.tryOpen(t.Context())
			if !errors.Is(err, ErrPortInUse) || !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "UDP port "+strconv.Itoa(port)+" is in use") {
				t.Errorf("%s: error %v", what, err)
			}
		}
		expect("of a stranger", 40001)
		expect("of the cluster's device", node.config.ListenPort)
		if link := service.link(t); link != nil {
			t.Errorf("link %v is left", link.Attrs())
		}
		if routes := allRoutes(t, service); strings.Contains(routes, "table") {
			t.Errorf("routes are left:\n%s", routes)
		}
		service.config.ListenPort = 40002
		service.open(t)
		if err := service.device.Close(); err != nil {
			t.Fatal(err)
		}
		expect("of a device that was there before", 40001)
		service.config.ListenPort = 40002
		service.open(t)
	})
}

// Devices come and go, at once and in any order, while another carries traffic
// that loses nothing.
func TestDevicesComeAndGoBesideTraffic(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		a, b := pair(t, backend)
		ping(t, a, b.addr(0))
		services := make([]*testNode, 4)
		for s := range services {
			services[s] = a.service(t, s+1)
			services[s].config.Backend = Auto
			if backend == Userspace {
				services[s].config.Backend = Userspace
			}
		}
		session := a.peerOf(t, b).LastHandshakeTime
		flow := startFlow(t, a, b.addr(0), 5*time.Millisecond)
		flow.answered(t, 10)
		var changing sync.WaitGroup
		for _, service := range services {
			changing.Go(func() {
				for range 3 {
					if err := service.comeAndGo(t.Context()); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		changing.Wait()
		flow.answered(t, 10)
		if sent, gap := flow.stop(t); gap > 0 {
			t.Errorf("lost %d of %d packets in a row", gap, sent)
		}
		if now := a.peerOf(t, b).LastHandshakeTime; now != session {
			t.Errorf("handshake of %v, the session was of %v", now, session)
		}
	})
}

// comeAndGo opens the node's device with peers, and removes it.
func (n *testNode) comeAndGo(ctx context.Context) error {
	if err := n.tryOpen(ctx); err != nil {
		return err
	}
	err := n.device.SetPeers(ctx, []Peer{planned(2), planned(3)})
	return errors.Join(err, n.device.Close(), n.ns.Do(func() error { return Remove(ctx, n.config.link()) }))
}

func TestProbesOfManyDevices(t *testing.T) {
	ns := netlab.TestNS(t, "probes")
	able, err := probeIn(ns)
	if err != nil {
		t.Fatal(err)
	}
	var probing sync.WaitGroup
	for range 8 {
		probing.Go(func() {
			for range 20 {
				if again, err := probeIn(ns); err != nil || again != able {
					t.Errorf("beside other probes, the kernel has WireGuard: %v, %v, want %v", again, err, able)
					return
				}
			}
		})
	}
	probing.Wait()
}

func probeIn(ns *netlab.NS) (able bool, err error) {
	handle, err := ns.Handle()
	if err != nil {
		return false, err
	}
	defer handle.Close()
	return probeKernel(handle)
}
