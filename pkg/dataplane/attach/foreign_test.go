//go:build linux

package attach_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

// foreign makes things that look like ours without being ours.
const foreign = `set -e
# a bridge and a port of our names, without our group or alias
ip link add zl-default-b type bridge
ip link set zl-default-b up
ip link add zl-403d4edb46-p type veth peer name other0
# our group and name, but not on a bridge of ours; our group and bridge are tried below
ip link add zl-aaaaaaaaaa-p group 2053898240 type veth peer name other1
# our alias on something that is no veth, and an alias nobody can read on a veth
ip link add zl-bbbbbbbbbb-p type bridge
ip link set zl-bbbbbbbbbb-p alias "zlayer/1 id=c9 if=eth0 segment=default mac=02:00:00:00:00:09 addrs=10.42.0.9"
ip link add zl-cccccccccc-p type veth peer name other2
ip link set zl-cccccccccc-p alias "zlayer/1 id=%zz"
# our alias on a link of another name
ip link add web0 type veth peer name other3
ip link set web0 alias "zlayer/1 id=c8 if=eth0 segment=default mac=02:00:00:00:00:08 addrs=10.42.0.8"
# routes of our protocol over a link that is not ours, of another protocol, in our table, and rules
ip link set web0 up; ip link set other3 up
ip route add 10.42.0.7/32 dev web0 proto 122
ip route add 10.42.0.6/32 dev web0 proto static
ip route add 10.42.0.5/32 dev web0 table 122 proto 122
ip rule add iif web0 lookup 122 pref 1220 protocol 122
ip rule add from 10.42.0.7 lookup 122 pref 1219
ip rule add iif web0 lookup 500 pref 1221 protocol 122
ip rule add iif zl-default-b lookup 500 pref 1221
ip rule add iif zl-default-b lookup 500 pref 1222 protocol 122
ip neigh add 10.42.0.7 dev web0 lladdr 02:00:00:00:00:07 nud permanent protocol 122
`

func TestForeignThingsStay(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	out(t, n.ns, "sh", "-c", foreign)
	before := state(t, n.ns)
	recovered, err := n.Recover(t.Context())
	if err != nil || len(recovered) != 0 {
		t.Fatalf("Recover = %v, %v", recovered, err)
	}
	expect(t, n.ns, before)

	a := n.must(t, p.spec(1))
	if a.Port == "zl-403d4edb46-p" || a.Bridge == "zl-default-b" {
		t.Errorf("foreign links are used: %+v", a)
	}
	out(t, p.NS, "ping", "-n", "-c", "1", "-W", "10", "10.42.0.1")
	// On a bridge of ours now, but with nothing else of ours; and a neighbour and a forwarding entry of someone else's.
	onOurs := "ip rule add iif " + a.Bridge + " lookup 500 pref 1221 && ip link set web0 master " + a.Bridge + " && ip link add zl-dddddddddd-p master " + a.Bridge + " type veth peer name other4 && ip neigh add 192.0.2.9 dev " + a.Bridge + " lladdr 02:00:00:00:00:99 nud permanent && " +
		"ip route add 192.0.2.8/32 dev " + a.Bridge + " proto static && bridge fdb add 02:00:00:00:00:99 dev web0 master static"
	out(t, n.ns, "sh", "-c", onOurs)
	with := state(t, n.ns)
	if err := n.Reconcile(t.Context()); err != nil {
		t.Error(err)
	}
	again := newAttacher(t, n.ns, attach.Config{MTU: 1420})
	if _, err := again.Recover(t.Context()); err != nil {
		t.Error(err)
	}
	same(t, "recovered beside foreign things", []attach.Attachment{a}, again.List())
	expect(t, n.ns, with)
	if err := n.Check(t.Context(), key(1), p.file); err != nil {
		t.Error(err)
	}

	if err := n.Detach(t.Context(), key(1)); err != nil {
		t.Error(err)
	}
	out(t, n.ns, "sh", "-c", "ip link del zl-dddddddddd-p; ip link set web0 nomaster; ip link set web0 down; ip link set web0 up;"+
		"ip rule del iif "+a.Bridge+" pref 1221;"+
		"ip route replace 10.42.0.7/32 dev web0 proto 122; ip route replace 10.42.0.6/32 dev web0 proto static; ip route replace 10.42.0.5/32 dev web0 table 122 proto 122;"+
		"ip neigh replace 10.42.0.7 dev web0 lladdr 02:00:00:00:00:07 nud permanent protocol 122")
	if err := n.Teardown(t.Context()); err != nil {
		t.Error(err)
	}
	expect(t, n.ns, before)
}

// TestForeignRoute checks that a route which is not ours is neither replaced
// nor removed: the sandbox is refused.
func TestForeignRoute(t *testing.T) {
	for _, route := range []string{
		"10.42.0.1/32 dev overlay proto static", "fd42::1/128 dev overlay proto static", "10.42.0.1/32 dev overlay proto 122", "blackhole 10.42.0.1/32",
	} {
		t.Run(route, func(t *testing.T) {
			n, p := newNode(t, "host", attach.Config{MTU: 1420, Sources: overlay}), newPod(t, "pod")
			giveOverlay(t, n.ns)
			if _, err := n.EnsureSegment(t.Context(), attach.SegmentSpec{Name: "default"}); err != nil {
				t.Fatal(err)
			}
			version := "-4"
			if strings.Contains(route, "::") {
				version = "-6"
			}
			out(t, n.ns, "sh", "-c", "ip "+version+" route add "+route)
			before := state(t, n.ns)
			if _, err := n.Attach(t.Context(), p.spec(1)); !errors.Is(err, attach.ErrConflict) {
				t.Errorf("Attach: %v, want ErrConflict", err)
			}
			expect(t, n.ns, before)
			expect(t, p.NS, "")
		})
	}
}

// TestNamesRunOut checks the clear error when foreign links have all the names.
func TestNamesRunOut(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	names := map[string]bool{}
	for range 20 {
		a, err := n.Attach(t.Context(), p.spec(1))
		if err != nil {
			if !errors.Is(err, attach.ErrConflict) || len(names) < 2 {
				t.Errorf("after %d names: %v, want ErrConflict", len(names), err)
			}
			return
		}
		names[a.Port] = true
		if err := n.Detach(t.Context(), key(1)); err != nil {
			t.Fatal(err)
		}
		out(t, n.ns, "ip", "link", "add", a.Port, "type", "bridge")
	}
	t.Errorf("foreign links had the names %v, and it goes on", names)
}

// TestHostIsNoSandbox hands in the host's own namespace, where the sandbox's
// half and its default routes would be the host's.
func TestHostIsNoSandbox(t *testing.T) {
	n := newNode(t, "host", attach.Config{MTU: 1420})
	own, err := n.ns.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	spec := (&pod{NS: n.ns, file: own}).spec(1)
	if _, err := n.Attach(t.Context(), spec); !errors.Is(err, attach.ErrInvalid) {
		t.Errorf("Attach: %v, want ErrInvalid", err)
	}
	expect(t, n.ns, "")
}
