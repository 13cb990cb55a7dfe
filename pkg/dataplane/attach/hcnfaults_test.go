package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// faultyOperation is one of an Attacher that any call into HCN may fail.
type faultyOperation struct {
	name    string
	prepare func(t *testing.T, n *hcnNode)
	do      func(ctx context.Context, n *hcnNode) error
	// least is how many calls it makes at least.
	least int
	// attached is how many sandboxes there are when it succeeded, and networks the networks then.
	attached int
	networks []string
}

var (
	billing    = SegmentSpec{Name: "billing", Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.200.0/28")}}
	newBilling = SegmentSpec{Name: "billing", Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.201.0/28")}}
	spareSpace = "11111111-2222-4333-8444-666666666666"
)

func (n *hcnNode) attachTo(ctx context.Context, spec Spec) error {
	_, err := n.Attach(ctx, spec)
	return err
}

func (n *hcnNode) ensureOnly(ctx context.Context, spec SegmentSpec) error {
	_, err := n.EnsureSegment(ctx, spec)
	return err
}

// losePort attaches, and has somebody else remove all endpoints. What namespaces say of them
// stays, as HCN has it.
func losePort(spec Spec) func(*testing.T, *hcnNode) {
	return func(t *testing.T, n *hcnNode) {
		n.attachHCN(t, spec)
		clear(n.fake.endpoints)
	}
}

func faultyOperations() []faultyOperation {
	pod, own := hcnSpec("pod", "10.42.7.2"), ownSpec()
	moved, onBilling := pod, own
	moved.Namespace = spareSpace
	onBilling.Segment, onBilling.Addrs = "billing", []netip.Addr{netip.MustParseAddr("10.42.200.2")}
	attached := func(spec Spec) func(*testing.T, *hcnNode) {
		return func(t *testing.T, n *hcnNode) { n.attachHCN(t, spec) }
	}
	attach := func(spec Spec) func(context.Context, *hcnNode) error {
		return func(ctx context.Context, n *hcnNode) error { return n.attachTo(ctx, spec) }
	}
	detach := func(ctx context.Context, n *hcnNode) error { return n.Detach(ctx, pod.Key) }
	segment := func(spec SegmentSpec) func(context.Context, *hcnNode) error {
		return func(ctx context.Context, n *hcnNode) error { return n.ensureOnly(ctx, spec) }
	}
	ensured := func(t *testing.T, n *hcnNode) { ensure(t, n, billing) }
	common := []string{"zlayer-cni-default"}
	return []faultyOperation{
		{"Attach", nil, attach(pod), 5, 1, common},
		{"Attach, a namespace of its own", nil, attach(own), 6, 1, common},
		{"Attach in another namespace", attached(pod), attach(moved), 5, 1, common},
		{"Attach again, the endpoint is gone", losePort(pod), attach(pod), 4, 1, common},
		{"Attach again, that of its own namespace is gone", losePort(own), attach(own), 4, 1, common},
		{"Reconcile, the endpoint is gone", losePort(own), func(ctx context.Context, n *hcnNode) error { return n.Reconcile(ctx) }, 6, 1, common},
		{"Reconcile, network and endpoint are gone", func(t *testing.T, n *hcnNode) {
			losePort(pod)(t, n)
			clear(n.fake.networks)
		}, func(ctx context.Context, n *hcnNode) error { return n.Reconcile(ctx) }, 6, 1, common},
		{"Detach", attached(pod), detach, 2, 0, common},
		{"Detach, a namespace of its own", attached(own), detach, 3, 0, common},
		{"EnsureSegment", nil, segment(billing), 3, 0, []string{"zlayer-cni-billing"}},
		{"EnsureSegment with other subnets", ensured, segment(newBilling), 4, 0, []string{"zlayer-cni-billing"}},
		{"ReleaseSegment", ensured, func(ctx context.Context, n *hcnNode) error { return n.ReleaseSegment(ctx, "billing") }, 1, 0, nil},
		{"Teardown", func(t *testing.T, n *hcnNode) {
			n.attachHCN(t, pod)
			ensured(t, n)
			second := onBilling
			second.Key.ContainerID = "second"
			n.attachHCN(t, second)
		}, func(ctx context.Context, n *hcnNode) error { return n.Teardown(ctx) }, 9, 0, nil},
	}
}

// Whichever call into HCN fails, before or after it had its effect, and whether the
// process ends by it or not: the same again succeeds and leaves nothing behind, and
// without it a comparison leaves nothing that is half there.
func TestHCNFaultAtEveryCall(t *testing.T) {
	for _, op := range faultyOperations() {
		for _, dead := range []bool{false, true} {
			for _, ownIDs := range []bool{false, true} {
				for _, repeat := range []bool{true, false} {
					name := fmt.Sprintf("%s, dead %t, ids of HCN's own %t, repeated %t", op.name, dead, ownIDs, repeat)
					t.Run(name, func(t *testing.T) { op.failEverywhere(t, dead, ownIDs, repeat) })
				}
			}
		}
	}
}

func (op faultyOperation) failEverywhere(t *testing.T, dead, ownIDs, repeat bool) {
	t.Helper()
	eachFault(t, dead, op.least, func(t *testing.T, arm func(*hcnNode) func() bool) bool {
		n := newHCNNode(t)
		n.fake.namespaces[spareSpace] = hcnNamespace{ID: spareSpace, Type: hcnHost}
		n.fake.ownIDs = ownIDs
		if op.prepare != nil {
			op.prepare(t, n)
		}
		hit := arm(n)
		err := op.do(t.Context(), n)
		n.fake.hook(nil, nil)
		if !hit() {
			if err != nil {
				t.Fatal(err)
			}
			op.check(t, n, 0)
			return false
		}
		if dead && err == nil {
			t.Error("a dead process had success")
		}
		nameless := 0
		if ownIDs && n.fake.count("create namespace") > 0 {
			nameless = 1 // HCN did not tell which, and it has no name
		}
		if dead {
			n.restart(t)
		}
		if repeat {
			if err := op.do(t.Context(), n); err != nil {
				t.Errorf("again: %v", err)
			}
			op.check(t, n, nameless)
			return true
		}
		if err := n.Reconcile(t.Context()); err != nil {
			t.Error(err)
		}
		n.whole(t, nameless)
		return true
	})
}

// check is whole after a success.
func (op faultyOperation) check(t *testing.T, n *hcnNode, nameless int) {
	t.Helper()
	n.whole(t, nameless)
	sameHCN(t, "number of sandboxes", op.attached, len(n.List()))
	var networks []string
	for _, network := range n.fake.networks {
		networks = append(networks, network.Name)
	}
	slices.Sort(networks)
	sameHCN(t, "networks", op.networks, networks)
	if _, err := os.Stat(n.cfg.State); op.name == "Teardown" && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record is left: %v", err)
	}
}

// whole checks that HCN has what the record says and nothing else, but for as many
// namespaces as nobody can know, and that nothing there is unfinished.
func (n *hcnNode) whole(t *testing.T, nameless int) {
	t.Helper()
	want := []string{}
	spaces := map[string]int{podNamespace: 0, spareSpace: 0}
	for _, r := range n.state.Attachments {
		if r.State != hcnAttached {
			t.Errorf("unfinished: %+v", r)
		}
		want = append(want, "endpoint "+endpointName(r.Key))
		spaces[r.Namespace]++
		if r.OwnNamespace {
			want = append(want, fmt.Sprintf("namespace %s is open 1 times", r.Namespace))
		}
		if err := n.Check(t.Context(), r.Key, nil); err != nil {
			t.Error(err)
		}
	}
	for id, endpoints := range spaces {
		want = append(want, fmt.Sprintf("namespace %s with %d", id, endpoints))
	}
	for _, s := range n.state.Segments {
		if s.Leaving || n.fake.networks[s.ID].Name != networkName(s.Name) {
			t.Errorf("unfinished: %+v", s)
		}
		want = append(want, "network "+networkName(s.Name))
	}
	slices.Sort(want)
	has := slices.DeleteFunc(n.fake.has(), func(what string) bool {
		lost := nameless > 0 && strings.HasSuffix(what, " with 0") && !slices.Contains(want, what)
		if lost {
			nameless--
		}
		return lost
	})
	sameHCN(t, "what there is", want, has)
}

// kill ends the process of the Attacher: it writes nothing down any more.
func (n *hcnNode) kill() { n.hcnAttacher.cfg.State = filepath.Join(n.cfg.State, "of a dead process") }
