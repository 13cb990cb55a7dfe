package attach

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// podNamespace is one that the container runtime made.
const podNamespace = "11111111-2222-4333-8444-555555555555"

// hcnNode is a host with an Attacher over a fake HCN.
type hcnNode struct {
	*hcnAttacher
	fake *fakeHCN
	cfg  HCNConfig
}

// newHCNNode makes a host whose slice is 10.42.7.0/24, with a runtime's
// namespace.
func newHCNNode(t *testing.T) *hcnNode {
	t.Helper()
	fake := newFakeHCN()
	fake.namespaces[podNamespace] = hcnNamespace{ID: podNamespace, Type: hcnHost}
	n := &hcnNode{fake: fake, cfg: HCNConfig{
		State:        filepath.Join(t.TempDir(), "hcn.json"),
		Subnets:      []netip.Prefix{netip.MustParsePrefix("10.42.7.0/24")},
		NoMasquerade: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
	}}
	n.restart(t)
	return n
}

// restart replaces the Attacher as a new process would.
func (n *hcnNode) restart(t *testing.T) {
	t.Helper()
	a, err := newHCN(n.fake, Config{HCN: n.cfg})
	if err != nil {
		t.Fatal(err)
	}
	n.hcnAttacher = a
	clear(n.fake.open) // which go with the process
}

// hcnSpec asks for a pod with that address in the runtime's namespace.
func hcnSpec(container, addr string) Spec {
	return Spec{
		Key: Key{ContainerID: container, IfName: "eth0"}, Namespace: podNamespace, Segment: "default", Network: "zlayer",
		Addrs: []netip.Addr{netip.MustParseAddr(addr)},
	}
}

func sameHCN(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// left is what a node has when nothing is attached.
func left(networks ...string) []string {
	list := []string{"namespace " + podNamespace + " with 0"}
	for _, name := range networks {
		list = append(list, "network "+name)
	}
	slices.Sort(list)
	return list
}

func TestHCNAttach(t *testing.T) {
	n, spec := newHCNNode(t), hcnSpec("pod", "10.42.7.2")
	var hooked Attachment
	spec.BeforeUp = func(_ context.Context, a Attachment) error {
		hooked = a
		if n.fake.count("add endpoint") > 0 {
			t.Error("the sandbox could send before the hook was asked")
		}
		return nil
	}
	got, err := n.Attach(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "what the hook saw", got, hooked)
	if got.Port == "" || got.PortIndex == 0 || got.Bridge == "" || got.MAC.String() != "00:15:5d:00:00:01" {
		t.Errorf("attachment lacks names: %+v", got)
	}
	sameHCN(t, "subnets", []netip.Prefix{netip.MustParsePrefix("10.42.7.0/24")}, got.Subnets)
	sameHCN(t, "list", []Attachment{got}, n.List())
	calls := len(n.fake.calls)
	spec.BeforeUp = nil
	again, err := n.Attach(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "attached again", got, again)
	for _, call := range n.fake.calls[calls:] {
		if call[:4] != "list" && call[:4] != "look" {
			t.Errorf("attached again: %s", call)
		}
	}
	n.attachHCN(t, func() Spec {
		s := ownSpec()
		s.Key.ContainerID, s.Addrs[0] = "next", netip.MustParseAddr("10.42.7.3")
		return s
	}())
	sameHCN(t, "looks at networks", 2, n.fake.count("list networks")) // by Recover, and for the first sandbox of the segment
	if err := n.Detach(t.Context(), Key{ContainerID: "next", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Detach(t.Context(), spec.Key); err != nil {
			t.Fatal(err)
		}
	}
	sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
	sameHCN(t, "list after detach", []Attachment{}, n.List())
}

func TestHCNOwnNamespace(t *testing.T) {
	n, spec := newHCNNode(t), hcnSpec("pod", "10.42.7.2")
	spec.Namespace = ""
	got, err := n.Attach(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if namespace := n.fake.namespaces[got.Namespace]; namespace.Type != hcnHost || !namespace.holds(got.Port) {
		t.Errorf("namespace %s is %+v", got.Namespace, namespace)
	}
	if err := n.Detach(t.Context(), spec.Key); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
}

// A hardware address that was asked for is the sandbox's, or there is no sandbox.
func TestHCNHardwareAddress(t *testing.T) {
	n, spec := newHCNNode(t), ownSpec()
	spec.MAC = net.HardwareAddr{2, 0, 0x5e, 0x10, 0, 0xff}
	n.fake.ownMACs = true
	if _, err := n.Attach(t.Context(), spec); err == nil || !strings.Contains(err.Error(), "02:00:5e:10:00:ff") {
		t.Errorf("error %v", err)
	}
	sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
	n.fake.ownMACs = false
	for range 2 {
		a := n.attachHCN(t, spec)
		sameHCN(t, "hardware address", spec.MAC, a.MAC)
	}
}

// A pod's further containers come with its namespace.
func TestHCNSecondContainer(t *testing.T) {
	n := newHCNNode(t)
	first, err := n.Attach(t.Context(), hcnSpec("pod", "10.42.7.2"))
	if err != nil {
		t.Fatal(err)
	}
	spec := hcnSpec("second", "10.42.7.3")
	spec.Namespace = "{" + "11111111-2222-4333-8444-555555555555" + "}"
	second, err := n.Attach(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "answer of the second", first, second)
	if err := n.Detach(t.Context(), spec.Key); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "list after the second is gone", []Attachment{first}, n.List())
	sameHCN(t, "endpoints", 1, n.fake.count("create endpoint"))
	spec.Segment = "other"
	if _, err := n.Attach(t.Context(), spec); !errors.Is(err, ErrConflict) {
		t.Errorf("second container on another segment: %v", err)
	}
}

// A sandbox that comes by another namespace gets a new endpoint in it. One that
// none can have is refused before the sandbox loses its own.
func TestHCNOtherNamespace(t *testing.T) {
	n, spec := newHCNNode(t), hcnSpec("pod", "10.42.7.2")
	before, err := n.Attach(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	had := n.fake.has()
	spec.Namespace = "99999999-2222-4333-8444-555555555555"
	if _, err := n.Attach(t.Context(), spec); !errors.Is(err, ErrInvalid) {
		t.Errorf("a namespace that is not there: %v", err)
	}
	sameHCN(t, "objects after a refusal", had, n.fake.has())
	sameHCN(t, "list after a refusal", []Attachment{before}, n.List())
	n.fake.namespaces[spec.Namespace] = hcnNamespace{ID: spec.Namespace, Type: hcnHost}
	after, err := n.Attach(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if after.Port == before.Port || after.PortIndex == before.PortIndex {
		t.Errorf("the endpoint is still %s", after.Port)
	}
	sameHCN(t, "endpoints in the earlier namespace", 0, len(n.fake.namespaces[podNamespace].Resources))
}

func TestHCNRequestRefused(t *testing.T) {
	const hostDefault, unknown = "910f7d92-0000-4000-8000-000000000000", "99999999-9999-4999-8999-999999999999"
	const guest = "910f7d92-0000-4000-8000-000000000001"
	tests := []struct {
		name   string
		change func(*Spec)
		want   error
	}{
		{"no container", func(s *Spec) { s.Key.ContainerID = "" }, ErrInvalid},
		{"no address", func(s *Spec) { s.Addrs = nil }, ErrInvalid},
		{"namespace is no GUID", func(s *Spec) { s.Namespace = "container:abc" }, ErrInvalid},
		{"namespace with half a brace", func(s *Spec) { s.Namespace = "{" + podNamespace }, ErrInvalid},
		{"namespace is not there", func(s *Spec) { s.Namespace = unknown }, ErrInvalid},
		{"namespace is the host's", func(s *Spec) { s.Namespace = hostDefault }, ErrInvalid},
		{"namespace is a virtual machine's", func(s *Spec) { s.Namespace = guest }, ErrInvalid},
		{"address is the gateway", func(s *Spec) { s.Addrs[0] = netip.MustParseAddr("10.42.7.1") }, ErrConflict},
		{"address is the subnet's", func(s *Spec) { s.Addrs[0] = netip.MustParseAddr("10.42.7.0") }, ErrConflict},
		{"address is the broadcast address", func(s *Spec) { s.Addrs[0] = netip.MustParseAddr("10.42.7.255") }, ErrConflict},
		{"address is of another node", func(s *Spec) { s.Addrs[0] = netip.MustParseAddr("10.42.8.2") }, ErrConflict},
		{"address is taken", func(s *Spec) { s.Addrs[0] = netip.MustParseAddr("10.42.7.9") }, ErrConflict},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, spec := newHCNNode(t), hcnSpec("pod", "10.42.7.2")
			n.fake.namespaces[guest] = hcnNamespace{ID: guest, Type: "Guest"}
			n.fake.namespaces[hostDefault] = hcnNamespace{ID: hostDefault, Type: "HostDefault"}
			other := hcnSpec("other", "10.42.7.9")
			other.Namespace = ""
			if _, err := n.Attach(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			had := n.fake.has()
			tt.change(&spec)
			if _, err := n.Attach(t.Context(), spec); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			sameHCN(t, "left", had, n.fake.has())
			sameHCN(t, "attachments", 1, len(n.List()))
		})
	}
}

func TestHCNRepeatRefused(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Spec)
	}{
		{"other segment", func(s *Spec) { s.Segment = "other" }},
		{"other address", func(s *Spec) { s.Addrs[0] = netip.MustParseAddr("10.42.7.3") }},
		{"other network", func(s *Spec) { s.Network = "other" }},
		{"other hardware address", func(s *Spec) { s.MAC = []byte{2, 0, 0, 0, 0, 9} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newHCNNode(t)
			got, err := n.Attach(t.Context(), hcnSpec("pod", "10.42.7.2"))
			if err != nil {
				t.Fatal(err)
			}
			spec := hcnSpec("pod", "10.42.7.2")
			tt.change(&spec)
			if _, err := n.Attach(t.Context(), spec); !errors.Is(err, ErrConflict) {
				t.Errorf("error %v", err)
			}
			sameHCN(t, "list", []Attachment{got}, n.List())
		})
	}
}

func TestHCNConfigRefused(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, p := range list {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	tests := []struct {
		name string
		give HCNConfig
	}{
		{"no record", HCNConfig{}},
		{"subnet without room", HCNConfig{State: "x", Subnets: prefixes("10.0.0.0/31")}},
		{"subnet of IPv6 without room", HCNConfig{State: "x", Subnets: prefixes("fd00::/127")}},
		{"subnet with host bits", HCNConfig{State: "x", Subnets: prefixes("10.0.0.1/24")}},
		{"subnet in another", HCNConfig{State: "x", Subnets: prefixes("10.0.0.0/24", "10.0.0.128/25")}},
		{"blank adapter", HCNConfig{State: "x", Adapter: " "}},
		{"no prefix without masquerade", HCNConfig{State: "x", NoMasquerade: []netip.Prefix{{}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := newHCN(newFakeHCN(), Config{HCN: tt.give}); !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// Nobody has the gateway's address on a network that is bound to an adapter: that
// is told once.
func TestHCNAdapterTold(t *testing.T) {
	for adapter, want := range map[string]int{"": 0, "Ethernet 2": 1} {
		var log strings.Builder
		cfg := Config{HCN: HCNConfig{State: "x", Adapter: adapter}, Log: slog.New(slog.NewTextHandler(&log, nil))}
		if _, err := newHCN(newFakeHCN(), cfg); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(log.String(), "gateway"); got != want {
			t.Errorf("adapter %q: logged %q", adapter, &log)
		}
	}
}

func TestHCNRecord(t *testing.T) {
	n := newHCNNode(t)
	if _, err := n.Attach(t.Context(), hcnSpec("pod", "10.42.7.2")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(n.cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	for name, content := range map[string]string{"broken": "{", "of a later version": `{"version":2}`} {
		if err := os.WriteFile(n.cfg.State, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		n.restart(t)
		if _, err := n.Recover(t.Context()); err == nil {
			t.Errorf("a record that is %s was taken for none", name)
		}
		sameHCN(t, "endpoints deleted", 0, n.fake.count("delete endpoint"))
	}
}

func TestHCNNames(t *testing.T) {
	long := networkName(string(make([]byte, 300)))
	for name, want := range map[string]bool{
		networkName("default"): true, networkName("Service.With/Anything"): true, long: true,
		"zlayer-overlay": false, "zlayer-cni-": false, "zlayer-cni-a_b": false, "zlayer2-overlay-svc-a": false, "nat": false,
	} {
		if got := isNetworkName(name); got != want {
			t.Errorf("network %q is ours: %v", name, got)
		}
	}
	key := Key{ContainerID: "pod", IfName: "eth0"}
	if id, ours := endpointKey(endpointName(key)); !ours || id != key.ID() {
		t.Errorf("endpoint %q is %q, %v", endpointName(key), id, ours)
	}
	for _, name := range []string{"zlayer-cni-pod", endpointName(key) + "0", "zlayer-" + key.ID()} {
		if _, ours := endpointKey(name); ours {
			t.Errorf("endpoint %q is ours", name)
		}
	}
}

// Segments without subnets of their own are on one network: two cannot have one
// subnet. They are segments all the same, as long as somebody is on them.
func TestHCNCommonNetwork(t *testing.T) {
	n := newHCNNode(t)
	n.cfg.Common = "default"
	n.restart(t)
	web, db := ownSpec(), ownSpec()
	web.Segment, db.Segment = "shop/web", "shop/db"
	db.Key.ContainerID, db.Addrs = "db", []netip.Addr{netip.MustParseAddr("10.42.7.9")}
	for _, name := range []string{"default", "shop/web"} {
		if s, err := n.EnsureSegment(t.Context(), SegmentSpec{Name: name}); err != nil || s.Name != name || s.Bridge == "" {
			t.Fatalf("segment %s: %v, %+v", name, err, s)
		}
	}
	first, second := n.attachHCN(t, web), n.attachHCN(t, db)
	if first.Segment != "shop/web" || second.Segment != "shop/db" || first.Bridge != second.Bridge {
		t.Errorf("attached to %s at %s and %s at %s", first.Segment, first.Bridge, second.Segment, second.Bridge)
	}
	sameHCN(t, "networks", 1, len(n.fake.networks))
	for range 2 {
		var names []string
		for _, s := range n.Segments() {
			names = append(names, s.Name)
			if want := map[string]int{"shop/web": 1, "shop/db": 1}[s.Name]; s.Ports != want {
				t.Errorf("segment %s has %d sandboxes, not %d", s.Name, s.Ports, want)
			}
		}
		sameHCN(t, "segments", []string{"default", "shop/db", "shop/web"}, names)
		if err := errors.Join(n.Check(t.Context(), web.Key, nil), n.Check(t.Context(), db.Key, nil)); err != nil {
			t.Error(err)
		}
		n.restart(t)
		if _, err := n.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"default", "shop/web"} {
		if err := n.ReleaseSegment(t.Context(), name); !errors.Is(err, ErrInUse) {
			t.Errorf("release %s: %v", name, err)
		}
	}
	if err := n.Detach(t.Context(), web.Key); err != nil {
		t.Fatal(err)
	}
	if err := n.ReleaseSegment(t.Context(), "shop/web"); err != nil {
		t.Error(err)
	}
	sameHCN(t, "networks after a release", 1, len(n.fake.networks))
	own := SegmentSpec{Name: "own", Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.9.0/24")}}
	if s, err := n.EnsureSegment(t.Context(), own); err != nil || s.Bridge == second.Bridge {
		t.Errorf("a segment with subnets of its own: %v, %+v", err, s)
	}
	sameHCN(t, "networks with one of its own", 2, len(n.fake.networks))
}

// A network of a segment's own, of a time without a common one, is in the common
// one's way only as long as sandboxes are on it.
func TestHCNCommonNetworkLater(t *testing.T) {
	for _, used := range []bool{false, true} {
		n, spec := newHCNNode(t), ownSpec()
		spec.Segment = "shop"
		a := n.attachHCN(t, spec)
		if !used {
			if err := n.Detach(t.Context(), a.Key); err != nil {
				t.Fatal(err)
			}
		}
		n.cfg.Common = "default"
		n.restart(t)
		if _, err := n.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if used {
			if _, err := n.EnsureSegment(t.Context(), SegmentSpec{Name: "default"}); !errors.Is(err, ErrConflict) {
				t.Errorf("while its subnet is in use: %v", err)
			}
			if err := errors.Join(n.Check(t.Context(), a.Key, nil), n.Detach(t.Context(), a.Key), n.Reconcile(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
		ensure(t, n, SegmentSpec{Name: "default"})
		sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
		a = n.attachHCN(t, spec)
		sameHCN(t, "network of the segment", n.state.Segments[0].ID, a.Bridge)
	}
}

func TestSameNamespace(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{podNamespace, podNamespace, true},
		{podNamespace, "{" + podNamespace + "}", true},
		{"0A1B2C3D-0000-4000-8000-000000000000", "0a1b2c3d-0000-4000-8000-000000000000", true},
		{podNamespace, "0a1b2c3d-0000-4000-8000-000000000000", false},
		{"", "", false},
		{"none", "none", false},
	} {
		if got := SameNamespace(tt.a, tt.b); got != tt.want {
			t.Errorf("%q and %q: %t", tt.a, tt.b, got)
		}
	}
}

func TestParseGUID(t *testing.T) {
	const bare = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
	for _, test := range []struct{ text, want string }{
		{bare, bare},
		{"{" + bare + "}", bare},
		{strings.ToUpper(bare), bare},
		{"{" + bare, ""},
		{bare + "}", ""},
		{"(" + bare + ")", ""},
		{"urn:uuid:" + bare, ""},
		{strings.ReplaceAll(bare, "-", ""), ""},
		{"container:abc", ""},
		{"", ""},
	} {
		got, err := parseGUID(test.text)
		if got != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%q: %q, %v; want %q", test.text, got, err, test.want)
		}
	}
	if one, other := newGUID(), newGUID(); one == other {
		t.Errorf("%s twice", one)
	}
}
