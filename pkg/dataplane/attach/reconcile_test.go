//go:build linux

package attach_test

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// damages are what an administrator or another program does to us.
var damages = []struct{ name, do string }{
	{"bridge down", "ip link set zl-default-b down"},
	{"bridge without addresses", "ip addr flush dev zl-default-b"},
	{"bridge of another hardware address", "ip link set zl-default-b address 02:00:00:00:00:01"},
	{"bridge with STP and snooping", "ip link set zl-default-b type bridge stp_state 1 mcast_snooping 1"},
	{"bridge of another MTU", "ip link set zl-default-b mtu 1280"},
	{"bridge without alias and group", "ip link set zl-default-b alias '' && ip link set zl-default-b group default"},
	{"bridge gone", "ip link del zl-default-b"},
	{"port down", "ip link set zl-403d4edb46-p down"},
	{"port without a bridge", "ip link set zl-403d4edb46-p nomaster"},
	{"port on another bridge", "ip link add foreign type bridge && ip link set zl-403d4edb46-p master foreign && ip link del foreign"},
	{"port that floods and learns", "ip link set zl-403d4edb46-p type bridge_slave isolated off learning on flood on mcast_flood on bcast_flood on"},
	{"port without group", "ip link set zl-403d4edb46-p group default"},
	{"port without alias", "ip link set zl-403d4edb46-p alias ''"},
	{"no routes", "ip route flush proto 122; ip -6 route flush proto 122"},
	{"no routes in our table", "ip route flush table 122; ip -6 route flush table 122"},
	{"routes of another shape", "ip route replace 10.42.0.1 via 10.42.0.1 dev zl-default-b onlink proto 122 mtu 700 && ip -6 route replace fd42::1 dev zl-default-b proto 122"},
	{"no rules", "ip rule del pref 1220 && ip -6 rule del pref 1220"},
	{"no neighbours", "ip neigh flush nud permanent"},
	{"wrong neighbours", "ip neigh replace 10.42.0.1 lladdr 02:00:00:00:00:01 dev zl-default-b nud permanent; ip neigh replace fd42::1 lladdr 02:00:00:00:00:01 dev zl-403d4edb46-p nud permanent"},
	{"no forwarding entry", "bridge fdb del 06:b3:c8:18:ea:dc dev zl-403d4edb46-p master"},
	{"leftovers", "ip route add 10.42.0.9/32 dev zl-default-b proto 122 && ip -6 route add fd42::9/128 dev zl-default-b proto 122 && " +
		"ip neigh add 10.42.0.9 dev zl-default-b lladdr 02:00:00:00:00:09 nud permanent protocol 122 && ip rule add iif zl-gone-b lookup 122 pref 1220 protocol 122"},
	{"an attach that never finished", "ip link add zl-9999999999-p group 2053898240 master zl-default-b type veth peer name other"},
	{"a deletion that never finished", "ip link add zl-9999999999-p group 2053898999 master zl-default-b type veth peer name other"},
}

func TestReconcile(t *testing.T) {
	for _, damage := range damages {
		t.Run(damage.name, func(t *testing.T) {
			n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
			n.must(t, p.spec(1))
			out(t, n.ns, "sh", "-c", damage.do)
			if got := state(t, n.ns); got == goldenHost {
				t.Fatal("no damage to see")
			}
			if err := n.Reconcile(t.Context()); err != nil {
				t.Error(err)
			}
			expect(t, n.ns, sorted(goldenHost, state(t, n.ns)))
			if err := n.Check(t.Context(), key(1), p.file); err != nil {
				t.Error(err)
			}
			out(t, p.NS, "ping", "-n", "-c", "1", "-W", "20", "169.254.1.1")
			out(t, p.NS, "ping", "-n", "-c", "1", "-W", "20", "fe80::1%eth0")
		})
	}
}

// sorted puts the first two lines of want in the order of got: a bridge that
// was made anew comes after its ports.
func sorted(want, got string) string {
	lines := strings.SplitAfterN(want, "\n", 3)
	if strings.HasPrefix(got, lines[1]) {
		lines[0], lines[1] = lines[1], lines[0]
	}
	return strings.Join(lines, "")
}

// TestReconcileWritesDifferencesOnly listens to the kernel while nothing is to
// be done.
func TestReconcileWritesDifferencesOnly(t *testing.T) {
	n := newNode(t, "host", attach.Config{MTU: 1420, Sources: overlay})
	giveOverlay(t, n.ns)
	n.ensure(t, web)
	for i, p := range newPods(t, 4) {
		n.must(t, p.on([]string{"default", "web"}[i%2], i+1))
	}
	if err := n.Reconcile(t.Context()); err != nil { // learns the sources
		t.Fatal(err)
	}
	settled(t, n.ns)
	wrote := writes(t, n.ns, func() {
		for range 3 {
			if err := n.Reconcile(t.Context()); err != nil {
				t.Error(err)
			}
		}
		again := newAttacher(t, n.ns, attach.Config{MTU: 1420, Sources: overlay})
		if _, err := again.Recover(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if len(wrote) > 0 {
		t.Errorf("wrote messages of the types %v", wrote)
	}
	wrote = writes(t, n.ns, func() {
		out(t, n.ns, "sh", "-c", "ip route del 10.42.0.2")
		if err := n.Reconcile(t.Context()); err != nil {
			t.Error(err)
		}
	})
	same(t, "announcements of one route lost and mended", []uint16{unix.RTM_DELROUTE, unix.RTM_NEWROUTE}, wrote)
}

// settled waits until the kernel has announced what attaching brings.
func settled(t *testing.T, ns *netlab.NS) {
	t.Helper()
	eventually(t, "carriers are up, addresses in use, and all announced", func() bool {
		links := out(t, ns, "ip", "addr")
		return !strings.Contains(links, "NO-CARRIER") && !strings.Contains(links, "tentative") && len(writes(t, ns, func() {})) == 0
	})
}

// writes returns the types of the changes that the kernel announces while do
// runs.
func writes(t *testing.T, ns *netlab.NS, do func()) []uint16 {
	t.Helper()
	var host *rtnl.Host
	if err := ns.Do(func() (err error) { host, err = rtnl.OpenHost(); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = host.Close() }()
	const marker = unix.RTM_DELADDR
	watch, err := host.Watch([]uint16{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE,
	}, []uint16{
		unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, marker, unix.RTM_NEWROUTE, unix.RTM_DELROUTE,
		unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watch.Close() }()
	do()
	out(t, ns, "sh", "-c", "ip addr add 127.0.0.99/32 dev lo; ip addr del 127.0.0.99/32 dev lo")
	var types []uint16
	for end := false; !end; {
		err := watch.Receive(func(m rtnl.Message) {
			if m.Type == marker {
				end = true
			} else if foreseeable(m) {
				types = append(types, m.Type)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return types
}

// foreseeable leaves out what the kernel does by itself: it learns neighbours,
// and the test marks the end on lo.
func foreseeable(m rtnl.Message) bool {
	const loopback = 1
	if addr, ok := rtnl.ParseAddr(m); ok {
		return addr.Link != loopback
	}
	if route, ok := rtnl.ParseRoute(m); ok {
		return route.Link != loopback
	}
	if neighbour, ok := rtnl.ParseNeigh(m); ok {
		return neighbour.State&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0
	}
	return true
}

// TestRecover checks a restart with several segments and pods, one of whose
// routes were lost meanwhile.
func TestRecover(t *testing.T) {
	n := newNode(t, "host", attach.Config{MTU: 1420})
	var want []attach.Attachment
	for i, p := range newPods(t, 5) {
		spec := p.spec(i + 1)
		if i%2 == 1 {
			spec.Segment = "ns/web"
		}
		want = append(want, n.must(t, spec))
	}
	before := state(t, n.ns)
	out(t, n.ns, "sh", "-c", "ip route del 10.42.0.3; ip -6 route del fd42::4 table 122; ip link set "+want[1].Port+" nomaster")
	again := newAttacher(t, n.ns, attach.Config{MTU: 1420})
	got, err := again.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "recovered", want, got)
	same(t, "segments", n.Segments(), again.Segments())
	expect(t, n.ns, before)
}

// TestRecoverWithoutBridge checks a bridge that vanished while nobody watched.
func TestRecoverWithoutBridge(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	a := n.must(t, p.spec(1))
	out(t, n.ns, "ip", "link", "del", a.Bridge)
	again := newAttacher(t, n.ns, attach.Config{MTU: 1420})
	got, err := again.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "recovered", []attach.Attachment{a}, got)
	expect(t, n.ns, sorted(goldenHost, state(t, n.ns)))
}

// TestSources checks the address that the host sends from: it may come later,
// change, and go, and is on the routes while it is on a link.
func TestSources(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420, Sources: overlay}), newPod(t, "pod")
	n.must(t, p.spec(1))
	expect(t, n.ns, goldenHost) // no such address yet
	giveOverlay(t, n.ns)
	reconcile := func() {
		t.Helper()
		if err := n.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	hasSources := func(want ...string) {
		t.Helper()
		got := state(t, n.ns)
		for _, source := range want {
			if !strings.Contains(got, "dev zl-default-b protocol 122 prefsrc "+source) {
				t.Errorf("no route with the source %s:\n%s", source, got)
			}
		}
		if strings.Count(got, "prefsrc") != len(want) {
			t.Errorf("not %d routes with a source:\n%s", len(want), got)
		}
		if err := n.Check(t.Context(), key(1), p.file); err != nil {
			t.Error(err)
		}
	}
	reconcile()
	hasSources("10.42.255.1", "fd42::ffff")
	out(t, n.ns, "ip", "link", "del", "overlay") // takes the routes with it
	late := newPod(t, "late")
	spec := late.spec(2)
	spec.Addrs = spec.Addrs[:1]
	n.must(t, spec) // finds out by itself
	reconcile()
	hasSources()
	giveOverlay(t, n.ns)
	reconcile()
	hasSources("10.42.255.1", "10.42.255.1", "fd42::ffff")
}

// TestEverythingRecoversFirst checks that nobody has to call Recover.
func TestEverythingRecoversFirst(t *testing.T) {
	for name, call := range map[string]func(ctx context.Context, n *attach.Attacher, p *pod) error{
		"Attach": func(ctx context.Context, n *attach.Attacher, p *pod) error {
			_, err := n.Attach(ctx, p.spec(1))
			return err
		},
		"Check": func(ctx context.Context, n *attach.Attacher, p *pod) error { return n.Check(ctx, key(1), p.file) },
		"EnsureSegment": func(ctx context.Context, n *attach.Attacher, _ *pod) error {
			_, err := n.EnsureSegment(ctx, attach.SegmentSpec{Name: "default"})
			return err
		},
		"Reconcile": func(ctx context.Context, n *attach.Attacher, _ *pod) error { return n.Reconcile(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
			want := n.must(t, p.spec(1))
			again := newAttacher(t, n.ns, attach.Config{MTU: 1420})
			if err := call(t.Context(), again, p); err != nil {
				t.Error(err)
			}
			same(t, "list", []attach.Attachment{want}, again.List())
			expect(t, n.ns, goldenHost)
			last := newAttacher(t, n.ns, attach.Config{MTU: 1420})
			if err := last.Detach(t.Context(), key(1)); err != nil {
				t.Error(err)
			}
			expect(t, n.ns, goldenEmptySegment)
			if err := newAttacher(t, n.ns, attach.Config{}).Teardown(t.Context()); err != nil {
				t.Error(err)
			}
			expect(t, n.ns, "")
		})
	}
}
