//go:build linux

package attach_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

const goldenHost = `link zl-default-b bridge address 4a:b6:3a:0d:86:5a mtu 1420 group 2053898240 stp_state 0 mcast_snooping 0 alias "zlayer/1 segment=default"
link zl-403d4edb46-p veth address ee:9b:d8:26:c3:45 mtu 1420 master zl-default-b group 2053898240 isolated alias "zlayer/1 id=0000000000000000000000000000000000000000000000000000000000000001 if=eth0 segment=default mac=06:b3:c8:18:ea:dc addrs=10.42.0.1,fd42::1"
addr zl-default-b 169.254.1.1/32 scope link
addr zl-default-b fe80::1/64 scope link nodad
rule ipv4 priority 1220 iif zl-default-b table 122 protocol 122
rule ipv6 priority 1220 iif zl-default-b table 122 protocol 122
route 10.42.0.1 dev zl-403d4edb46-p protocol 122 table 122
route 10.42.0.1 gateway 10.42.0.1 dev zl-default-b protocol 122 onlink
route fd42::1 dev zl-403d4edb46-p protocol 122 table 122
route fd42::1 gateway fd42::1 dev zl-default-b protocol 122 onlink
neigh 10.42.0.1 dev zl-403d4edb46-p lladdr 06:b3:c8:18:ea:dc protocol 122
neigh 10.42.0.1 dev zl-default-b lladdr 06:b3:c8:18:ea:dc protocol 122
neigh fd42::1 dev zl-403d4edb46-p lladdr 06:b3:c8:18:ea:dc protocol 122
neigh fd42::1 dev zl-default-b lladdr 06:b3:c8:18:ea:dc protocol 122
fdb 06:b3:c8:18:ea:dc dev zl-403d4edb46-p master zl-default-b
`

const goldenSandbox = `link eth0 veth address 06:b3:c8:18:ea:dc mtu 1420 group default
addr eth0 10.42.0.1/32 scope global
addr eth0 fd42::1/128 scope global nodad
addr eth0 fe80::4b3:c8ff:fe18:eadc/64 scope link
route default gateway 169.254.1.1 dev eth0 protocol static onlink
route default gateway fe80::1 dev eth0 protocol static onlink
`

const goldenEmptySegment = `link zl-default-b bridge address 4a:b6:3a:0d:86:5a mtu 1420 group 2053898240 stp_state 0 mcast_snooping 0 alias "zlayer/1 segment=default"
addr zl-default-b 169.254.1.1/32 scope link
addr zl-default-b fe80::1/64 scope link nodad
rule ipv4 priority 1220 iif zl-default-b table 122 protocol 122
rule ipv6 priority 1220 iif zl-default-b table 122 protocol 122
`

// expect compares a namespace with the state it should have.
func expect(t testing.TB, ns *netlab.NS, want string) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(state(t, ns), "\n")); diff != "" {
		t.Errorf("state of %s (-want +got):\n%s", ns.Name, diff)
	}
}

func same(t testing.TB, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func mac(t testing.TB, s string) net.HardwareAddr {
	t.Helper()
	parsed, err := net.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestAttachAndDetach(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	var hooked attach.Attachment
	spec := p.spec(1)
	spec.BeforeUp = func(_ context.Context, a attach.Attachment) error {
		hooked = a
		if got := state(t, p.NS); !strings.HasPrefix(got, "link eth0 veth address 06:b3:c8:18:ea:dc mtu 1420 group default down\n") || strings.Contains(got, "route") {
			t.Errorf("the sandbox before it is up:\n%s", got)
		}
		if got := state(t, n.ns); !strings.Contains(got, "isolated") || !strings.Contains(got, "neigh fd42::1") {
			t.Errorf("the host before the sandbox is up:\n%s", got)
		}
		return nil
	}
	want := attach.Attachment{
		Key: key(1), Segment: "default", Addrs: addrs(1), MAC: mac(t, "06:b3:c8:18:ea:dc"), HostMAC: mac(t, "ee:9b:d8:26:c3:45"),
		Port: "zl-403d4edb46-p", PortIndex: 3, Bridge: "zl-default-b", MTU: 1420,
	}
	got := n.must(t, spec)
	same(t, "attachment", want, got)
	same(t, "what the hook got", want, hooked)
	expect(t, n.ns, goldenHost)
	expect(t, p.NS, goldenSandbox)
	same(t, "list", []attach.Attachment{want}, n.List())
	same(t, "segments", []attach.Segment{{Name: "default", Bridge: "zl-default-b", Index: 2, Ports: 1}}, n.Segments())
	if err := n.Check(t.Context(), key(1), p.file); err != nil {
		t.Error(err)
	}

	for range 2 { // the second finds nothing
		if err := n.Detach(t.Context(), key(1)); err != nil {
			t.Fatal(err)
		}
		expect(t, n.ns, goldenEmptySegment)
		expect(t, p.NS, "")
		same(t, "list", []attach.Attachment{}, n.List())
	}
	if err := n.Check(t.Context(), key(1), p.file); !errors.Is(err, attach.ErrNotAttached) {
		t.Errorf("Check after Detach: %v, want ErrNotAttached", err)
	}
	if err := n.Teardown(t.Context()); err != nil {
		t.Error(err)
	}
	expect(t, n.ns, "")
}

// TestTwoRounds checks that a sandbox can be attached again, and is the same
// but for its link's number.
func TestTwoRounds(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	first := n.must(t, p.spec(1))
	if err := n.Detach(t.Context(), key(1)); err != nil {
		t.Fatal(err)
	}
	second := n.must(t, p.spec(1))
	if first.PortIndex == second.PortIndex {
		t.Errorf("both ports have the number %d", first.PortIndex)
	}
	second.PortIndex = first.PortIndex
	same(t, "second attachment", first, second)
	expect(t, n.ns, goldenHost)
	expect(t, p.NS, goldenSandbox)
}

func TestOneFamily(t *testing.T) {
	n := newNode(t, "host", attach.Config{})
	for i, name := range []string{"four", "six"} {
		p := newPod(t, name)
		spec := p.spec(i + 1)
		spec.Addrs = spec.Addrs[i : i+1]
		n.must(t, spec)
		gateways := map[string]bool{"four": strings.Contains(state(t, p.NS), "gateway 169.254.1.1"), "six": strings.Contains(state(t, p.NS), "gateway fe80::1")}
		for family, has := range gateways {
			if has != (family == name) {
				t.Errorf("sandbox with IPv%s alone: way out by IPv%s: %v", name, family, has)
			}
		}
		if err := n.Check(t.Context(), key(i+1), p.file); err != nil {
			t.Error(err)
		}
	}
}

// TestOwnMACAndMTU checks what a caller may choose. A smaller MTU is on the
// route as well, so that the host answers what does not fit.
func TestOwnMACAndMTU(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	spec := p.spec(1)
	spec.MAC, spec.MTU = mac(t, "02:11:22:33:44:55"), 1300
	a := n.must(t, spec)
	same(t, "hardware address", spec.MAC, a.MAC)
	for _, want := range []string{
		"link zl-default-b bridge address 4a:b6:3a:0d:86:5a mtu 1420",
		"link zl-403d4edb46-p veth address ee:9b:d8:26:c3:45 mtu 1300",
		"route 10.42.0.1 gateway 10.42.0.1 dev zl-default-b protocol 122 onlink mtu 1300",
		"route fd42::1 gateway fd42::1 dev zl-default-b protocol 122 onlink mtu 1300",
		"neigh 10.42.0.1 dev zl-default-b lladdr 02:11:22:33:44:55",
		"fdb 02:11:22:33:44:55 dev zl-403d4edb46-p",
	} {
		if got := state(t, n.ns); !strings.Contains(got, want) {
			t.Errorf("the host lacks %q:\n%s", want, got)
		}
	}
	if got := state(t, p.NS); !strings.Contains(got, "link eth0 veth address 02:11:22:33:44:55 mtu 1300") {
		t.Errorf("sandbox:\n%s", got)
	}
	if err := n.Check(t.Context(), key(1), p.file); err != nil {
		t.Error(err)
	}
}

// TestSetMTU moves the segment and what comes after; who is attached stays.
func TestSetMTU(t *testing.T) {
	n, before, after := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "before"), newPod(t, "after")
	n.must(t, before.spec(1))
	if err := n.SetMTU(t.Context(), 1440); err != nil {
		t.Fatal(err)
	}
	later := after.spec(2)
	later.MTU = 0
	same(t, "MTU of what is attached later", 1440, n.must(t, later).MTU)
	for _, want := range []string{
		"link zl-default-b bridge address 4a:b6:3a:0d:86:5a mtu 1440",
		"link zl-403d4edb46-p veth address ee:9b:d8:26:c3:45 mtu 1420",
		"route 10.42.0.1 gateway 10.42.0.1 dev zl-default-b protocol 122 onlink mtu 1420",
		"route 10.42.0.2 gateway 10.42.0.2 dev zl-default-b protocol 122 onlink\n",
	} {
		if got := state(t, n.ns); !strings.Contains(got, want) {
			t.Errorf("the host lacks %q:\n%s", want, got)
		}
	}
}

// TestSecondInterface checks that interfaces of one sandbox are apart.
func TestSecondInterface(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{}), newPod(t, "pod")
	first, second := p.spec(1), p.spec(2)
	second.Key = attach.Key{ContainerID: first.Key.ContainerID, IfName: "eth1"}
	n.must(t, first)
	n.must(t, second)
	n.must(t, second) // again
	if routes := out(t, p.NS, "ip", "route"); strings.Count(routes, "default") != 2 {
		t.Errorf("routes:\n%s", routes)
	}
	for _, k := range []attach.Key{first.Key, second.Key} {
		if err := n.Check(t.Context(), k, p.file); err != nil {
			t.Error(err)
		}
	}
	if err := n.Detach(t.Context(), first.Key); err != nil {
		t.Fatal(err)
	}
	if err := n.Check(t.Context(), second.Key, p.file); err != nil {
		t.Error(err)
	}
	out(t, p.NS, "ping", "-n", "-c", "1", "-W", "10", "169.254.1.1")
	out(t, p.NS, "ping", "-n", "-c", "1", "-W", "10", "fe80::1%eth1")
}

// TestLongNames checks that names of any length never reach the kernel raw, and
// survive a restart.
func TestLongNames(t *testing.T) {
	n := newNode(t, "host", attach.Config{})
	for i, length := range []int{1, 15, 16, 64, 254, 255, 256, 4096} {
		p := newPod(t, "pod"+string(rune('a'+i)))
		spec := p.spec(i + 1)
		spec.Key.ContainerID, spec.Segment = strings.Repeat("c", length), strings.Repeat("/", length)
		a := n.must(t, spec)
		again := newAttacher(t, n.ns, attach.Config{})
		if _, err := again.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		recovered, found := again.Lookup(spec.Key)
		if !found {
			t.Errorf("length %d: not found after a restart", length)
			continue
		}
		if _, err := again.EnsureSegment(t.Context(), attach.SegmentSpec{Name: spec.Segment}); err != nil { // which tells the name
			t.Error(err)
		}
		repeated, err := again.Attach(t.Context(), spec)
		if err != nil {
			t.Error(err)
		}
		same(t, "repeated after a restart", a, repeated)
		if recovered.Key.ID() != a.Key.ID() || recovered.PortIndex != a.PortIndex {
			t.Errorf("length %d: recovered %+v, want %+v", length, recovered, a)
		}
	}
	if segments := n.Segments(); len(segments) != 8 || slices.ContainsFunc(segments, func(s attach.Segment) bool { return s.Ports != 1 }) {
		t.Errorf("segments: %+v", segments)
	}
	for _, a := range n.List() {
		if err := n.Detach(t.Context(), a.Key); err != nil {
			t.Error(err)
		}
	}
}

// TestNoIPv6 checks hosts and sandboxes where IPv6 is switched off.
func TestNoIPv6(t *testing.T) {
	off := func(ns *netlab.NS, link string) { out(t, ns, "sysctl", "-qw", "net.ipv6.conf."+link+".disable_ipv6=1") }
	for _, tc := range []struct{ name, where string }{{"sandbox", "pod"}, {"host", "host"}} {
		t.Run(tc.name, func(t *testing.T) {
			n, p := newNode(t, "host", attach.Config{}), newPod(t, "pod")
			for _, ns := range []*netlab.NS{n.ns, p.NS} {
				if ns.Name == tc.where {
					off(ns, "all")
					off(ns, "default")
				}
			}
			if _, err := n.EnsureSegment(t.Context(), attach.SegmentSpec{Name: "default"}); err != nil {
				t.Fatal(err)
			}
			before := state(t, n.ns)
			if _, err := n.Attach(t.Context(), p.spec(1)); err == nil || !strings.Contains(err.Error(), "disable_ipv6") {
				t.Errorf("with an address of IPv6: %v, want a hint at disable_ipv6", err)
			}
			expect(t, n.ns, before)
			spec := p.spec(1)
			spec.Addrs = spec.Addrs[:1]
			n.must(t, spec)
			out(t, p.NS, "ping", "-n", "-c", "1", "-W", "10", "169.254.1.1")
			if err := errors.Join(n.Reconcile(t.Context()), n.Check(t.Context(), key(1), p.file)); err != nil {
				t.Error(err)
			}
		})
	}
}
