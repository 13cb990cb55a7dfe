package wireguard

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// reopen closes the node's device and opens it again as a new process would.
func (n *testNode) reopen(t testing.TB) *Device {
	t.Helper()
	if err := n.device.Close(); err != nil {
		t.Fatal(err)
	}
	return n.open(t)
}

func TestADeviceIsAdopted(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		a, b := pair(t, backend)
		ping(t, a, b.addr(0))
		index, routes, addresses := a.link(t).Attrs().Index, ourRoutes(t, a), a.ip(t, "-o", "addr", "show", "dev", a.config.Name)
		session := a.peerOf(t, b).LastHandshakeTime
		if err := a.device.Close(); err != nil {
			t.Fatal(err)
		}
		if ourRoutes := strings.ReplaceAll(ourRoutes(t, a), " linkdown", ""); ourRoutes != routes {
			t.Errorf("while no process has the device, routes are\n%swant\n%s", ourRoutes, routes)
		}
		d := a.open(t)
		run(t, d)
		if after := a.ip(t, "-o", "addr", "show", "dev", a.config.Name); after != addresses {
			t.Errorf("addresses are\n%swere\n%s", after, addresses)
		}
		if now := ourRoutes(t, a); now != routes {
			t.Errorf("before the peers are known, routes are\n%swant\n%s", now, routes)
		}
		setPeers(t, a, b.peer())
		if after := a.link(t).Attrs().Index; after != index {
			t.Errorf("the link is another: %d, was %d", after, index)
		}
		if now := a.peerOf(t, b).LastHandshakeTime; backend == Kernel && now != session {
			t.Errorf("the handshake of %v is gone, there is one of %v", session, now)
		}
		for fam := range 2 {
			ping(t, a, b.addr(fam))
			ping(t, b, a.addr(fam))
		}
	})
}

// A kernel device keeps the endpoint a peer roamed to over a restart.
func TestRestartKeepsRoamedEndpoints(t *testing.T) {
	if !slices.Contains(availableBackends(t), Kernel) {
		return // a userspace device has no endpoints to keep
	}
	a, b := pair(t, Kernel)
	announced := b.peer()
	announced.Endpoint = netip.MustParseAddrPort("192.0.2.99:51822")
	setPeers(t, a, announced)
	ping(t, b, a.addr(0))
	a.reopen(t)
	setPeers(t, a, announced)
	if peer := a.peerOf(t, b); addrPort(peer.Endpoint) != b.peer().Endpoint {
		t.Errorf("endpoint %v, want %v", peer.Endpoint, b.peer().Endpoint)
	}
}

func TestADeviceWithAnotherKeyIsRekeyed(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		a, b := pair(t, backend)
		ping(t, a, b.addr(0))
		index := a.link(t).Attrs().Index
		if err := a.device.Close(); err != nil {
			t.Fatal(err)
		}
		a.key = NewPrivateKey(testKey(t))
		a.config.PrivateKey, a.config.ListenPort, a.port = a.key, 4000, 4000
		run(t, a.open(t))
		setPeers(t, a, b.peer())
		setPeers(t, b, a.peer())
		if device := a.wgDevice(t); device.PublicKey != a.key.PublicKey() || device.ListenPort != 4000 {
			t.Errorf("key %v and port %d, want %v and 4000", device.PublicKey, device.ListenPort, a.key.PublicKey())
		}
		if after := a.link(t).Attrs().Index; after != index {
			t.Errorf("the link is another: %d, was %d", after, index)
		}
		ping(t, a, b.addr(0))
	})
}

func TestADeviceOfAnotherBackendIsReplaced(t *testing.T) {
	backends := availableBackends(t)
	if len(backends) < 2 {
		t.Logf("there is only %v", backends)
		return
	}
	fabric := netlab.TestFabric(t, "fabric")
	a, b := newTestNode(t, fabric, Userspace, 1), newTestNode(t, fabric, Kernel, 2)
	b.open(t)
	setPeers(t, b, a.peer())
	for _, backend := range []Backend{Userspace, Kernel, Userspace, Auto} {
		a.config.Backend = backend
		a.open(t)
		setPeers(t, a, b.peer())
		if backend == Auto {
			backend = Kernel
		}
		if link := a.link(t); backendOf(link) != backend || a.device.Backend() != backend {
			t.Errorf("the link is %s, want %s", link.Type(), backend)
		}
		for fam := range 2 {
			ping(t, a, b.addr(fam))
		}
		if err := a.device.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A daemon that died between making a kernel link and marking it as its own
// finds it again.
func TestAnUnfinishedLinkIsFinished(t *testing.T) {
	if !slices.Contains(availableBackends(t), Kernel) {
		return // an unfinished TUN ends with its process
	}
	node := newTestNode(t, netlab.TestFabric(t, "fabric"), Kernel, 1)
	if err := addKernelLink(node.handle(t), node.config.Name); err != nil {
		t.Fatal(err)
	}
	node.open(t)
	if link := node.link(t); link.Attrs().Alias != Alias || !isUp(link) {
		t.Errorf("alias %q, up %v", link.Attrs().Alias, isUp(link))
	}
}

func TestForeignLinksAreNotTouched(t *testing.T) {
	kinds := map[string]string{
		"veth":   "link add zl-test1 type veth peer name other",
		"bridge": "link add zl-test1 type bridge",
		"tun":    "tuntap add zl-test1 mode tun",
		"tap":    "tuntap add zl-test1 mode tap",
	}
	if slices.Contains(availableBackends(t), Kernel) {
		kinds["wireguard"] = "link add zl-test1 type wireguard"
	}
	for kind, make := range kinds {
		t.Run(kind, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, backend Backend) {
				node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
				node.ip(t, strings.Fields(make)...)
				node.ip(t, "link", "set", "zl-test1", "alias", "somebody else's")
				before := node.ip(t, "addr", "show", "dev", "zl-test1")
				if err := node.tryOpen(t.Context()); err == nil || !strings.Contains(err.Error(), "zl-test1") || !strings.Contains(err.Error(), "not ours") {
					t.Errorf("error %v", err)
				}
				if err := node.ns.Do(func() error { return Remove(t.Context(), Link{Name: "zl-test1"}) }); err != nil {
					t.Errorf("remove: %v", err)
				}
				if after := node.ip(t, "addr", "show", "dev", "zl-test1"); after != before {
					t.Errorf("the link is\n%swas\n%s", after, before)
				}
			})
		})
	}
}

func TestForeignRoutesAreNotTouched(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
		foreign := []string{
			"10.200.2.0/24 via 192.0.2.9 dev eth0 proto bird",          // a peer's slice
			"10.88.0.0/24 dev eth0 proto 122 scope link",               // our number, not our link
			"blackhole 10.89.0.0/24 proto 122",                         // our number, no link
			"10.90.0.0/24 via 192.0.2.9 dev eth0",                      // none of our business
			"unreachable 10.91.0.0/24 proto bird",                      // not our number
			"10.200.3.0/24 via 192.0.2.9 dev eth0 proto bird metric 5", // a peer's, with another metric
		}
		for _, route := range foreign {
			node.ip(t, append([]string{"route", "add"}, strings.Fields(route)...)...)
		}
		node.ip(t, "route", "add", "10.92.0.0/24", "dev", "eth0", "proto", "122", "table", "77")
		node.open(t)
		expect := func(when string) {
			t.Helper()
			now := node.ip(t, "route", "show") + node.ip(t, "route", "show", "table", "77")
			for _, route := range append(foreign, "10.92.0.0/24 dev eth0 proto 122") {
				if !strings.Contains(now, route) {
					t.Errorf("%s, %q is gone:\n%s", when, route, now)
				}
			}
		}
		if err := node.device.SetPeers(t.Context(), []Peer{planned(2), planned(3)}); err != nil {
			t.Errorf("one taken route is the device's error: %v", err)
		}
		err := node.fault(t)
		if err == nil || !strings.Contains(err.Error(), "10.200.2.0/24") || !strings.Contains(err.Error(), "another program") {
			t.Errorf("error %v", err)
		}
		if strings.Contains(fmt.Sprint(err), "10.200.3.0/24") {
			t.Errorf("error %v is about a route that does not clash", err)
		}
		if err := node.device.Ready(); err != nil {
			t.Errorf("one taken route makes the device unready: %v", err)
		}
		expect("with peers")
		if now := ourRoutes(t, node); !strings.Contains(now, "10.200.3.0/24 dev zl-test1") || !strings.Contains(now, "fd00:200:0:2::/64") {
			t.Errorf("the other routes are missing:\n%s", now)
		}
		if err := node.device.SetPeers(t.Context(), nil); err != nil {
			t.Error(err)
		}
		if err := node.fault(t); err != nil {
			t.Errorf("fault without peers: %v", err)
		}
		expect("without peers")
		if err := errors.Join(node.device.Close(), node.removeByName(t)); err != nil {
			t.Error(err)
		}
		expect("without device")
	})
}

func TestRemoveLeavesNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		checkLeaks(t)
		node := newTestNode(t, netlab.TestFabric(t, "fabric"), backend, 1)
		node.open(t)
		setPeers(t, node, planned(2), planned(3))
		if err := errors.Join(node.device.Close(), node.removeByName(t)); err != nil {
			t.Error(err)
		}
		if link := node.link(t); link != nil {
			t.Errorf("link %v is left", link.Attrs())
		}
		if routes := ourRoutes(t, node); routes != "" {
			t.Errorf("routes are left:\n%s", routes)
		}
		if err := node.removeByName(t); err != nil {
			t.Errorf("again: %v", err)
		}
	})
}

func (n *testNode) removeByName(t *testing.T) error {
	return n.ns.Do(func() error { return Remove(t.Context(), n.config.link()) })
}

func TestATUNHasOneOwner(t *testing.T) {
	if !slices.Contains(availableBackends(t), Userspace) {
		return // there is no TUN
	}
	a, b := pair(t, Userspace)
	second := *a
	if err := second.tryOpen(t.Context()); err == nil || !errors.Is(err, unix.EBUSY) {
		t.Errorf("a second device on one TUN: %v", err)
	}
	ping(t, a, b.addr(0))
}

// A node process is killed and started again with a ping running through it.
// With a kernel device no packet is lost. With a userspace device the gap is
// reported; it is far from the 15 s after which the peer would begin a
// handshake by itself.
func TestRestartOfADaemon(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend Backend) {
		fabric := netlab.TestFabric(t, "fabric")
		a, b := newTestNode(t, fabric, backend, 1), newTestNode(t, fabric, backend, 2)
		first := startNode(t, a, false, b.peer())
		startNode(t, b, false, a.peer())
		ping(t, b, a.addr(0))
		index, routes := a.link(t).Attrs().Index, ourRoutes(t, a)

		const pause = 5 * time.Millisecond
		flow := startFlow(t, b, a.addr(0), pause)
		flow.answered(t, 10)
		stopNode(first, syscall.SIGKILL)
		if now := strings.ReplaceAll(ourRoutes(t, a), " linkdown", ""); now != routes {
			t.Errorf("with the daemon dead, routes are\n%swant\n%s", now, routes)
		}
		startNode(t, a, false, b.peer())
		flow.answered(t, 10)
		sent, gap := flow.stop(t)
		t.Logf("%s: longest gap %d of %d packets, that is %v", backend, gap, sent, time.Duration(gap)*pause)
		if backend == Kernel && gap > 0 {
			t.Errorf("lost %d packets", gap)
		}
		if wait := time.Duration(gap) * pause; wait > 10*time.Second {
			t.Errorf("no session for %v", wait)
		}
		if after := a.link(t).Attrs().Index; after != index {
			t.Errorf("the link is another: %d, was %d", after, index)
		}
	})
}

// flow is a running ping.
type flow struct {
	cmd *exec.Cmd

	mu   sync.Mutex // guards seen
	seen []int      // sequence numbers of the answers
	done sync.WaitGroup
}

func startFlow(t *testing.T, from *testNode, to netip.Addr, pause time.Duration) *flow {
	t.Helper()
	f := &flow{cmd: from.ns.Command(t.Context(), "ping", "-n", "-i", fmt.Sprint(pause.Seconds()), to.String())}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	f.done.Go(func() {
		runtime.LockOSThread() // ping is killed when the thread that started it ends
		defer runtime.UnlockOSThread()
		started <- f.cmd.Start()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			_, rest, found := strings.Cut(lines.Text(), "icmp_seq=")
			number, _, answer := strings.Cut(rest, " ttl")
			if seq, err := strconv.Atoi(number); found && answer && err == nil {
				f.mu.Lock()
				f.seen = append(f.seen, seq)
				f.mu.Unlock()
			}
		}
	})
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	return f
}

// answered waits for n more answers.
func (f *flow) answered(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.seen)
	}
	want := count() + n
	eventually(t, "answers", func() error {
		if have := count(); have < want {
			return fmt.Errorf("%d of %d", have, want)
		}
		return nil
	})
}

// stop returns how many packets were sent up to the last answer, and the
// longest run of them without one.
func (f *flow) stop(t *testing.T) (sent, gap int) {
	t.Helper()
	if err := f.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	f.done.Wait()
	_ = f.cmd.Wait() // it complains of losses
	slices.Sort(f.seen)
	for _, seq := range f.seen {
		gap = max(gap, seq-sent-1)
		sent = max(sent, seq)
	}
	return sent, gap
}

func TestProbeLeavesNothing(t *testing.T) {
	ns := netlab.TestNS(t, "probe")
	handle, err := ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	if _, err := probeKernel(handle); err != nil {
		t.Fatal(err)
	}
	links, err := handle.LinkList()
	if err != nil || slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == probeName }) {
		t.Errorf("links %v (%v)", links, err)
	}
}
