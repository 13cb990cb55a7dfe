package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// attachHCN attaches or ends the test.
func (n *hcnNode) attachHCN(t *testing.T, spec Spec) Attachment {
	t.Helper()
	a, err := n.Attach(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestHCNRestartAdopts(t *testing.T) {
	n := newHCNNode(t)
	first := n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
	own := ownSpec()
	own.Key.ContainerID, own.Addrs = "own", []netip.Addr{netip.MustParseAddr("10.42.7.3")}
	second := n.attachHCN(t, own)
	segments := n.Segments()
	had := n.fake.has()
	n.restart(t)
	list, err := n.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "adopted", []Attachment{first, second}, list)
	sameHCN(t, "segments", segments, n.Segments())
	sameHCN(t, "objects", had, n.fake.has())
	sameHCN(t, "again", first, n.attachHCN(t, hcnSpec("pod", "10.42.7.2")))
	third := hcnSpec("third", "10.42.7.4")
	third.Namespace = ""
	if got := n.attachHCN(t, third); got.PortIndex <= second.PortIndex {
		t.Errorf("number %d was given before", got.PortIndex)
	}
	for _, call := range []string{"create network", "delete network", "delete endpoint"} {
		if want := strings.Count(call, "create"); n.fake.count(call) != want {
			t.Errorf("%s: %d calls", call, n.fake.count(call))
		}
	}
}

// What the configuration wants of the network may change between two runs.
func TestHCNDrift(t *testing.T) {
	other := []netip.Prefix{netip.MustParsePrefix("10.42.9.0/24")}
	tests := []struct {
		name   string
		change func(*HCNConfig)
		spec   SegmentSpec
		addr   string // that a sandbox can have then
	}{
		{"subnet", func(*HCNConfig) {}, SegmentSpec{Name: "default", Subnets: other}, "10.42.9.2"},
		{"slice", func(c *HCNConfig) { c.Subnets = other }, SegmentSpec{Name: "default"}, "10.42.9.2"},
		{"type", func(c *HCNConfig) { c.Adapter = "Ethernet" }, SegmentSpec{Name: "default"}, "10.42.7.3"},
	}
	for _, tt := range tests {
		t.Run(tt.name+", unused", func(t *testing.T) {
			n := newHCNNode(t)
			ensure(t, n, SegmentSpec{Name: "default"})
			tt.change(&n.cfg)
			n.restart(t)
			ensure(t, n, tt.spec)
			sameHCN(t, "networks made", 2, n.fake.count("create network"))
			sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
			n.attachHCN(t, hcnSpec("pod", tt.addr))
			ensure(t, n, SegmentSpec{Name: "default"})
			sameHCN(t, "networks made after another look", 2, n.fake.count("create network"))
		})
		t.Run(tt.name+", in use", func(t *testing.T) {
			n := newHCNNode(t)
			old := n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
			tt.change(&n.cfg)
			n.restart(t)
			ensure(t, n, tt.spec)
			sameHCN(t, "list", []Attachment{old}, n.List())
			sameHCN(t, "networks made while in use", 1, n.fake.count("create network"))
			if err := n.Detach(t.Context(), old.Key); err != nil {
				t.Fatal(err)
			}
			if err := n.Reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			sameHCN(t, "networks made", 2, n.fake.count("create network"))
			n.attachHCN(t, hcnSpec("pod", tt.addr))
		})
	}
	t.Run("address for which there is no subnet yet", func(t *testing.T) {
		n := newHCNNode(t)
		n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
		ensure(t, n, SegmentSpec{Name: "default", Subnets: other})
		spec := ownSpec()
		spec.Key.ContainerID, spec.Addrs[0] = "new", netip.MustParseAddr("10.42.9.2")
		if _, err := n.Attach(t.Context(), spec); !errors.Is(err, ErrConflict) {
			t.Errorf("error %v", err)
		}
	})
}

func ensure(t *testing.T, n *hcnNode, spec SegmentSpec) Segment {
	t.Helper()
	s, err := n.EnsureSegment(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A network that is there by name but not by id is ours if it is as wanted.
func TestHCNDuplicates(t *testing.T) {
	wanted := func(id string, subnet string) hcnNetwork {
		return networkWanted(hcnSegment{Name: "default", ID: id, Subnets: []netip.Prefix{netip.MustParsePrefix(subnet)}}, "")
	}
	n := newHCNNode(t)
	for id, subnet := range map[string]string{"a": "10.1.0.0/24", "b": "10.42.7.0/24", "c": "10.42.7.0/24", "d": "10.2.0.0/24"} {
		n.fake.networks[id] = wanted(id, subnet)
	}
	n.fake.endpoints["foreign"] = hcnEndpoint{ID: "foreign", Name: "foreign", HostComputeNetwork: "D"}
	s := ensure(t, n, SegmentSpec{Name: "default"})
	if s.Bridge != "b" && s.Bridge != "c" {
		t.Errorf("network %q was adopted", s.Bridge)
	}
	sameHCN(t, "networks made", 0, n.fake.count("create network"))
	sameHCN(t, "left: the adopted, and the one with a foreign endpoint",
		[]string{"endpoint foreign", "namespace " + podNamespace + " with 0", "network zlayer-cni-default", "network zlayer-cni-default"}, n.fake.has())
	n.restart(t) // the record has the id that was found, not the one that was thought of
	sameHCN(t, "segment after a restart", s, ensure(t, n, SegmentSpec{Name: "default"}))
}

func TestHCNMissingDefaultRoute(t *testing.T) {
	t.Run("of a network that is there", func(t *testing.T) {
		n := newHCNNode(t)
		ensure(t, n, SegmentSpec{Name: "default"})
		for id, network := range n.fake.networks {
			network.Ipams[0].Subnets[0].Routes = nil
			n.fake.networks[id] = network
		}
		n.restart(t)
		n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
		sameHCN(t, "networks made", 2, n.fake.count("create network"))
	})
	t.Run("of a network that HCN made", func(t *testing.T) {
		n := newHCNNode(t)
		n.fake.quietRoutes = true
		if _, err := n.EnsureSegment(t.Context(), SegmentSpec{Name: "default"}); err == nil || !strings.Contains(err.Error(), "no default route") {
			t.Errorf("error %v", err)
		}
		sameHCN(t, "left", left(), n.fake.has())
		sameHCN(t, "segments", []Segment{}, n.Segments())
	})
}

func TestHCNSegments(t *testing.T) {
	n := newHCNNode(t)
	billing := SegmentSpec{Name: "billing", Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.200.0/28")}}
	for range 2 {
		ensure(t, n, SegmentSpec{Name: "default"})
		ensure(t, n, billing)
	}
	sameHCN(t, "networks made", 2, n.fake.count("create network"))
	if _, err := n.EnsureSegment(t.Context(), SegmentSpec{Name: "x", Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.200.8/29")}}); !errors.Is(err, ErrConflict) {
		t.Errorf("segment in another's subnet: %v", err)
	}
	spec := hcnSpec("pod", "10.42.200.2")
	spec.Segment = "billing"
	a := n.attachHCN(t, spec)
	if err := n.ReleaseSegment(t.Context(), "billing"); !errors.Is(err, ErrInUse) {
		t.Errorf("release of a segment in use: %v", err)
	}
	if err := n.Detach(t.Context(), a.Key); err != nil {
		t.Fatal(err)
	}
	fault{}.arm(n.fake, 1)
	if err := n.ReleaseSegment(t.Context(), "billing"); !errors.Is(err, errHCNBusy) {
		t.Errorf("release that fails: %v", err)
	}
	sameHCN(t, "segments while one is going", 1, len(n.Segments()))
	n.restart(t)
	if _, err := n.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
	if err := n.ReleaseSegment(t.Context(), "billing"); err != nil {
		t.Errorf("release of nothing: %v", err)
	}
}

// Somebody else may take anything away.
func TestHCNForeignHands(t *testing.T) {
	tests := []struct {
		name string
		take func(n *hcnNode, a Attachment)
		kept bool // the attachment, mended
	}{
		{"endpoint", func(n *hcnNode, a Attachment) { delete(n.fake.endpoints, a.Port) }, true},
		{"namespace", func(n *hcnNode, a Attachment) { delete(n.fake.namespaces, a.Namespace) }, false},
		{"network with its endpoints", func(n *hcnNode, a Attachment) { clear(n.fake.networks); clear(n.fake.endpoints) }, true},
		{"place in the namespace", func(n *hcnNode, a Attachment) {
			n.fake.namespaces[a.Namespace] = hcnNamespace{ID: a.Namespace, Type: hcnHost}
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newHCNNode(t)
			n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
			a := n.List()[0]
			tt.take(n, a)
			if err := n.Check(t.Context(), a.Key, nil); err == nil {
				t.Error("nothing was found wrong")
			}
			if err := n.Reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			if tt.kept {
				sameHCN(t, "list", []Attachment{a}, n.List())
				sameHCN(t, "references", []string{strings.ToUpper(a.Port)}, n.fake.namespaces[podNamespace].endpoints())
				if err := n.Check(t.Context(), a.Key, nil); err != nil {
					t.Error(err)
				}
				return
			}
			sameHCN(t, "told to Run", []Attachment{a}, n.lost)
			delete(n.fake.namespaces, podNamespace)
			sameHCN(t, "left", []string{"network zlayer-cni-default"}, n.fake.has())
		})
		t.Run(tt.name+", then attached again", func(t *testing.T) {
			n := newHCNNode(t)
			a := n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
			tt.take(n, a)
			n.fake.namespaces[podNamespace] = hcnNamespace{ID: podNamespace, Type: hcnHost}
			again := n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
			if err := n.Check(t.Context(), again.Key, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// An endpoint that is gone is made anew with what it had, also where HCN calls it
// otherwise, as soon as HCN lets it; and not where its address is none any more.
func TestHCNRemake(t *testing.T) {
	n := newHCNNode(t)
	spec := hcnSpec("pod", "10.42.7.2")
	spec.DNS = DNS{Domain: "cluster.local"}
	a := n.attachHCN(t, spec)
	e := n.fake.endpoints[a.Port]
	clear(n.fake.endpoints)
	fault{name: "create endpoint"}.arm(n.fake, 1)
	if err := n.Reconcile(t.Context()); !errors.Is(err, errInjected) {
		t.Errorf("error %v", err)
	}
	sameHCN(t, "list while HCN refuses", []Attachment{a}, n.List())
	n.fake.hook(nil, nil)
	n.fake.ownIDs = true
	if err := n.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	now := n.List()[0]
	remade := n.fake.endpoints[now.Port]
	a.Port, e.ID = now.Port, remade.ID
	sameHCN(t, "attachment", a, now)
	sameHCN(t, "endpoint", e, remade)
	clear(n.fake.endpoints)
	again := n.attachHCN(t, spec)
	sameHCN(t, "attached again", n.List()[0], again)
	sameHCN(t, "MAC of the endpoint", e.MacAddress, n.fake.endpoints[again.Port].MacAddress)
	if err := n.Check(t.Context(), a.Key, nil); err != nil {
		t.Error(err)
	}
	a = n.List()[0]
	n.cfg.Subnets = []netip.Prefix{netip.MustParsePrefix("10.42.9.0/24")}
	n.restart(t)
	clear(n.fake.networks)
	clear(n.fake.endpoints)
	if _, err := n.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "list of a node with other subnets", []Attachment{}, n.List())
	sameHCN(t, "told to Run", a.Key, n.lost[0].Key)
}

func TestHCNCheck(t *testing.T) {
	n := newHCNNode(t)
	if err := n.Check(t.Context(), Key{ContainerID: "pod", IfName: "eth0"}, nil); !errors.Is(err, ErrNotAttached) {
		t.Errorf("of nothing: %v", err)
	}
	a := n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
	if err := n.Check(t.Context(), a.Key, nil); err != nil {
		t.Errorf("of what is whole: %v", err)
	}
	e := n.fake.endpoints[a.Port]
	e.IPConfigurations, e.Routes = nil, nil
	n.fake.endpoints[a.Port] = e
	err := n.Check(t.Context(), a.Key, nil)
	for _, want := range []string{"address 10.42.7.2 is missing", "default route via 10.42.7.1 is missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// HCN may call things otherwise than it was asked to, and hcsshim's lists fail
// when something goes meanwhile.
func TestHCNOwnIDs(t *testing.T) {
	n := newHCNNode(t)
	n.fake.ownIDs = true
	var failed atomic.Int32
	n.fake.hook(func(call string) error {
		if strings.HasPrefix(call, "list") && failed.Add(1)%2 == 1 {
			return fs.ErrNotExist
		}
		return nil
	}, nil)
	a := n.attachHCN(t, ownSpec())
	n.restart(t)
	list, err := n.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "adopted", []Attachment{a}, list)
	if err := n.Detach(t.Context(), a.Key); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
}

// HCN may write addresses in any form, and hand out both families.
func TestHCNDualStack(t *testing.T) {
	n, spec := newHCNNode(t), hcnSpec("pod", "10.42.7.2")
	n.cfg.Subnets = append(n.cfg.Subnets, netip.MustParsePrefix("fd42:0:0:7::/64"))
	n.cfg.NoMasquerade = append(n.cfg.NoMasquerade, netip.MustParsePrefix("fd42::/48"))
	n.restart(t)
	spec.Addrs = append(spec.Addrs, netip.MustParseAddr("fd42:0:0:7::a"))
	a := n.attachHCN(t, spec)
	e := n.fake.endpoints[a.Port]
	sameHCN(t, "how HCN writes it", []string{"10.42.7.2", "FD42:0000:0000:0007:0000:0000:0000:000A"},
		[]string{e.IPConfigurations[0].IPAddress, e.IPConfigurations[1].IPAddress})
	n.restart(t)
	sameHCN(t, "again", a, n.attachHCN(t, spec))
	if err := n.Check(t.Context(), a.Key, nil); err != nil {
		t.Error(err)
	}
	sameHCN(t, "networks made", 1, n.fake.count("create network"))
	e.Routes = e.Routes[:1]
	n.fake.endpoints[a.Port] = e
	if err := n.Check(t.Context(), a.Key, nil); err == nil || !strings.Contains(err.Error(), "default route via fd42:0:0:7::1 is missing") {
		t.Errorf("without its route of IPv6: %v", err)
	}
}

// HCN may not say how it called what it made: then it is called as was asked.
func TestHCNQuietIDs(t *testing.T) {
	n := newHCNNode(t)
	n.fake.quietIDs = true
	ensure(t, n, SegmentSpec{Name: "default"})
	if err := n.ReleaseSegment(t.Context(), "default"); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "left of a segment", left(), n.fake.has())
	a := n.attachHCN(t, ownSpec())
	for what, id := range map[string]string{"network": a.Bridge, "endpoint": a.Port, "namespace": a.Namespace} {
		if id == "" {
			t.Errorf("%s without id", what)
		}
	}
	if err := n.Detach(t.Context(), a.Key); err != nil {
		t.Fatal(err)
	}
	if err := n.ReleaseSegment(t.Context(), "default"); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "left", left(), n.fake.has())
}

// An endpoint that is in its namespace already is fine, one in another is not.
func TestHCNPlacedAlready(t *testing.T) {
	n := newHCNNode(t)
	n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
	r := n.state.Attachments[0]
	if err := n.place(t.Context(), r); err != nil {
		t.Errorf("added again: %v", err)
	}
	r.Namespace = "99999999-2222-4333-8444-555555555555"
	n.fake.namespaces[r.Namespace] = hcnNamespace{ID: r.Namespace, Type: hcnHost}
	if err := n.place(t.Context(), r); !errors.Is(err, fs.ErrExist) {
		t.Errorf("added to another namespace: %v", err)
	}
}

// What Reconcile saw being made may be whole by the time it looks at it.
func TestHCNReconcileLate(t *testing.T) {
	n := newHCNNode(t)
	a := n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
	seen := n.state.Attachments[0]
	seen.State = hcnMaking
	if err := n.reconcileAttachment(t.Context(), seen, nil); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "list", []Attachment{a}, n.List())
}

// addForeign gives the host networks and endpoints of others, one of them with
// names that begin like ours.
func addForeign(n *hcnNode) {
	n.fake.networks["n1"] = hcnNetwork{ID: "n1", Name: "nat", Type: "NAT"}
	n.fake.networks["n2"] = hcnNetwork{ID: "n2", Name: "zlayer-overlay", Type: hcnInternal}
	n.fake.endpoints["e1"] = hcnEndpoint{ID: "e1", Name: "zlayer-cni-pod", HostComputeNetwork: "n1"}
	n.fake.endpoints["e2"] = hcnEndpoint{ID: "e2", Name: endpointName(Key{ContainerID: "x", IfName: "eth0"}), HostComputeNetwork: "n2"}
}

func TestHCNStrays(t *testing.T) {
	n := newHCNNode(t)
	addForeign(n)
	foreign := n.fake.has()
	ensure(t, n, SegmentSpec{Name: "default"})
	had := n.fake.has()
	n.attachHCN(t, hcnSpec("lost", "10.42.7.2"))
	if err := os.Remove(n.cfg.State); err != nil {
		t.Fatal(err)
	}
	n.restart(t)
	ensure(t, n, SegmentSpec{Name: "default"})
	if err := n.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "left", had, n.fake.has())
	// One that is in no namespace says so by the id of none.
	stray := endpointWanted(hcnAttachment{Key: Key{ContainerID: "lost", IfName: "eth0"}}, n.state.Segments[0].ID, HCNConfig{})
	if e, err := n.fake.CreateEndpoint(stray); err != nil || e.HostComputeNamespace != hcnNoID {
		t.Fatalf("made %+v: %v", e, err)
	}
	removals := n.fake.count("remove endpoint")
	if err := n.Reconcile(t.Context()); err != nil {
		t.Error(err)
	}
	sameHCN(t, "left of one in no namespace", had, n.fake.has())
	sameHCN(t, "removals from no namespace", removals, n.fake.count("remove endpoint"))
	n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
	if err := n.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "left after teardown", foreign, n.fake.has())
}

// Teardown needs no record, and removes the networks of services too.
func TestHCNTeardown(t *testing.T) {
	for name, spoil := range map[string]func(record string) error{
		"whole":  func(string) error { return nil },
		"lost":   os.Remove,
		"broken": func(record string) error { return os.WriteFile(record, []byte("{"), 0o600) },
		"later":  func(record string) error { return os.WriteFile(record, []byte(`{"version":2}`), 0o600) },
	} {
		t.Log("the record is", name)
		n := newHCNNode(t)
		addForeign(n)
		foreign := n.fake.has()
		ensure(t, n, SegmentSpec{Name: "billing", Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.200.0/28")}})
		n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
		if err := spoil(n.cfg.State); err != nil {
			t.Fatal(err)
		}
		n.restart(t)
		n.countHCN(t, 2, 1)
		if err := n.Teardown(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.countHCN(t, 0, 0)
		sameHCN(t, "left", foreign, n.fake.has())
		if _, err := os.Stat(n.cfg.State); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the record is left: %v", err)
		}
	}
}

// What went before a Teardown is not told after it, and no network is taken for
// there.
func TestHCNTeardownForgets(t *testing.T) {
	n := newHCNNode(t)
	n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
	delete(n.fake.namespaces, podNamespace)
	if err := errors.Join(n.Reconcile(t.Context()), n.Teardown(t.Context())); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "told to Run", []Attachment{}, n.lost)
	sameHCN(t, "networks taken for there", 0, len(n.actual))
	n.attachHCN(t, ownSpec())
}

// countHCN wants that many objects with names of ours.
func (n *hcnNode) countHCN(t *testing.T, networks, endpoints int) {
	t.Helper()
	gotNetworks, gotEndpoints, err := hcnObjects(t.Context(), n.fake)
	if err != nil || gotNetworks != networks || gotEndpoints != endpoints {
		t.Errorf("%d networks and %d endpoints of ours (%v), not %d and %d", gotNetworks, gotEndpoints, err, networks, endpoints)
	}
}

func TestHCNRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newHCNNode(t)
		a := n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
		ctx, stop := context.WithCancel(t.Context())
		gone, ended := make(chan Attachment, 2), make(chan error)
		go func() { ended <- n.Run(ctx, func(a Attachment) { gone <- a }) }()
		synctest.Wait()
		n.fake.mu.Lock()
		delete(n.fake.namespaces, podNamespace)
		n.fake.mu.Unlock()
		sameHCN(t, "gone", a, <-gone)
		calls := n.fake.total()
		synctest.Wait()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if more := n.fake.total() - calls; more > 10 {
			t.Errorf("%d calls without anything to do", more)
		}
	})
}

// A comparison asks HCN once for what there is, however many segments there are.
func TestHCNReconcileAsksOnce(t *testing.T) {
	n := newHCNNode(t)
	for i := range 4 {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, 200, byte(16 * i)}), 28)
		ensure(t, n, SegmentSpec{Name: fmt.Sprint("s", i), Subnets: []netip.Prefix{subnet}})
	}
	n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
	calls := len(n.fake.calls)
	if err := n.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "calls", []string{"list networks null", "list endpoints null", `look at namespace "` + podNamespace + `"`}, n.fake.calls[calls:])
}

// What HCN does not let go of is tried again ever more seldom, and told once for
// each reason.
func TestHCNRunPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newHCNNode(t)
		var log strings.Builder
		n.log = slog.New(slog.NewTextHandler(&log, nil))
		a := n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
		var why atomic.Value
		why.Store("first")
		n.fake.hook(func(call string) error {
			if call == "delete endpoint" {
				return errors.New(why.Load().(string))
			}
			return nil
		}, nil)
		if err := n.Detach(t.Context(), a.Key); !errors.Is(err, errHCNBusy) {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- n.Run(ctx, func(Attachment) {}) }()
		tries := n.fake.count("delete endpoint")
		<-time.After(10 * time.Minute)
		synctest.Wait()
		if tries = n.fake.count("delete endpoint") - tries; tries < 20 || tries > 25 {
			t.Errorf("tried %d times in ten minutes", tries)
		}
		why.Store("second")
		<-time.After(10 * time.Minute)
		fault{dead: true, name: "list endpoints"}.arm(n.fake, 1)
		<-time.After(10 * time.Minute)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		sameHCN(t, "warnings", 2, strings.Count(log.String(), "not removed yet"))
		sameHCN(t, "warnings of comparisons", 1, strings.Count(log.String(), "not everything"))
	})
}

// A namespace that was made here is open as long as its sandbox is attached, also
// after a restart, and no longer: HCS starts no container in one that nobody has
// open. The runtime's own is the runtime's to keep.
func TestHCNNamespaceHeld(t *testing.T) {
	n, spec := newHCNNode(t), ownSpec()
	own := n.attachHCN(t, spec)
	theirs := hcnSpec("theirs", "10.42.7.3")
	n.attachHCN(t, theirs)
	want := map[string]int{own.Namespace: 1}
	n.attachHCN(t, spec)
	sameHCN(t, "open", want, n.fake.open)
	n.restart(t)
	sameHCN(t, "open while nobody runs", map[string]int{}, n.fake.open)
	for range 2 {
		if err := n.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		sameHCN(t, "open after a restart", want, n.fake.open)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	sameHCN(t, "open after Close", map[string]int{}, n.fake.open)
	if _, err := n.Attach(t.Context(), spec); err != nil {
		t.Error(err)
	}
	sameHCN(t, "open again", want, n.fake.open)
	if err := errors.Join(n.Detach(t.Context(), spec.Key), n.Detach(t.Context(), theirs.Key)); err != nil {
		t.Fatal(err)
	}
	sameHCN(t, "left", left("zlayer-cni-default"), n.fake.has())
}

// References to endpoints that are gone go out of a namespace before a sandbox gets
// one there; those to endpoints that are there, of whomever, stay.
func TestHCNStaleReferences(t *testing.T) {
	n := newHCNNode(t)
	const gone, there = "99999999-0000-4000-8000-000000000001", "99999999-0000-4000-8000-000000000002"
	refer := func(id string) hcnResource {
		return hcnResource{Type: hcnOfEndpoint, Data: mustJSON(map[string]string{"Id": id})}
	}
	n.fake.endpoints[there] = hcnEndpoint{ID: there, Name: "somebody's", HostComputeNamespace: podNamespace}
	n.fake.namespaces[podNamespace] = hcnNamespace{ID: podNamespace, Type: hcnHost, Resources: []hcnResource{
		refer(gone), refer(there), {Type: hcnOfEndpoint, Data: mustJSON("unreadable")}, {Type: "Container", Data: mustJSON(map[string]string{"Id": gone})},
	}}
	spec := hcnSpec("pod", "10.42.7.2")
	at := n.attachHCN(t, spec)
	sameHCN(t, "endpoints in the namespace", []string{there, strings.ToUpper(at.Port)}, n.fake.namespaces[podNamespace].endpoints())
	sameHCN(t, "resources", 4, len(n.fake.namespaces[podNamespace].Resources))
}

// Objects of older versions of HCN lack fields, all of them if need be. They are
// read, and are as little as they say.
func TestHCNSparseObjects(t *testing.T) {
	var network hcnNetwork
	var endpoint hcnEndpoint
	var namespace hcnNamespace
	for _, into := range []any{&network, &endpoint, &namespace} {
		if err := json.Unmarshal([]byte(`{"Health":null,"Resources":null,"Policies":null,"Ipams":[{"Subnets":[{}]}],"Unknown":[1]}`), into); err != nil {
			t.Fatalf("%T: %v", into, err)
		}
	}
	if network.differs(networkWanted(hcnSegment{Name: "default", Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.7.0/24")}}, "")) == "" || namespace.holds("") {
		t.Error("a sparse object was taken for whole")
	}
	n := newHCNNode(t)
	n.fake.namespaces[podNamespace] = hcnNamespace{ID: podNamespace}
	n.fake.networks["99999999-0000-4000-8000-000000000003"] = hcnNetwork{ID: "99999999-0000-4000-8000-000000000003", Name: "zlayer-cni-default"}
	n.attachHCN(t, hcnSpec("pod", "10.42.7.2"))
	sameHCN(t, "networks", 1, len(n.fake.networks))
}
