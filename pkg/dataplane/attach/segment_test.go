//go:build linux

package attach_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/internal/linkname"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

const goldenTable = `link zl-web-b bridge address ae:dd:c6:be:9b:ba mtu 1420 group 2053898240 stp_state 0 mcast_snooping 0 alias "zlayer/1 segment=web table=1000"
addr zl-web-b 169.254.1.1/32 scope link
addr zl-web-b fe80::1/64 scope link nodad
rule ipv4 priority 1220 iif zl-web-b table 122 protocol 122
rule ipv4 priority 1221 iif zl-web-b table 1000 protocol 122
rule ipv6 priority 1220 iif zl-web-b table 122 protocol 122
rule ipv6 priority 1221 iif zl-web-b table 1000 protocol 122
`

// web is a segment with a table of its own.
var web = attach.SegmentSpec{Name: "web", Table: 1000}

// withTable is goldenTable with another table.
func withTable(table uint32) string {
	if table == 0 {
		var lines strings.Builder
		for line := range strings.Lines(strings.ReplaceAll(goldenTable, " table=1000", "")) {
			if !strings.Contains(line, "table 1000") {
				lines.WriteString(line)
			}
		}
		return lines.String()
	}
	return strings.ReplaceAll(strings.ReplaceAll(goldenTable, "table=1000", fmt.Sprint("table=", table)), "table 1000", fmt.Sprint("table ", table))
}

// ensure makes or changes a segment or fails the test.
func (n *node) ensure(t testing.TB, spec attach.SegmentSpec) attach.Segment {
	t.Helper()
	s, err := n.EnsureSegment(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *node) release(t testing.TB, name string) {
	t.Helper()
	if err := n.ReleaseSegment(t.Context(), name); err != nil {
		t.Error(err)
	}
}

// on is the pod's attachment on a segment that is not the default one.
func (p *pod) on(segment string, i int) attach.Spec {
	spec := p.spec(i)
	spec.Segment = segment
	return spec
}

// TestSegmentComesAndGoes checks what a segment has, and that it goes when, and
// only when, nobody uses it.
func TestSegmentComesAndGoes(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	n.release(t, "web") // there is none
	for range 2 {
		same(t, "Ensure", web.Table, n.ensure(t, web).Table)
		expect(t, n.ns, goldenTable)
		n.must(t, p.on("web", 1))
		segments := n.Segments()
		same(t, "segments", []attach.Segment{{Name: "web", Bridge: "zl-web-b", Index: segments[0].Index, Table: 1000, Ports: 1}}, segments)
		before := state(t, n.ns)
		if err := n.ReleaseSegment(t.Context(), "web"); !errors.Is(err, attach.ErrInUse) {
			t.Errorf("Release of a segment in use: %v, want ErrInUse", err)
		}
		expect(t, n.ns, before)
		if _, err := n.Attach(t.Context(), p.spec(1)); !errors.Is(err, attach.ErrConflict) {
			t.Errorf("the same sandbox on another segment: %v, want ErrConflict", err)
		}
		if err := n.Detach(t.Context(), key(1)); err != nil {
			t.Fatal(err)
		}
		expect(t, n.ns, goldenTable)
		n.release(t, "web")
		n.release(t, "web")
		expect(t, n.ns, "")
		same(t, "segments", []attach.Segment{}, n.Segments())
	}
	n.must(t, p.on("web", 1)) // by itself, and without a table
	if err := n.Detach(t.Context(), key(1)); err != nil {
		t.Fatal(err)
	}
	expect(t, n.ns, withTable(0))
}

// TestSegmentOfAnAttachUnderWay checks that it cannot be released.
func TestSegmentOfAnAttachUnderWay(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	reached, goOn := make(chan struct{}), make(chan struct{})
	spec := p.on("web", 1)
	spec.BeforeUp = func(context.Context, attach.Attachment) error { close(reached); <-goOn; return nil }
	ended := make(chan error, 1)
	go func() { _, err := n.Attach(t.Context(), spec); ended <- err }()
	<-reached
	if err := n.ReleaseSegment(t.Context(), "web"); !errors.Is(err, attach.ErrInUse) {
		t.Errorf("Release: %v, want ErrInUse", err)
	}
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := n.Check(t.Context(), key(1), p.file); err != nil {
		t.Error(err)
	}
}

func TestSegmentRefused(t *testing.T) {
	n := newNode(t, "host", attach.Config{MTU: 1420})
	n.ensure(t, web)
	for _, spec := range []attach.SegmentSpec{
		{}, {Table: 1000}, {Name: "web", Table: attach.RouteTable}, {Name: "web", Table: unix.RT_TABLE_DEFAULT},
		{Name: "web", Table: unix.RT_TABLE_MAIN}, {Name: "web", Table: unix.RT_TABLE_LOCAL}, {Name: "new", Table: unix.RT_TABLE_MAIN},
	} {
		if _, err := n.EnsureSegment(t.Context(), spec); !errors.Is(err, attach.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", spec, err)
		}
	}
	expect(t, n.ns, goldenTable)
}

// TestTableChanges checks every change of a table, under an attachment, and
// that the rule of the new one is there before that of the old one goes.
func TestTableChanges(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	n.ensure(t, web)
	n.must(t, p.on("web", 1))
	ports := strings.Join(strings.SplitAfter(state(t, n.ns), "\n")[1:2], "")
	for _, tc := range []struct {
		table uint32
		wrote []uint16
	}{
		{1000, nil},
		{4294967295, []uint16{unix.RTM_NEWRULE, unix.RTM_NEWRULE, unix.RTM_NEWLINK, unix.RTM_DELRULE, unix.RTM_DELRULE}},
		{200, []uint16{unix.RTM_NEWRULE, unix.RTM_NEWRULE, unix.RTM_NEWLINK, unix.RTM_DELRULE, unix.RTM_DELRULE}},
		{0, []uint16{unix.RTM_NEWLINK, unix.RTM_DELRULE, unix.RTM_DELRULE}},
		{0, nil},
		{1000, []uint16{unix.RTM_NEWRULE, unix.RTM_NEWRULE, unix.RTM_NEWLINK}},
	} {
		t.Run(fmt.Sprint(tc.table), func(t *testing.T) {
			settled(t, n.ns)
			same(t, "announcements", tc.wrote, writes(t, n.ns, func() { n.ensure(t, attach.SegmentSpec{Name: "web", Table: tc.table}) }))
			n.must(t, p.on("web", 1)) // again, and without a say in tables
			want := withTable(tc.table)
			for line := range strings.Lines(want) {
				if got := state(t, n.ns); !strings.Contains(got, line) {
					t.Errorf("lacks %s", line)
				}
			}
			if got := state(t, n.ns); strings.Count(got, "rule ") != strings.Count(want, "rule ") || !strings.Contains(got, ports) {
				t.Errorf("has more, or another port:\n%s", got)
			}
			again := newAttacher(t, n.ns, attach.Config{MTU: 1420})
			if _, err := again.Recover(t.Context()); err != nil {
				t.Error(err)
			}
			same(t, "segments after a restart", n.Segments(), again.Segments())
		})
	}
}

// TestTableIsUsed asks the kernel where packets go that come in by a segment's
// bridge: to its sandboxes, then by its table, then by all others.
func TestTableIsUsed(t *testing.T) {
	n, p, q := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod"), newPod(t, "other")
	n.ensure(t, web)
	n.must(t, p.on("web", 1))
	other := n.must(t, q.spec(2))
	out(t, n.ns, "sh", "-c", "ip link add elsewhere type bridge && ip link set elsewhere up && "+
		"ip addr add 192.0.2.1/32 dev elsewhere && ip addr add fd99::1/128 dev elsewhere && "+
		"ip route add 10.99.0.0/16 dev elsewhere table 1000 && ip route add 10.42.0.0/16 dev elsewhere table 1000 && ip -6 route add fd99::/64 dev elsewhere table 1000")
	for _, tc := range []struct{ name, route, want string }{
		{"table", "10.99.0.9 from 10.42.0.1 iif zl-web-b", "dev elsewhere table 1000"},
		{"table, IPv6", "fd99::9 from fd42::1 iif zl-web-b", "dev elsewhere table 1000"},
		{"sandbox on another segment", "10.42.0.2 from 10.42.0.1 iif zl-web-b", "dev " + other.Port + " table 122"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := out(t, n.ns, "sh", "-c", "ip route get "+tc.route); !strings.Contains(got, tc.want) {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
	if text, err := n.ns.Command(t.Context(), "ip", "route", "get", "10.99.0.9", "from", "10.42.0.2", "iif", "zl-default-b").CombinedOutput(); err == nil {
		t.Errorf("another segment's packets: %s", text)
	}
	out(t, p.NS, "ping", "-n", "-c", "1", "-W", "20", addrs(2)[0].String())
	out(t, q.NS, "ping", "-n", "-c", "1", "-W", "20", addrs(1)[1].String())
}

// tableDamages are what others do to a segment with a table.
var tableDamages = []struct{ name, do string }{
	{"no rules", "ip rule del pref 1221 && ip -6 rule del pref 1221"},
	{"no rule in one family", "ip -6 rule del pref 1221"},
	{"rule to another table", "ip rule del pref 1221 && ip rule add iif zl-web-b lookup 1001 pref 1221 protocol 122"},
	{"rules to more tables", "ip rule add iif zl-web-b lookup 1001 pref 1221 protocol 122 && ip rule add iif zl-web-b lookup 1001 pref 1220 protocol 122"},
	{"rule of a bridge that is gone", "ip rule add iif zl-gone-b lookup 1000 pref 1221 protocol 122"},
	{"alias without a table", "ip link set zl-web-b alias 'zlayer/1 segment=web'"},
	{"alias of nobody", "ip link set zl-web-b alias ''"},
	{"bridge gone", "ip link del zl-web-b"},
	{"bridge and rules gone", "ip link del zl-web-b; ip rule del pref 1221; ip -6 rule del pref 1221"},
}

// TestReconcileTable checks that a segment's table is mended with all the rest.
func TestReconcileTable(t *testing.T) {
	for _, damage := range tableDamages {
		t.Run(damage.name, func(t *testing.T) {
			n := newNode(t, "host", attach.Config{MTU: 1420})
			n.ensure(t, web)
			out(t, n.ns, "sh", "-c", damage.do)
			if got := state(t, n.ns); got == goldenTable {
				t.Fatal("no damage to see")
			}
			if err := n.Reconcile(t.Context()); err != nil {
				t.Error(err)
			}
			expect(t, n.ns, goldenTable)
			n.release(t, "web")
			expect(t, n.ns, "")
		})
	}
}

// TestRunMendsTable checks that damage which the kernel announces is mended
// without being asked.
func TestRunMendsTable(t *testing.T) {
	n := newNode(t, "host", attach.Config{MTU: 1420})
	n.run(t)
	n.ensure(t, web)
	for _, name := range []string{"bridge gone", "bridge and rules gone", "no rules", "no rules", "no rules"} {
		i := slices.IndexFunc(tableDamages, func(d struct{ name, do string }) bool { return d.name == name })
		out(t, n.ns, "sh", "-c", tableDamages[i].do)
		eventually(t, name+" is mended", func() bool { return state(t, n.ns) == goldenTable })
	}
}

// TestEnsureWithoutBridge gives another table to a segment whose bridge someone
// removed.
func TestEnsureWithoutBridge(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	n.ensure(t, web)
	n.must(t, p.on("web", 1))
	out(t, n.ns, "ip", "link", "del", "zl-web-b")
	n.ensure(t, attach.SegmentSpec{Name: "web", Table: 200})
	if err := n.Reconcile(t.Context()); err != nil {
		t.Error(err)
	}
	if err := n.Check(t.Context(), key(1), p.file); err != nil {
		t.Error(err)
	}
	if err := n.Detach(t.Context(), key(1)); err != nil {
		t.Error(err)
	}
	expect(t, n.ns, withTable(200))
}

// TestAttachWithoutBridge checks that an Attach which has to make the bridge
// anew keeps its table.
func TestAttachWithoutBridge(t *testing.T) {
	n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
	n.ensure(t, web)
	out(t, n.ns, "sh", "-c", "ip link del zl-web-b; ip rule del pref 1221; ip -6 rule del pref 1221")
	n.must(t, p.on("web", 1))
	if err := n.Detach(t.Context(), key(1)); err != nil {
		t.Error(err)
	}
	expect(t, n.ns, goldenTable)
}

// TestReleaseWithoutBridge checks that a segment whose bridge someone removed
// goes with its rules.
func TestReleaseWithoutBridge(t *testing.T) {
	n := newNode(t, "host", attach.Config{MTU: 1420})
	n.ensure(t, web)
	out(t, n.ns, "ip", "link", "del", "zl-web-b")
	n.release(t, "web")
	expect(t, n.ns, "")
}

// TestRestartKeepsTable checks restarts with attachments: all is known as
// before, and nothing is written unless something was lost meanwhile.
func TestRestartKeepsTable(t *testing.T) {
	for _, tc := range []struct{ name, do string }{
		{"nothing lost", ""},
		{"rules lost", "ip rule del pref 1221 && ip -6 rule del pref 1221"},
		{"bridge lost", "ip link del zl-web-b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, p := newNode(t, "host", attach.Config{MTU: 1420}), newPod(t, "pod")
			n.ensure(t, web)
			n.must(t, p.on("web", 1))
			before := state(t, n.ns)
			settled(t, n.ns)
			out(t, n.ns, "sh", "-c", tc.do)
			again := newAttacher(t, n.ns, attach.Config{MTU: 1420})
			wrote := writes(t, n.ns, func() {
				if _, err := again.Recover(t.Context()); err != nil {
					t.Error(err)
				}
			})
			if tc.do == "" && len(wrote) > 0 || slices.Contains(wrote, unix.RTM_DELRULE) {
				t.Errorf("wrote messages of the types %v", wrote)
			}
			expect(t, n.ns, sorted(before, state(t, n.ns)))
			want := n.Segments()
			want[0].Index = again.Segments()[0].Index
			same(t, "segments", want, again.Segments())
		})
	}
}

// TestCollision gives two segments one link name: the second is called as the
// first is hashed.
func TestCollision(t *testing.T) {
	for _, tc := range []struct{ name, do string }{
		{"told apart by the alias", ""}, {"the alias is lost", "ip link set %s alias ''"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, "host", attach.Config{MTU: 1420})
			first := strings.Repeat("shop/web", 512)
			name := linkname.Name([]string{first}, "b")
			second := attach.SegmentSpec{Name: strings.TrimSuffix(strings.TrimPrefix(name, "zl-"), "-b"), Table: 1000}
			a := n.must(t, newPod(t, "first").on(first, 1))
			if tc.do != "" {
				out(t, n.ns, "sh", "-c", fmt.Sprintf(tc.do, a.Bridge))
			}
			n.ensure(t, second)
			b := n.must(t, newPod(t, "second").on(second.Name, 2))
			if a.Bridge != name || b.Bridge == name {
				t.Fatalf("bridges %s and %s, want %s and another", a.Bridge, b.Bridge, name)
			}
			if err := n.Reconcile(t.Context()); err != nil {
				t.Error(err)
			}
			again := &node{Attacher: newAttacher(t, n.ns, attach.Config{MTU: 1420}), ns: n.ns}
			again.ensure(t, attach.SegmentSpec{Name: first})
			same(t, "segments after a restart", n.Segments(), again.Segments())
			same(t, "attachments after a restart", []attach.Attachment{a, b}, again.List())
			for i, segment := range []string{first, second.Name} {
				if err := again.Detach(t.Context(), key(i+1)); err != nil {
					t.Error(err)
				}
				again.release(t, segment)
			}
			expect(t, n.ns, "")
		})
	}
}
