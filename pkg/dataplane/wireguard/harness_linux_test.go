package wireguard

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) {
	runIfNode()
	os.Exit(netlab.Main(m))
}

// patience is how long a test waits for what should happen soon: tests also run
// in an emulated machine that is 30 times slower.
const patience = 60 * time.Second

// eachBackend runs test with every backend this kernel has.
func eachBackend(t *testing.T, test func(t *testing.T, backend Backend)) {
	for _, backend := range availableBackends(t) {
		t.Run(string(backend), func(t *testing.T) { test(t, backend) })
	}
}

func availableBackends(t testing.TB) []Backend {
	t.Helper()
	netlab.NeedTunnel(t)
	var backends []Backend
	if fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		_ = unix.Close(fd)
		backends = append(backends, Userspace)
	} else if os.Getenv("VMLAB") == "" {
		t.Logf("no userspace backend: %v", err)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	able, err := probeKernel(nl)
	if err != nil {
		t.Fatal(err)
	}
	if able {
		backends = append(backends, Kernel)
	}
	return backends
}

// testNode is a node on the underlay with a device of its own.
type testNode struct {
	ns       *netlab.NS
	key      PrivateKey
	config   Config
	device   *Device
	slices   []netip.Prefix
	port     uint16
	underlay netip.Addr
}

// newTestNode plugs node number n into the fabric: underlay 192.0.2.n and
// 2001:db8::n, slices 10.1.n.0/24 and fd00:1:n::/64, the node's own address the
// first of them.
func newTestNode(t testing.TB, fabric *netlab.Fabric, backend Backend, n int) *testNode {
	t.Helper()
	underlay := netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})
	ns, err := fabric.Host(fmt.Sprintf("n%d", n), netip.PrefixFrom(underlay, 24), netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", n)))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	node := &testNode{
		ns: ns, key: NewPrivateKey(secret), underlay: underlay, port: uint16(51820 + n),
		slices: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd00:1:%d::/64", n))},
	}
	node.config = Config{
		Name: fmt.Sprintf("zl-test%d", n), Backend: backend, PrivateKey: node.key, ListenPort: int(node.port),
		Addresses: []netip.Addr{node.addr(0), node.addr(1)}, Refuse: node.slices,
	}
	return node
}

// addr is the node's own address of a family.
func (n *testNode) addr(family int) netip.Addr { return n.slices[family].Addr().Next() }

// underlays are the node's addresses by family.
func (n *testNode) underlays() [2]netip.Addr {
	number := n.underlay.As4()[3]
	return [2]netip.Addr{n.underlay, netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", number))}
}

// peer is the node as others should know it.
func (n *testNode) peer() Peer {
	return Peer{
		Node: n.ns.Name, PublicKey: n.key.PublicKey(), AllowedIPs: n.slices,
		Endpoint: netip.AddrPortFrom(n.underlay, n.port),
	}
}

// open opens the node's device in its namespace.
func (n *testNode) open(t testing.TB) *Device {
	t.Helper()
	if err := n.tryOpen(t.Context()); err != nil {
		t.Fatal(err)
	}
	device := n.device
	t.Cleanup(func() {
		if err := device.Close(); err != nil {
			t.Error(err)
		}
	})
	return device
}

func (n *testNode) tryOpen(ctx context.Context) error {
	return n.ns.Do(func() (err error) {
		n.device, err = Open(ctx, n.config)
		return err
	})
}

func (n *testNode) handle(t testing.TB) *netlink.Handle {
	t.Helper()
	handle, err := n.ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(handle.Close)
	return handle
}

// run runs device until the test ends.
func run(t testing.TB, device *Device) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := device.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// pair makes two nodes that are each other's peers.
func pair(t testing.TB, backend Backend) (a, b *testNode) {
	t.Helper()
	fabric := netlab.TestFabric(t, "fabric")
	a, b = newTestNode(t, fabric, backend, 1), newTestNode(t, fabric, backend, 2)
	for _, n := range []*testNode{a, b} {
		n.open(t)
		run(t, n.device)
	}
	setPeers(t, a, b.peer())
	setPeers(t, b, a.peer())
	return a, b
}

func setPeers(t testing.TB, n *testNode, peers ...Peer) {
	t.Helper()
	if err := n.device.SetPeers(t.Context(), peers); err != nil {
		t.Fatal(err)
	}
}

// eventually polls until check returns nil.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ping pings an address until an answer comes.
func ping(t testing.TB, from *testNode, to netip.Addr) {
	t.Helper()
	eventually(t, fmt.Sprintf("ping %v from %s", to, from.ns.Name), func() error { return pingOnce(t, from, to) })
}

func pingOnce(t testing.TB, from *testNode, to netip.Addr) error {
	out, err := from.ns.Command(t.Context(), "ping", "-n", "-c", "1", "-W", "2", to.String()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// fault is what the device says single peers and routes lack.
func (n *testNode) fault(t testing.TB) error {
	t.Helper()
	status, err := n.device.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status.Fault
}

// wgDevice reads a device by wgctrl, as `wg show` would.
func (n *testNode) wgDevice(t testing.TB) *wgtypes.Device {
	t.Helper()
	device, err := n.tryWgDevice()
	if err != nil {
		t.Fatal(err)
	}
	return device
}

func (n *testNode) tryWgDevice() (device *wgtypes.Device, err error) {
	err = n.ns.Do(func() error {
		client, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer func() { _ = client.Close() }()
		device, err = client.Device(n.config.Name)
		return err
	})
	return device, err
}

// peerOf is what from's device says of to.
func (n *testNode) peerOf(t testing.TB, to *testNode) wgtypes.Peer {
	t.Helper()
	device := n.wgDevice(t)
	i := slices.IndexFunc(device.Peers, func(p wgtypes.Peer) bool { return p.PublicKey == to.key.PublicKey() })
	if i < 0 {
		t.Fatalf("%s does not know %s", n.ns.Name, to.ns.Name)
	}
	return device.Peers[i]
}

// ip runs the ip command in the node's namespace.
func (n *testNode) ip(t testing.TB, args ...string) string {
	t.Helper()
	out, err := n.ns.Command(t.Context(), "ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// link returns the node's device link, or nil.
func (n *testNode) link(t testing.TB) netlink.Link {
	t.Helper()
	link, err := findLink(n.handle(t), n.config.Name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// uapiWrites collects what a userspace device says it was told. The kernel's
// does not say, so there it stays empty.
type uapiWrites struct {
	slog.Handler
	mu   sync.Mutex // guards said
	said []string
}

func (u *uapiWrites) Enabled(context.Context, slog.Level) bool { return true }

func (u *uapiWrites) Handle(_ context.Context, record slog.Record) error {
	record.Attrs(func(attr slog.Attr) bool {
		if _, said, found := strings.Cut(attr.Value.String(), "UAPI: "); found && record.Message == "wireguard-go" {
			u.mu.Lock()
			defer u.mu.Unlock()
			u.said = append(u.said, said)
		}
		return true
	})
	return nil
}

// take returns what was said since the last take.
func (u *uapiWrites) take() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	said := u.said
	u.said = nil
	return said
}

// checkLeaks fails the test if goroutines outlive what comes after it.
func checkLeaks(t *testing.T) {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
}
