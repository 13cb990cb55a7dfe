package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/firewall"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
)

// subnetAttacher attaches as Windows' attacher does, as far as can be told from
// outside: it knows subnets, refuses addresses that are no sandbox's, and answers
// for all containers of a namespace by the first. What it does with HCN is tested
// in package attach.
type subnetAttacher struct {
	cfg  attach.Config
	fail error  // of the next Attach
	held func() // called at the beginning of the next Attach

	mu       sync.Mutex
	all      map[string]attach.Attachment
	segments map[string]bool
	number   int
}

func (s *subnetAttacher) Attach(ctx context.Context, spec attach.Spec) (attach.Attachment, error) {
	if held := s.held; held != nil {
		s.held = nil
		held()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.all {
		if attach.SameNamespace(a.Namespace, spec.Namespace) && a.Key.IfName == spec.Key.IfName {
			return a, nil
		}
	}
	if err := s.fail; err != nil {
		s.fail = nil
		return attach.Attachment{}, err
	}
	s.number++
	made := attach.Attachment{
		Key: spec.Key, Segment: spec.Segment, Addrs: spec.Addrs, PortIndex: s.number, Network: spec.Network,
		Namespace: spec.Namespace, Bridge: "0a1b2c3d-0000-4000-8000-00000000000f",
	}
	if made.Namespace == "" {
		made.Namespace = fmt.Sprintf("0a1b2c3d-0000-4000-8000-%012d", s.number)
	}
	for _, addr := range spec.Addrs {
		at := slices.IndexFunc(s.cfg.HCN.Subnets, func(p netip.Prefix) bool { return p.Contains(addr) })
		if at < 0 || addr == attach.SubnetGateway(s.cfg.HCN.Subnets[at]) {
			return attach.Attachment{}, fmt.Errorf("%s: %w", addr, attach.ErrConflict)
		}
		made.Subnets = append(made.Subnets, s.cfg.HCN.Subnets[at])
	}
	if spec.BeforeUp != nil {
		if err := spec.BeforeUp(ctx, made); err != nil {
			return attach.Attachment{}, err
		}
	}
	s.all[spec.Key.ID()] = made
	return made, nil
}

func (s *subnetAttacher) Detach(_ context.Context, key attach.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, key.ID())
	return nil
}

func (s *subnetAttacher) EnsureSegment(_ context.Context, spec attach.SegmentSpec) (attach.Segment, error) {
	if spec.Table != 0 || len(spec.Subnets) > 0 {
		return attach.Segment{}, errors.New("a network of its own is not expected here")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments[spec.Name] = true
	return attach.Segment{Name: spec.Name}, nil
}

func (s *subnetAttacher) ReleaseSegment(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.segments, name)
	return nil
}

func (s *subnetAttacher) Lookup(key attach.Key) (attach.Attachment, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, found := s.all[key.ID()]
	return a, found
}

func (s *subnetAttacher) List() []attach.Attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.all), func(a, b attach.Attachment) int { return a.PortIndex - b.PortIndex })
}

func (s *subnetAttacher) Segments() (list []attach.Segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.segments)) {
		list = append(list, attach.Segment{Name: name, Bridge: "0a1b2c3d-0000-4000-8000-00000000000f", Index: 1})
	}
	return list
}

func (s *subnetAttacher) Check(_ context.Context, key attach.Key, _ *os.File) error {
	if _, found := s.Lookup(key); !found {
		return attach.ErrNotAttached
	}
	return nil
}

func (s *subnetAttacher) Recover(context.Context) ([]attach.Attachment, error) { return s.List(), nil }
func (*subnetAttacher) Reconcile(context.Context) error                        { return nil }
func (*subnetAttacher) SetMTU(context.Context, int) error                      { return nil }
func (*subnetAttacher) Close() error                                           { return nil }

func (*subnetAttacher) Run(ctx context.Context, _ func(attach.Attachment)) error {
	<-ctx.Done()
	return nil
}

// newSubnetPlane returns a data plane that is up and divides its addresses as
// Windows', and what attaches for it.
func newSubnetPlane(t *testing.T, change func(*Config)) (*Dataplane, *subnetAttacher) {
	t.Helper()
	d, attacher := newPlaneWith(t, change), &subnetAttacher{all: map[string]attach.Attachment{}, segments: map[string]bool{}}
	attacher.under(d)
	if err := d.SetNodes(t.Context(), clusterOfOne()); err != nil {
		t.Fatal(err)
	}
	return d, attacher
}

// under has the data plane take s, as if it ran on Windows.
func (s *subnetAttacher) under(d *Dataplane) {
	d.system = systemOf("windows")
	d.system.newAttacher = func(cfg attach.Config) (attacher, error) { s.cfg = cfg; return s, nil }
}

const (
	oneNamespace   = "0a1b2c3d-1111-4000-8000-000000000000"
	otherNamespace = "0a1b2c3d-2222-4000-8000-000000000000"
)

// in asks for a container in a namespace.
func in(container, namespace string) AttachRequest {
	return AttachRequest{Key: attach.Key{ContainerID: container, IfName: "eth0"}, Namespace: namespace}
}

func usedAddresses(d *Dataplane) int {
	n := 0
	for _, stats := range d.current().addresses.stats() {
		n += stats.Used - 1 // the device's own
	}
	return n
}

func TestSubnetAttach(t *testing.T) {
	d, attacher := newSubnetPlane(t, func(*Config) {})
	if diff := cmp.Diff(attach.HCNConfig{
		State: filepath.Join(d.cfg.StateDir, "hcn.json"), Common: DefaultSegment,
		Subnets: prefixes("10.200.1.0/25", "fd00:200:0:1::/65"),
	}, attacher.cfg.HCN, compareAddrs); diff != "" {
		t.Errorf("HCN is configured otherwise (-want +got):\n%s", diff)
	}
	out, err := exec.Command("ip", "-brief", "address", "show", "dev", deviceName()).CombinedOutput()
	if err != nil || !strings.Contains(string(out), " 10.200.1.129/32 ") || !strings.Contains(string(out), " fd00:200:0:1:8000::1/128 ") || strings.Contains(string(out), "10.200.1.1/") {
		t.Errorf("the device has other addresses: %v\n%s", err, out)
	}
	first, err := d.Attach(t.Context(), in("pod", oneNamespace))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(prefixes("10.200.1.2/25", "fd00:200:0:1::2/65"), first.Prefixes, compareAddrs); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(addrs("10.200.1.1", "fd00:200:0:1::1"), first.Gateways, compareAddrs); diff != "" {
		t.Errorf("gateways (-want +got):\n%s", diff)
	}
	if _, err := d.Attach(t.Context(), AttachRequest{Key: attach.Key{ContainerID: "gateway", IfName: "eth0"}, IPs: addrs("10.200.1.1")}); err == nil {
		t.Error("a sandbox was given the gateway's address")
	}
	if used := usedAddresses(d); used != 2 {
		t.Errorf("%d addresses are used, of one sandbox", used)
	}
	if err := d.Detach(t.Context(), first.Key); err != nil || usedAddresses(d) != 0 {
		t.Errorf("after the detach (%v) %d addresses are used", err, usedAddresses(d))
	}
}

// A second container of a pod gets the answer of the first, and neither an address
// nor a place in its service; its DEL leaves the first alone.
func TestSubnetSecondContainer(t *testing.T) {
	d, _ := newSubnetPlane(t, func(*Config) {})
	web := ServiceRequest{Name: "shop/web"}
	one, two := in("sandbox", oneNamespace), in("app", "{"+strings.ToUpper(oneNamespace)+"}")
	one.Service, two.Service = web, web
	first, err := d.Attach(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		second, err := d.Attach(t.Context(), two)
		if diff := cmp.Diff(first, second, compareAddrs); diff != "" || err != nil {
			t.Fatalf("%v (-first +second):\n%s", err, diff)
		}
	}
	checked, err := d.Check(t.Context(), two.Key, nil, two.Namespace)
	if diff := cmp.Diff(first, checked, compareAddrs); diff != "" || err != nil {
		t.Errorf("check of the second: %v (-first +checked):\n%s", err, diff)
	}
	if _, err := d.Check(t.Context(), two.Key, nil, otherNamespace); !errors.Is(err, attach.ErrNotAttached) {
		t.Errorf("check of a container that is nowhere: %v", err)
	}
	if used, users := usedAddresses(d), d.current().services.users(d.current().services.get(web.Name)); used != 2 || users != 1 {
		t.Errorf("%d addresses and %d sandboxes of the service for one pod", used, users)
	}
	if err := d.Detach(t.Context(), two.Key); err != nil {
		t.Fatal(err)
	}
	if _, found := d.current().attacher.Lookup(one.Key); !found || usedAddresses(d) != 2 {
		t.Error("the second container's DEL took the first's attachment")
	}
	if err := d.Detach(t.Context(), one.Key); err != nil {
		t.Fatal(err)
	}
	if usedAddresses(d) != 0 || d.current().services.get(web.Name) != nil {
		t.Error("something of the pod is left")
	}
}

// A further container needs no free address.
func TestSubnetSecondContainerOfTheLast(t *testing.T) {
	d, attacher := newPlane(t), &subnetAttacher{all: map[string]attach.Attachment{}, segments: map[string]bool{}}
	attacher.under(d)
	set := clusterOfOne()
	set.Nodes[0].Slices = prefixes("10.200.1.0/29") // of which one address is a sandbox's
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	first, err := d.Attach(t.Context(), in("sandbox", oneNamespace))
	if err != nil {
		t.Fatal(err)
	}
	if second, err := d.Attach(t.Context(), in("app", oneNamespace)); err != nil || second.Addrs[0] != first.Addrs[0] {
		t.Errorf("%v, %v", err, second.Addrs)
	}
	if _, err := d.Attach(t.Context(), in("other", otherNamespace)); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("another pod: %v", err)
	}
}

// Two containers of a pod come, or one comes and the other goes, at the same time:
// nobody holds an address that is not his.
func TestSubnetContainersAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		held func(d *Dataplane)
		used int
		err  error
	}{
		{"the first comes meanwhile", func(d *Dataplane) {
			if _, err := d.Attach(t.Context(), in("first", oneNamespace)); err != nil {
				t.Error(err)
			}
		}, 2, nil},
		{"the first goes meanwhile", func(d *Dataplane) {
			if err := d.Detach(t.Context(), in("before", oneNamespace).Key); err != nil {
				t.Error(err)
			}
		}, 0, ErrNotReady},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, attacher := newSubnetPlane(t, func(*Config) {})
			if tt.err != nil {
				if _, err := d.Attach(t.Context(), in("before", oneNamespace)); err != nil {
					t.Fatal(err)
				}
			}
			attacher.held = func() { tt.held(d) }
			request := in("second", oneNamespace)
			if tt.err == nil {
				request.Service.Name = "shop/web"
			}
			if _, err := d.Attach(t.Context(), request); !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if got := usedAddresses(d); got != tt.used || len(d.current().services.names()) > 0 {
				t.Errorf("%d addresses are held, not %d; services: %v", got, tt.used, d.current().services.names())
			}
			if _, found := attacher.Lookup(request.Key); found {
				t.Error("the further container has an attachment of its own")
			}
		})
	}
}

// ZLayer's own detach names a namespace.
func TestDetachNamespace(t *testing.T) {
	d, _ := newSubnetPlane(t, func(*Config) {})
	for _, request := range []AttachRequest{in("a", oneNamespace), in("b", otherNamespace)} {
		if _, err := d.Attach(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	for _, namespace := range []string{strings.ToUpper(oneNamespace), "no namespace", ""} {
		if err := d.DetachNamespace(t.Context(), namespace); err != nil {
			t.Errorf("%q: %v", namespace, err)
		}
	}
	if left := d.current().attacher.List(); len(left) != 1 || left[0].Key.ContainerID != "b" || usedAddresses(d) != 2 {
		t.Errorf("left: %+v", left)
	}
}

// Services share the network of everybody; one of its own would need a routing
// table, and is refused with the reason.
func TestSubnetServices(t *testing.T) {
	d, attacher := newSubnetPlane(t, func(*Config) {})
	own := in("a", oneNamespace)
	own.Service = ServiceRequest{Name: "shop/db", Mode: Dedicated, Reach: Itself}
	for range 2 {
		_, err := d.Attach(t.Context(), own)
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "routing table") {
			t.Errorf("a dedicated service: %v", err)
		}
	}
	if _, err := d.SetupService(t.Context(), own.Service); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("set-up of a dedicated service: %v", err)
	}
	if len(d.current().services.names()) > 0 || usedAddresses(d) != 0 || attacher.segments["shop/db"] {
		t.Error("something is left of it")
	}
	own.Service = ServiceRequest{Name: "shop/db"}
	attached, err := d.Attach(t.Context(), own)
	if err != nil || attached.Segment != "shop/db" || d.current().services.mode("shop/db") != Shared {
		t.Errorf("a shared service: %v, %+v", err, attached)
	}
}

// What could not be attached holds nothing.
func TestSubnetAttachUndone(t *testing.T) {
	d, attacher := newSubnetPlane(t, func(*Config) {})
	attacher.fail = errors.New("HCN is busy")
	request := in("a", oneNamespace)
	request.Service.Name = "shop/web"
	if _, err := d.Attach(t.Context(), request); err == nil || usedAddresses(d) != 0 || len(d.current().services.names()) > 0 {
		t.Errorf("%v; %d addresses are used, services: %v", err, usedAddresses(d), d.current().services.names())
	}
}

// A guest is behind WireGuard, so its address is on no sandbox's link.
func TestSubnetGuest(t *testing.T) {
	d, _ := newSubnetPlane(t, func(*Config) {})
	set := clusterOfOne()
	set.Nodes[0].Endpoint = "192.0.2.1:51820"
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	guest, err := d.AddGuest(t.Context(), "laptop")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(addrs("10.200.1.130", "fd00:200:0:1:8000::2"), guest.Addresses, compareAddrs); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

// A start finds the addresses of sandboxes and guests taken.
func TestSubnetRestart(t *testing.T) {
	d, attacher := newSubnetPlane(t, func(*Config) {})
	web := in("a", oneNamespace)
	web.Service.Name = "shop/web"
	if _, err := d.Attach(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	if err := d.current().close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(d.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(again.current().close(), again.firewall.Close()) })
	attacher.under(again)
	if err := again.SetNodes(t.Context(), clusterOfOne()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"shop/web"}, again.current().services.names()); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
	next, err := again.Attach(t.Context(), in("b", otherNamespace))
	if err != nil || next.Addrs[0] != netip.MustParseAddr("10.200.1.3") {
		t.Errorf("the next sandbox: %v, %v", err, next.Addrs)
	}
}

// Windows' firewall is told what may come in, and of no links and ports.
func TestSubnetRules(t *testing.T) {
	d, _ := newSubnetPlane(t, func(c *Config) {
		c.DNS.Enabled, c.DNS.Ports = true, []int{53, 15353}
		c.Masquerade = true
	})
	parts := d.current()
	parts.nat = NATConfig{Enabled: true, Relay: &RelayConfig{ListenPort: 3478}}
	got := d.rules(parts, []firewall.Pin{{PortIndex: 1}})
	want := firewall.Rules{
		Cluster: prefixes("10.200.0.0/16", "fd00:200::/48"), Own: prefixes("10.200.1.0/24", "fd00:200:0:1::/64"), Masquerade: true,
		Tunnels: []string{deviceName()}, PortGroup: attach.LinkGroup, Ports: []uint16{51820, 3478}, NamePorts: []uint16{53, 15353},
		Subnets: prefixes("10.200.1.0/25", "fd00:200:0:1::/65"),
	}
	if diff := cmp.Diff(want, got, compareAddrs); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	d.cfg.NoMasquerade = prefixes("192.0.2.0/24")
	exceptions := prefixes("10.200.0.0/16", "fd00:200::/48", "10.200.1.0/24", "fd00:200:0:1::/64", "192.0.2.0/24")
	if diff := cmp.Diff(exceptions, d.attachConfig(parts).HCN.NoMasquerade, compareAddrs); diff != "" || d.rules(parts, nil).Masquerade {
		t.Errorf("with exceptions Windows' own NAT is on: %t; those of endpoints (-want +got):\n%s", d.rules(parts, nil).Masquerade, diff)
	}
	if listens := *d.naming.listens.Load(); len(listens) != 4 || listens[0].String() != "10.200.1.1:53" || listens[3].String() != "[fd00:200:0:1::1]:15353" {
		t.Errorf("names are served at %v", listens)
	}
}

// A slice without room for both halves brings nothing up, and says why.
func TestSubnetSliceTooSmall(t *testing.T) {
	d, attacher := newPlane(t), &subnetAttacher{all: map[string]attach.Attachment{}, segments: map[string]bool{}}
	attacher.under(d)
	set := clusterOfOne()
	set.Nodes[0].Slices = prefixes("10.200.1.0/30")
	if err := d.SetNodes(t.Context(), set); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "a /29 has") {
		t.Errorf("error %v", err)
	}
}

// An address that is asked for is taken like any other: it has to be a sandbox's,
// and is nobody else's. The original wrote down neither.
func TestSubnetAddressAskedFor(t *testing.T) {
	d, _ := newSubnetPlane(t, func(*Config) {})
	asking := func(container, namespace, addr string) AttachRequest {
		request := in(container, namespace)
		request.IPs = addrs(addr)
		return request
	}
	if got, err := d.Attach(t.Context(), asking("a", oneNamespace, "10.200.1.2")); err != nil || got.Addrs[0] != netip.MustParseAddr("10.200.1.2") {
		t.Fatalf("%v, %v", err, got.Addrs)
	}
	for _, taken := range []string{"10.200.1.2", "10.200.1.1", "10.200.1.127", "10.200.1.129"} {
		if _, err := d.Attach(t.Context(), asking("b", otherNamespace, taken)); !errors.Is(err, ipam.ErrTaken) {
			t.Errorf("%s, which is taken: %v", taken, err)
		}
	}
	for _, outside := range []string{"10.200.1.0", "10.200.2.9", "10.42.7.9"} {
		if _, err := d.Attach(t.Context(), asking("b", otherNamespace, outside)); !errors.Is(err, ipam.ErrOutside) {
			t.Errorf("%s, which is no sandbox's: %v", outside, err)
		}
	}
	if got, err := d.Attach(t.Context(), in("b", otherNamespace)); err != nil || got.Addrs[0] != netip.MustParseAddr("10.200.1.3") {
		t.Errorf("any address: %v, %v", err, got.Addrs)
	}
}

// brokenFirewall fails to apply rules.
type brokenFirewall struct {
	hostFirewall
	broken   error
	applying func()
}

func (f *brokenFirewall) Apply(ctx context.Context, rules firewall.Rules) (bool, error) {
	if f.applying != nil {
		f.applying()
	}
	if f.broken != nil {
		return false, f.broken
	}
	return f.hostFirewall.Apply(ctx, rules)
}

// A new prefix of the cluster is refused by routes there, whatever becomes of the
// firewall: the device is told first, by which it comes back if it is gone.
func TestSubnetClusterGrows(t *testing.T) {
	d, _ := newSubnetPlane(t, func(*Config) {})
	if out, err := exec.Command("ip", "link", "delete", deviceName()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var told bool
	d.firewall = &brokenFirewall{hostFirewall: d.firewall, broken: errors.New("the firewall is broken"), applying: func() {
		told = exec.Command("ip", "link", "show", deviceName()).Run() == nil
	}}
	set := clusterOfOne()
	set.Cluster = append(set.Cluster, netip.MustParsePrefix("10.201.0.0/16"))
	if err := d.SetNodes(t.Context(), set); !told || err != nil {
		t.Errorf("the device was told before the firewall: %t; error %v", told, err)
	}
}

// What only lets in holds up nothing: the node comes up, says what is wrong, and
// tries again.
func TestSubnetFirewallBroken(t *testing.T) {
	d, attacher := newPlane(t), &subnetAttacher{all: map[string]attach.Attachment{}, segments: map[string]bool{}}
	attacher.under(d)
	broken := &brokenFirewall{hostFirewall: d.firewall, broken: errors.New("the firewall is broken")}
	d.firewall = broken
	if err := d.SetNodes(t.Context(), clusterOfOne()); err != nil {
		t.Fatal(err)
	}
	request := in("pod", oneNamespace)
	if _, err := d.Attach(t.Context(), request); err != nil {
		t.Error(err)
	}
	if _, err := d.Check(t.Context(), request.Key, nil, oneNamespace); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := d.reconcile(t.Context(), d.current()); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"apply firewall: the firewall is broken"}, d.Waiting()); diff != "" {
			t.Errorf("the node waits for (-want +got):\n%s", diff)
		}
	}
	broken.broken = nil
	if err := d.reconcile(t.Context(), d.current()); err != nil || len(d.Waiting()) > 0 {
		t.Errorf("with a firewall that works: %v, waits for %v", err, d.Waiting())
	}
}

// A firewall that drops is another matter: nothing comes up without.
func TestFirewallBroken(t *testing.T) {
	d := newPlane(t)
	broken := &brokenFirewall{hostFirewall: d.firewall, broken: errors.New("the firewall is broken")}
	d.firewall = broken
	if err := d.SetNodes(t.Context(), clusterOfOne()); !errors.Is(err, broken.broken) || d.current() != nil {
		t.Errorf("up without a firewall: %v", err)
	}
}
