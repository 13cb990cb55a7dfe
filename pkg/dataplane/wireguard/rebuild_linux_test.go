package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// Whatever is done to a device, Run puts it right, says so, and the nodes reach
// each other again on both families.
func TestRunRebuilds(t *testing.T) {
	for _, c := range []struct {
		name   string
		harm   func(t *testing.T, n *testNode)
		vanish bool // the link is another one afterwards
		only   Backend
	}{
		{"link deleted", func(t *testing.T, n *testNode) { n.ip(t, "link", "del", n.config.Name) }, true, ""},
		{"link renamed", func(t *testing.T, n *testNode) {
			n.ip(t, "link", "set", n.config.Name, "down")
			n.ip(t, "link", "set", n.config.Name, "name", "elsewhere")
		}, true, ""},
		{"link down", func(t *testing.T, n *testNode) { n.ip(t, "link", "set", n.config.Name, "down") }, false, ""},
		{"MTU changed", func(t *testing.T, n *testNode) { n.ip(t, "link", "set", n.config.Name, "mtu", "1300") }, false, ""},
		{"wireguard-go ended", func(t *testing.T, n *testNode) { endWireguardGo(t, n.device) }, false, Userspace},
		{"socket removed", func(t *testing.T, n *testNode) {
			if err := os.Remove(uapiPath(n.config.Name)); err != nil {
				t.Fatal(err)
			}
		}, false, Userspace},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, backend Backend) {
				if c.only == "" || c.only == backend {
					rebuild(t, backend, c.harm, c.vanish)
				}
			})
		})
	}
}

func rebuild(t *testing.T, backend Backend, harm func(*testing.T, *testNode), vanish bool) {
	checkLeaks(t)
	fabric := netlab.TestFabric(t, "fabric")
	a, b := newTestNode(t, fabric, backend, 1), newTestNode(t, fabric, backend, 2)
	var rebuilt atomic.Int32
	a.config.OnRebuilt = func() {
		if err := a.device.SetPeers(context.Background(), []Peer{b.peer()}); err != nil { // it holds no lock of the device
			t.Errorf("in OnRebuilt: %v", err)
		}
		rebuilt.Add(1)
	}
	for _, n := range []*testNode{a, b} {
		n.open(t)
		run(t, n.device)
	}
	setPeers(t, a, b.peer())
	setPeers(t, b, a.peer())
	ping(t, a, b.addr(0))
	if rebuilt.Load() != 0 {
		t.Error("OnRebuilt was called for a device that stood")
	}
	before, routes := a.link(t).Attrs().Index, ourRoutes(t, a)
	began := time.Now()
	harm(t, a)
	eventually(t, "device stands again", func() error {
		link := a.link(t)
		if link == nil || !isUp(link) || link.Attrs().MTU != defaultMTU || (link.Attrs().Index != before) != vanish {
			return fmt.Errorf("link %v", link)
		}
		return a.device.Ready()
	})
	t.Logf("rebuilt after %v", time.Since(began).Round(time.Millisecond))
	eventually(t, "routes are back", func() error {
		if now := ourRoutes(t, a); now != routes {
			return fmt.Errorf("have\n%s\nwant\n%s", now, routes)
		}
		return nil
	})
	for fam := range 2 {
		ping(t, a, b.addr(fam))
		ping(t, b, a.addr(fam))
	}
	eventually(t, "wgctrl sees the peer", func() error {
		if device, err := a.tryWgDevice(); err != nil || len(device.Peers) != 1 {
			return fmt.Errorf("device %v, %w", device, err)
		}
		return nil
	})
	if vanish {
		eventually(t, "OnRebuilt", func() error {
			if rebuilt.Load() == 0 {
				return errors.New("it was not called")
			}
			return nil
		})
	}
	if out := a.ip(t, "-o", "link"); strings.Count(out, Alias) != 1 {
		t.Errorf("links:\n%s", out)
	}
}

func ourRoutes(t *testing.T, n *testNode) string {
	t.Helper()
	return n.ip(t, "route", "show", "proto", "122") + n.ip(t, "-6", "route", "show", "proto", "122")
}

func endWireguardGo(t *testing.T, d *Device) {
	t.Helper()
	wireguardGo(t, d).device.Close()
}

// wireguardGo returns what runs at the moment.
func wireguardGo(t *testing.T, d *Device) *userspace {
	t.Helper()
	if err := d.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer d.unlock()
	return d.user
}

// While a device is being rebuilt, and cannot be, it says so.
func TestReadyTellsWhatIsWrong(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
		d := node.open(t)
		run(t, d)
		setPeers(t, node, planned(2))
		node.ip(t, "link", "set", "eth0", "down")
		node.ip(t, "link", "set", "eth0", "name", "eth9")
		// Somebody takes the name in the moment the device is gone.
		attempt := 0
		eventually(t, "the name is taken", func() error {
			attempt++
			script := fmt.Sprintf("link set %[1]s down\nlink set %[1]s name elsewhere%[2]d\nlink set eth9 name %[1]s\n", node.config.Name, attempt)
			cmd := node.ns.Command(t.Context(), "ip", "-batch", "-")
			cmd.Stdin = strings.NewReader(script)
			return cmd.Run() // the device may be rebuilt between two lines
		})
		eventually(t, "not ready", func() error {
			if err := d.Ready(); err == nil || !strings.Contains(err.Error(), "not ours") {
				return fmt.Errorf("ready says: %w", err)
			}
			return nil
		})
		if err := d.SetPeers(t.Context(), []Peer{planned(2)}); err == nil {
			t.Error("peers were set on a device that does not exist")
		}
		node.ip(t, "link", "set", node.config.Name, "name", "eth9")
		eventually(t, "ready", d.Ready)
	})
}

// Repairs what Run would find by itself only half a minute later.
func TestSetPeersRepairs(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
		node.open(t)
		setPeers(t, node, planned(2))
		addresses, routes := node.ip(t, "-o", "addr", "show", "dev", "zl-test1"), ourRoutes(t, node)
		for _, harm := range []string{
			"addr del 10.1.1.1/32 dev zl-test1", "addr del fd00:1:1::1/128 dev zl-test1", "addr add 10.9.9.9/24 dev zl-test1",
			"route del 10.200.2.0/24", "-6 route del fd00:200:0:2::/64", "route del unreachable 10.1.1.0/24",
			"route add 10.77.0.0/24 dev zl-test1 proto 122", "-6 route add unreachable fd00:77::/64 proto 122",
			"route change 10.200.2.0/24 dev zl-test1 proto 122 scope link",
		} {
			node.ip(t, strings.Fields(harm)...)
			setPeers(t, node, planned(2))
			if now := node.ip(t, "-o", "addr", "show", "dev", "zl-test1"); len(strings.Split(now, "\n")) != len(strings.Split(addresses, "\n")) {
				t.Errorf("after %q, addresses:\n%s", harm, now)
			}
			if now := ourRoutes(t, node); now != routes {
				t.Errorf("after %q, routes:\n%swant:\n%s", harm, now, routes)
			}
		}
	})
}

func TestHostNameEndpoint(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		fabric := netlab.TestFabric(t, "fabric")
		a, b := newTestNode(t, fabric, backend, 1), newTestNode(t, fabric, backend, 2)
		asked := make(chan struct{})
		answer := make(chan struct{})
		once := sync.OnceFunc(func() { close(asked) })
		a.config.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			once()
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-answer:
				return []netip.Addr{b.underlay}, nil
			}
		}
		a.open(t)
		b.open(t)
		run(t, a.device)
		named := b.peer()
		named.Endpoint, named.Host = netip.AddrPort{}, fmt.Sprintf("b.example:%d", b.port)
		setPeers(t, a, planned(3), named)
		setPeers(t, b, Peer{Node: "a", PublicKey: a.key.PublicKey(), AllowedIPs: a.slices})
		<-asked
		endpoints := map[bool]int{}
		for _, peer := range a.wgDevice(t).Peers {
			endpoints[peer.Endpoint != nil]++
		}
		if endpoints[true] != 1 || endpoints[false] != 1 {
			t.Errorf("while the name is looked up, %v peers have an endpoint", endpoints)
		}
		close(answer)
		ping(t, a, b.addr(0))
		ping(t, a, b.addr(1))
		// A pass keeps what the resolver found.
		setPeers(t, a, named)
		if peer := a.peerOf(t, b); addrPort(peer.Endpoint) != b.peer().Endpoint {
			t.Errorf("endpoint %v", peer.Endpoint)
		}
		if addrs, err := a.device.Endpoints(t.Context()); err != nil || !slices.Equal(addrs, []netip.Addr{b.underlay}) {
			t.Errorf("endpoints %v (%v), want %v", addrs, err, b.underlay)
		}
	})
}

// A burst of links, as when a node starts all its pods at once, in a process
// that has other things to do, is what closes a device of wireguard-go that
// follows links by netlink: its socket overflows.
func TestAThousandLinksAtOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		fabric := netlab.TestFabric(t, "fabric")
		a, b := newTestNode(t, fabric, backend, 1), newTestNode(t, fabric, backend, 2)
		a.config.OnRebuilt = func() { t.Error("the device had to be rebuilt") }
		for _, n := range []*testNode{a, b} {
			n.open(t)
			run(t, n.device)
		}
		setPeers(t, a, b.peer())
		setPeers(t, b, a.peer())
		ping(t, a, b.addr(0))
		before, running := a.link(t).Attrs().Index, wireguardGo(t, a.device)

		traffic, stop := context.WithCancel(t.Context())
		var flowing sync.WaitGroup
		flowing.Go(func() {
			_ = a.ns.Command(traffic, "ping", "-n", "-q", "-i", "0.002", b.addr(0).String()).Run()
		})
		for range 4 * runtime.GOMAXPROCS(0) {
			flowing.Go(func() { spin(traffic) })
		}
		const group = 4711
		pairs := 500
		if testing.Short() {
			pairs = 50 // the spinning goroutines leave an emulated machine little time for more
		}
		var batch strings.Builder
		for i := range pairs {
			fmt.Fprintf(&batch, "link add l%d group %d type veth peer name r%d\n", i, group, i)
			fmt.Fprintf(&batch, "link set l%d up\nlink set r%d up\n", i, i)
		}
		add := a.ns.Command(t.Context(), "ip", "-batch", "-")
		add.Stdin = strings.NewReader(batch.String())
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("make links: %v\n%s", err, out)
		}
		a.ip(t, "link", "del", "group", fmt.Sprint(group))
		stop()
		flowing.Wait()

		if err := a.device.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
		if after := a.link(t).Attrs().Index; after != before {
			t.Errorf("the link is another: %d, was %d", after, before)
		}
		if wireguardGo(t, a.device) != running || running != nil && running.dead() {
			t.Error("wireguard-go ended")
		}
		for fam := range 2 {
			ping(t, a, b.addr(fam))
		}
	})
}

// spin leaves others a turn every ten milliseconds.
func spin(ctx context.Context) (turns int) {
	for ctx.Err() == nil {
		turns++
	}
	return turns
}
