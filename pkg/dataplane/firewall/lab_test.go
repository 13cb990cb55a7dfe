//go:build linux

package firewall

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// patient bounds a test: an emulated machine is thirty times slower.
const patient = 2 * time.Minute

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	t.Cleanup(cancel)
	return ctx
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// testGroup is the link group of the lab's ports.
const testGroup = 0x7a6c0000

// testRules are those of the node in the lab: bridge, tunnel and slices.
func testRules() Rules {
	return Rules{
		Cluster:      prefixes("10.200.0.0/16", "fd00:200::/48"),
		Own:          prefixes("10.200.5.0/24", "fd00:200:0:5::/64"),
		Masquerade:   true,
		NoMasquerade: prefixes("198.51.100.0/24", "2001:db8:51::/48"),
		Bridges:      []string{"zl-default"},
		Tunnels:      []string{"zl-wg"},
		PortGroup:    testGroup,
	}
}

// testServices are a service that its pods may leave, and two that are isolated.
func testServices() []Service {
	return []Service{
		{
			Bridge: "zl-a", Device: "wg-a",
			Own:    prefixes("10.200.5.32/28", "fd00:200:0:5::20/124"),
			Remote: prefixes("10.200.9.32/28", "fd00:200:0:9::20/124"),
		},
		{
			Bridge: "zl-b", Device: "wg-b", Isolated: true,
			Own:    prefixes("10.200.5.64/28", "fd00:200:0:5::40/124"),
			Remote: prefixes("10.200.9.64/28", "10.200.8.64/28", "fd00:200:0:9::40/124", "fd00:200:0:8::40/124"),
		},
		{
			Bridge: "zl-c", Device: "wg-c", Isolated: true,
			Own:    prefixes("10.200.5.96/28", "fd00:200:0:5::60/124"),
			Remote: prefixes("10.200.9.96/28", "fd00:200:0:9::60/124"),
		},
	}
}

// testFirewall returns a firewall that works in ns.
func testFirewall(t testing.TB, ns *netlab.NS, table string) *Firewall {
	t.Helper()
	file, err := ns.Open()
	if err != nil {
		t.Fatal(err)
	}
	f, err := New(Config{Table: table, NetNS: int(file.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		_ = file.Close()
	})
	return f
}

// mustApply applies r and checks that this changed something or not.
func mustApply(t testing.TB, f *Firewall, r Rules, want bool) {
	t.Helper()
	changed, err := f.Apply(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	if changed != want {
		t.Fatalf("Apply changed something: %v, want %v", changed, want)
	}
}

func run(t testing.TB, ns *netlab.NS, script string) string {
	t.Helper()
	out, err := ns.Command(testContext(t), "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// A node is a machine of a cluster, with pods behind our bridge, a stranger's
// bridge, and a tunnel that is a veth: to the firewall only its name matters.
type node struct {
	*netlab.NS
	fabric   *netlab.Fabric
	outside  *netlab.NS // a host on the underlay
	peer     *netlab.NS // the far end of the tunnel
	firewall *Firewall
}

const (
	bridgeMAC  = "02:00:00:00:00:fe"
	foreignMAC = "02:00:00:00:00:fd"
)

func newNode(t testing.TB) *node {
	t.Helper()
	fabric := netlab.TestFabric(t, "fabric")
	host, err := fabric.Host("node", prefixes("192.0.2.1/24", "2001:db8::1/64")...)
	if err != nil {
		t.Fatal(err)
	}
	outside, err := fabric.Host("outside", prefixes("192.0.2.9/24", "2001:db8::9/64", "198.51.100.9/32", "2001:db8:51::9/128")...)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{NS: host, fabric: fabric, outside: outside, peer: netlab.TestNS(t, "peer")}
	run(t, n.NS, `
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0
		ip route add default via 192.0.2.9
		ip -6 route add default via 2001:db8::9
		for b in zl-default foreign; do
			ip link add $b type bridge mcast_snooping 0
			ip link set $b up
		done
		ip link set zl-default address `+bridgeMAC+`
		ip link set foreign address `+foreignMAC+`
		ip addr add 169.254.1.1/32 dev zl-default scope link
		ip rule add iif zl-default lookup 122
		ip -6 rule add iif zl-default lookup 122
		ip addr add fe80::1/64 dev zl-default nodad
		ip link add zl-wg type veth peer name tun0 netns /run/netns/peer
		ip addr add 10.200.5.1/32 dev zl-wg
		ip addr add fd00:200:0:5::1/128 dev zl-wg nodad
		ip addr add fe80::a/64 dev zl-wg nodad
		ip link set zl-wg up`)
	run(t, n.peer, `
		ip addr add 10.200.9.9/32 dev tun0
		ip addr add fd00:200:0:9::9/128 dev tun0 nodad
		ip addr add fe80::b/64 dev tun0 nodad
		ip link set tun0 up
		ip route add 10.200.0.0/16 dev tun0
		ip -6 route add fd00:200::/48 via fe80::a dev tun0`)
	// The outside answers pods directly where they aren't masqueraded.
	run(t, outside, `
		ip route add 10.200.5.0/24 via 192.0.2.1
		ip -6 route add fd00:200:0:5::/64 via 2001:db8::1`)
	n.firewall = testFirewall(t, host, "")
	return n
}

// A pod is a namespace behind a port of a bridge.
type pod struct {
	*netlab.NS
	pin  Pin
	port string
}

// addPod plugs a pod into a bridge of the node, as the package attach does: ports
// are isolated, and what comes in by our bridge for a pod leaves by its port. Its
// number makes its addresses.
func (n *node) addPod(t testing.TB, bridge string, number int) *pod {
	t.Helper()
	p := &pod{NS: netlab.TestNS(t, fmt.Sprintf("pod%d", number)), port: fmt.Sprintf("port%d", number)}
	p.pin = Pin{
		MAC:   net.HardwareAddr{2, 0, 0, 0, 5, byte(number)},
		Addrs: addrs(fmt.Sprintf("10.200.5.%d", number), fmt.Sprintf("fd00:200:0:5::%x", number)),
	}
	group := ""
	if bridge != "foreign" {
		group = fmt.Sprintf("group %d", testGroup)
	}
	run(t, n.NS, fmt.Sprintf(`
		ip link add %[1]s %[7]s type veth peer name eth0 address %[2]s netns %[3]s
		ip link set %[1]s master %[4]s
		bridge link set dev %[1]s isolated on learning off flood off mcast_flood off bcast_flood off
		bridge fdb replace %[2]s dev %[1]s master static
		ip link set %[1]s up
		ip route add %[5]s dev %[4]s
		ip -6 route add %[6]s dev %[4]s
		ip route add %[5]s dev %[1]s table 122
		ip -6 route add %[6]s dev %[1]s table 122
		for link in %[1]s %[4]s; do
			ip neigh add %[5]s lladdr %[2]s dev $link nud permanent
			ip -6 neigh add %[6]s lladdr %[2]s dev $link nud permanent
		done`,
		p.port, p.pin.MAC, p.Path, bridge, p.pin.Addrs[0], p.pin.Addrs[1], group))
	// Silent until a test speaks: no autoconfiguration, no answers.
	run(t, p.NS, fmt.Sprintf(`
		sysctl -qw net.ipv6.conf.eth0.accept_ra=0 net.ipv6.conf.eth0.addr_gen_mode=1
		ip addr add %s/32 dev eth0
		ip addr add %s/128 dev eth0 nodad
		ip link set eth0 up
		ip route add default via 169.254.1.1 dev eth0 onlink
		ip -6 route add default via fe80::1 dev eth0
		ip neigh add 169.254.1.1 lladdr %[3]s dev eth0 nud permanent
		ip -6 neigh add fe80::1 lladdr %[3]s dev eth0 nud permanent`, p.pin.Addrs[0], p.pin.Addrs[1], bridgeMAC))
	handle, err := n.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	link, err := handle.LinkByName(p.port)
	if err != nil {
		t.Fatal(err)
	}
	p.pin.PortIndex = link.Attrs().Index
	return p
}

// A wire is a packet socket: it sends whole frames, and sees those that come in.
type wire struct {
	fd   int
	link int
}

// openWire opens a wire on a link of ns.
func openWire(t testing.TB, ns *netlab.NS, link string) *wire {
	t.Helper()
	w := &wire{fd: -1}
	err := ns.Do(func() error {
		l, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		w.link = l.Index
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: w.link})
	})
	if err != nil {
		t.Fatal(err)
	}
	// A tick in which the reader looks at the clock, not a time to wait.
	if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wire) send(t testing.TB, frame []byte) {
	t.Helper()
	to := &unix.SockaddrLinklayer{Ifindex: w.link, Halen: 6}
	copy(to.Addr[:], frame)
	if err := unix.Sendto(w.fd, frame, 0, to); err != nil {
		t.Fatalf("send a frame: %v", err)
	}
}

// until returns all frames seen up to and with the first that last accepts.
func (w *wire) until(t testing.TB, last func(frame []byte) bool) [][]byte {
	t.Helper()
	var seen [][]byte
	buffer := make([]byte, 1<<16)
	for deadline := time.Now().Add(patient); time.Now().Before(deadline); {
		n, _, err := unix.Recvfrom(w.fd, buffer, 0)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatalf("read a frame: %v", err)
		}
		frame := append([]byte(nil), buffer[:n]...)
		seen = append(seen, frame)
		if last(frame) {
			return seen
		}
	}
	t.Fatalf("the awaited frame didn't come; seen: %x", seen)
	return nil
}

// counters returns how much each counter has grown since it was last called.
func (n *node) counters(t testing.TB, since Counters) (now Counters, grown map[string]uint64) {
	t.Helper()
	now, err := n.firewall.Counters(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	grown = map[string]uint64{}
	for name, c := range now {
		if d := c.Packets - since[name].Packets; d > 0 {
			grown[name] = d
		}
	}
	return now, grown
}

// addPorts makes n links that serve as ports in sets, and returns their pins.
func addPorts(t testing.TB, ns *netlab.NS, n int) []Pin {
	t.Helper()
	handle, err := ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	var pins []Pin
	for i := range n {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = fmt.Sprintf("port%d", i+1), 100+i
		if err := handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			t.Fatal(err)
		}
		pins = append(pins, testPin(100+i))
	}
	return pins
}

// testPin makes a pin for any index; the port need not exist.
func testPin(index int) Pin {
	hi, lo := byte(index>>8), byte(index)
	return Pin{
		PortIndex: index,
		MAC:       net.HardwareAddr{2, 0, 0, 1, hi, lo},
		Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 200, hi, lo}),
			netip.MustParseAddr(fmt.Sprintf("fd00:200::1:%x", index)),
		},
	}
}

// nftList returns the ruleset of ns without counts.
func nftList(t testing.TB, ns *netlab.NS) string {
	t.Helper()
	return strings.TrimSpace(run(t, ns, "nft -s list ruleset"))
}

// largeRules returns rules with the given numbers of pods and of prefixes that
// don't touch.
func largeRules(pods, slices int) Rules {
	r := testRules()
	r.Cluster = nil
	for i := range slices {
		r.Cluster = append(r.Cluster, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 7), byte(i << 1), 0}), 24))
	}
	r.Own = r.Cluster[:1]
	r.Pins = []Pin{}
	for i := range pods {
		r.Pins = append(r.Pins, testPin(1000+i))
	}
	return r
}
