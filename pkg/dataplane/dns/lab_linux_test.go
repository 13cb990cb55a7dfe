package dns

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// addrGenNone keeps the kernel from adding a link-local address (IN6_ADDR_GEN_MODE_NONE).
const addrGenNone = 1

// The gateways that every bridge of a node has.
const (
	gateway4 = "169.254.1.1"
	gateway6 = "fe80::1"
)

// makeBridge makes a bridge like a segment's in this process' namespace, with
// the gateways and no other address.
func makeBridge(t testing.TB, name string) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	must(t, netlink.LinkAdd(bridge))
	t.Cleanup(func() { _ = netlink.LinkDel(bridge) })
	must(t, netlink.LinkSetIP6AddrGenMode(bridge, addrGenNone))
	addAddress(t, bridge, gateway4+"/32")
	addAddress(t, bridge, gateway6+"/64")
	must(t, netlink.LinkSetUp(bridge))
	return bridge
}

func addAddress(t testing.TB, link netlink.Link, text string) {
	t.Helper()
	addr, err := netlink.ParseAddr(text)
	must(t, err)
	if addr.IP.To4() == nil {
		addr.Flags = unix.IFA_F_NODAD
	}
	must(t, netlink.AddrAdd(link, addr))
}

// makePod makes a namespace that is attached to a bridge as sandboxes are: all
// it sends goes to the gateways.
func makePod(t testing.TB, name string, bridge netlink.Link, addrs ...string) *netlab.NS {
	t.Helper()
	pod := netlab.TestNS(t, name)
	attachPod(t, pod, bridge, addrs...)
	return pod
}

func attachPod(t testing.TB, pod *netlab.NS, bridge netlink.Link, addrs ...string) {
	t.Helper()
	file, err := pod.Open()
	must(t, err)
	defer func() { _ = file.Close() }()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = "v-"+pod.Name, bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(file.Fd()))}
	must(t, netlink.LinkAdd(veth))
	must(t, netlink.LinkSetUp(veth))

	inside, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()))
	must(t, err)
	defer inside.Close()
	eth0, err := inside.LinkByName("eth0")
	must(t, err)
	must(t, inside.LinkSetIP6AddrGenMode(eth0, addrGenNone))
	must(t, inside.LinkSetUp(eth0))
	for _, text := range addrs {
		addr, err := netlink.ParseAddr(text)
		must(t, err)
		via := netip.MustParseAddr(gateway4)
		if addr.IP.To4() == nil {
			addr.Flags, via = unix.IFA_F_NODAD, netip.MustParseAddr(gateway6)
		}
		must(t, inside.AddrAdd(eth0, addr))
		if addr.IP.IsLinkLocalUnicast() {
			continue
		}
		must(t, inside.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: via.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}))
		must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: bridge.Attrs().Index, Dst: addr.IPNet, Scope: netlink.SCOPE_LINK}))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dig asks from a pod and returns what dig prints.
func dig(t testing.TB, pod *netlab.NS, args ...string) string {
	t.Helper()
	text, err := tryDig(t.Context(), pod, args...)
	if err != nil {
		t.Fatalf("dig %s: %v\n%s", strings.Join(args, " "), err, text)
	}
	return text
}

func tryDig(ctx context.Context, pod *netlab.NS, args ...string) (string, error) {
	var cmd *exec.Cmd
	if pod == nil {
		cmd = exec.CommandContext(ctx, "dig", args...)
	} else {
		cmd = pod.Command(ctx, "dig", args...)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}
