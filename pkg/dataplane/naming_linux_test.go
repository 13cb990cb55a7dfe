package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	mdns "github.com/miekg/dns"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// serving configures a data plane that answers questions.
func serving(cfg *Config) {
	cfg.DNS = DNSConfig{Enabled: true, Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}}
}

// servingPods is serving in Kubernetes.
func servingPods(cfg *Config) {
	serving(cfg)
	cfg.DNS.Pods = true
}

// runPlane gives a data plane its nodes and runs it until the test ends.
func runPlane(t *testing.T, d *Dataplane, set NodeSet) {
	t.Helper()
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	runBeside(t, d.Run)
}

// eventually waits until there is nothing wrong any more.
func eventually(t *testing.T, what string, wrong func() error) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(patience); ; <-again.C {
		err := wrong()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// wantListening waits until a data plane listens wherever it is to.
func wantListening(t *testing.T, d *Dataplane) {
	t.Helper()
	eventually(t, "listening", func() error {
		for _, listener := range d.DNSStatus().Listeners {
			if listener.Fault != nil {
				return listener.Fault
			}
		}
		return nil
	})
}

// attachIn attaches a new namespace and returns it.
func attachIn(t *testing.T, d *Dataplane, name string, service ServiceRequest) (*netlab.NS, Attachment) {
	t.Helper()
	ns := netlab.TestNS(t, name)
	file, err := ns.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return ns, mustAttach(t, d, AttachRequest{Key: attach.Key{ContainerID: name, IfName: "eth0"}, Netns: file, Service: service})
}

// ask asks a server from inside a namespace. A zone in its address names a link
// of that namespace.
func ask(ns *netlab.NS, network, server, name string, kind uint16) (*mdns.Msg, error) {
	return askFor(2*time.Second, ns, network, server, name, kind)
}

// askFor is ask with another patience.
func askFor(patience time.Duration, ns *netlab.NS, network, server, name string, kind uint16) (*mdns.Msg, error) {
	addr := netip.MustParseAddrPort(server)
	client := mdns.Client{Net: network, Timeout: patience}
	var conn *mdns.Conn
	if err := ns.Do(func() error {
		if zone := addr.Addr().Zone(); zone != "" { // package net would remember another namespace's index
			link, err := net.InterfaceByName(zone)
			if err != nil {
				return err
			}
			addr = netip.AddrPortFrom(addr.Addr().WithZone(strconv.Itoa(link.Index)), addr.Port())
		}
		var err error
		conn, err = client.Dial(addr.String())
		return err
	}); err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	reply, _, err := client.ExchangeWithConn(new(mdns.Msg).SetQuestion(name, kind), conn)
	return reply, err
}

// waitForLinkLocal waits until a sandbox may send from its link-local address, as it then does to fe80::1.
func waitForLinkLocal(t *testing.T, ns *netlab.NS) {
	t.Helper()
	eventually(t, "link-local address", func() error {
		out, err := ns.Command(t.Context(), "ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link", "-tentative").CombinedOutput()
		if err == nil && len(out) == 0 {
			err = errors.New("it has none")
		}
		return err
	})
}

// answerTo is what a zone answers: the addresses in order, else the code.
func answerTo(d *Dataplane, name string) string {
	var all []netip.Addr
	rcode := 0
	for _, kind := range []uint16{mdns.TypeA, mdns.TypeAAAA} {
		reply, ours := d.naming.zone.Answer(mdns.Question{Name: name, Qtype: kind, Qclass: mdns.ClassINET})
		if !ours {
			return "not ours"
		}
		rcode = reply.Rcode
		all = append(all, addrsOf(reply.Answer)...)
	}
	if rcode != mdns.RcodeSuccess || len(all) == 0 {
		return mdns.RcodeToString[rcode]
	}
	return words(all)
}

func addrsOf(records []mdns.RR) []netip.Addr {
	var all []netip.Addr
	for _, record := range records {
		var addr netip.Addr
		switch r := record.(type) {
		case *mdns.A:
			addr, _ = netip.AddrFromSlice(r.A)
		case *mdns.AAAA:
			addr, _ = netip.AddrFromSlice(r.AAAA)
		}
		all = append(all, addr.Unmap())
	}
	return all
}

// words are addresses in order.
func words(addrs []netip.Addr) string {
	sorted := slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	return strings.Trim(fmt.Sprint(sorted), "[]")
}

// wantAnswers wants what names are answered.
func wantAnswers(t *testing.T, d *Dataplane, when string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for name := range want {
		got[name] = answerTo(d, name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: answers (-want +got)\n%s", when, diff)
	}
}

// TestSandboxesAskEveryListener has sandboxes of every kind ask on all addresses
// and ports, with the strictest reverse path filter.
func TestSandboxesAskEveryListener(t *testing.T) {
	const filter = "/proc/sys/net/ipv4/conf/all/rp_filter"
	before, err := os.ReadFile(filter)
	if err := errors.Join(err, os.WriteFile(filter, []byte("1"), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(filter, before, 0o600) })
	for _, tc := range []struct {
		name    string
		slices  []netip.Prefix
		servers []string
	}{
		{"both families", prefixes("10.200.1.0/24", "fd00:200:0:1::/64"), []string{"10.200.1.1", "fd00:200:0:1::1", "169.254.1.1", "fe80::1%eth0"}},
		{"IPv4 alone", prefixes("10.200.1.0/24"), []string{"10.200.1.1", "169.254.1.1"}},
		{"IPv6 alone", prefixes("fd00:200:0:1::/64"), []string{"fd00:200:0:1::1", "fe80::1%eth0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newPlaneWith(t, serving)
			set := clusterOfOne()
			set.Nodes[0].Slices = tc.slices
			runPlane(t, d, set)
			if err := d.RegisterName("hello", nodeAddress(tc.slices[0])); err != nil {
				t.Fatal(err)
			}
			kind := mdns.TypeA
			if tc.slices[0].Addr().Is6() {
				kind = mdns.TypeAAAA
			}
			for _, pod := range []struct {
				name    string
				service ServiceRequest
				closed  bool
			}{
				{"plain", ServiceRequest{}, false},
				{"shared", ServiceRequest{Name: "shop/web"}, false},
				{"joined", ServiceRequest{Name: "shop/db", Mode: Dedicated, Reach: All}, false},
				{"cut-off", ServiceRequest{Name: "bank/ledger", Mode: Dedicated, Reach: Itself}, true},
			} {
				ns, _ := attachIn(t, d, pod.name, pod.service)
				wantListening(t, d)
				if slices.ContainsFunc(tc.slices, func(s netip.Prefix) bool { return s.Addr().Is6() }) {
					waitForLinkLocal(t, ns)
				}
				for _, server := range tc.servers {
					for _, port := range []int{DNSPort, HighDNSPort} {
						for _, network := range []string{"udp", "tcp"} {
							at := netip.AddrPortFrom(netip.MustParseAddr(server), uint16(port)).String()
							if pod.closed {
								if reply, err := askFor(300*time.Millisecond, ns, network, at, "hello.overlay.local.", kind); err == nil {
									t.Errorf("a %s sandbox is answered by %s at %s: %v", pod.name, network, at, reply)
								}
								break
							}
							reply, err := ask(ns, network, at, "hello.overlay.local.", kind)
							if err != nil || len(reply.Answer) != 1 {
								t.Errorf("a %s sandbox asks by %s at %s: %v, %v", pod.name, network, at, reply, err)
							}
						}
					}
				}
			}
		})
	}
}

func TestSandboxesHaveTheirServicesNames(t *testing.T) {
	d := newPlaneWith(t, serving)
	runPlane(t, d, clusterOfOne())
	web, shop, long := "web.overlay.local.", "web.shop.svc.overlay.local.", strings.Repeat("l", 60)+"."+strings.Repeat("n", 60)+".svc.overlay.local."
	none := map[string]string{web: "NXDOMAIN", shop: "NXDOMAIN", long: "NXDOMAIN", "default.overlay.local.": "NXDOMAIN"}
	wantAnswers(t, d, "without sandboxes", none)
	_, one := attachIn(t, d, "one", ServiceRequest{Name: "shop/web"})
	_, two := attachIn(t, d, "two", ServiceRequest{Name: "shop/web"})
	_, three := attachIn(t, d, "three", ServiceRequest{Name: "web", Mode: Dedicated, Reach: All})
	_, four := attachIn(t, d, "four", ServiceRequest{Name: strings.Repeat("n", 60) + "/" + strings.Repeat("l", 60)})
	attachIn(t, d, "five", ServiceRequest{Name: "shop/not.one.label"})
	attachIn(t, d, "six", ServiceRequest{})
	all := map[string]string{
		web: words(three.Addrs), shop: words(slices.Concat(one.Addrs, two.Addrs)), long: words(four.Addrs),
		"default.overlay.local.": "NXDOMAIN", "not.one.label.shop.svc.overlay.local.": "NXDOMAIN", "svc.overlay.local.": "NOERROR",
	}
	wantAnswers(t, d, "attached", all)

	// What was attached has its names again before anybody is attached anew.
	if err := errors.Join(d.Detach(t.Context(), one.Key), d.Detach(t.Context(), four.Key)); err != nil {
		t.Fatal(err)
	}
	all[shop], all[long] = words(two.Addrs), "NXDOMAIN"
	wantAnswers(t, d, "two are gone", all)
	if err := errors.Join(d.Detach(t.Context(), two.Key), d.Detach(t.Context(), three.Key)); err != nil {
		t.Fatal(err)
	}
	none["svc.overlay.local."] = "NXDOMAIN"
	wantAnswers(t, d, "all are gone", none)
}

// TestARestartKeepsTheNames is about daemons that forgot their names with every
// restart: those of sandboxes, guests and whatever was registered.
func TestARestartKeepsTheNames(t *testing.T) {
	d := newPlaneWith(t, serving)
	set := reachable()
	set.Nodes = append(set.Nodes, clusterOfTwo(t).Nodes[1])
	set.Guests = []NodeGuest{{Node: "two", Name: "vm", Addrs: addrs("10.200.2.77")}}
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	longName := strings.Repeat("n", 60) + "/" + strings.Repeat("l", 60)
	_, web := attachIn(t, d, "web", ServiceRequest{Name: "shop/web"})
	_, long := attachIn(t, d, "long", ServiceRequest{Name: longName})
	_, db := attachIn(t, d, "db", ServiceRequest{Name: "db", Mode: Dedicated, Reach: All})
	laptop := mustAddGuest(t, d, "laptop")
	if err := d.RegisterName("api", web.Addrs[0]); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"web.shop.svc.overlay.local.": words(web.Addrs), "db.overlay.local.": words(db.Addrs), "api.overlay.local.": web.Addrs[0].String(),
		strings.Repeat("l", 60) + "." + strings.Repeat("n", 60) + ".svc.overlay.local.": words(long.Addrs),
		"laptop.guest.overlay.local.": words(laptop.Addresses), "vm.guest.overlay.local.": "10.200.2.77",
		"one.node.overlay.local.": "10.200.1.1 fd00:200:0:1::1", "two.node.overlay.local.": "10.200.2.1 fd00:200:0:2::1",
		"unknown.overlay.local.": "NXDOMAIN",
	}
	wantAnswers(t, d, "before", want)
	d = restartWith(t, d, set)
	wantAnswers(t, d, "after a restart", want)
	if waiting := d.DNSStatus().Waiting; len(waiting) > 0 {
		t.Errorf("it waits for %v", waiting)
	}
}

// TestNoNameIsDeniedBeforeAllIsKnown has the sources of names come one after the other.
func TestNoNameIsDeniedBeforeAllIsKnown(t *testing.T) {
	d := newPlaneWith(t, servingPods)
	want := func(when, unknown string, waiting ...string) {
		t.Helper()
		wantAnswers(t, d, when, map[string]string{"unknown.overlay.local.": unknown, "gone.shop.svc.overlay.local.": unknown})
		if diff := cmp.Diff(waiting, d.DNSStatus().Waiting, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: waits for (-want +got)\n%s", when, diff)
		}
	}
	want("at the start", "SERVFAIL", sourceAttachments, sourceGuests, sourceNodes, sourcePods)
	set := clusterOfOne()
	set.Nodes[0].Slices = nil
	if err := d.SetNodes(t.Context(), set); !errors.Is(err, ErrNotReady) {
		t.Fatal(err)
	}
	want("without a slice", "SERVFAIL", sourceAttachments, sourceGuests, sourcePods)
	if err := d.SetNodes(t.Context(), clusterOfOne()); err != nil {
		t.Fatal(err)
	}
	want("up, without an API server", "SERVFAIL", sourcePods)
	wantAnswers(t, d, "up, without an API server", map[string]string{"one.node.overlay.local.": "10.200.1.1 fd00:200:0:1::1"})
	d.SetPods(nil)
	want("with pods", "NXDOMAIN")
	d = restart(t, d)
	want("after a restart", "SERVFAIL", sourcePods)
}

// TestPodsHaveNames has pods of this node and of others, with what a cluster's
// objects may say wrongly.
func TestPodsHaveNames(t *testing.T) {
	d := newPlaneWith(t, servingPods)
	set := clusterOfTwo(t)
	pods := []ServicePod{
		podAt("far-1", "1", "10.200.2.7", "fd00:200:0:2::7"), podAt("far-2", "2", "10.200.2.8"),
		podAt("host-network", "3", "192.0.2.2"), podAt("elsewhere", "4", "10.200.1.9", "10.200.3.9"), podAt("far.dots", "5", "10.200.2.9"),
		{Namespace: "prod", Name: "unknown", Service: "web", Node: "three", Addrs: addrs("10.200.3.3"), Ready: true},
		{Namespace: "prod", Name: "odd", Service: "not.one.label", Node: "two", Addrs: addrs("10.200.2.10"), Ready: true},
	}
	pods[1].Ready = false
	d.SetPods(pods)
	web := "web.prod.svc.overlay.local."
	wantAnswers(t, d, "before the nodes are known", map[string]string{web: "SERVFAIL"})
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, d, "pods of another node", map[string]string{
		web: "10.200.2.7 10.200.2.9 fd00:200:0:2::7", "far-1." + web: "10.200.2.7 fd00:200:0:2::7", "far-2." + web: "10.200.2.8",
		"host-network." + web: "NXDOMAIN", "elsewhere." + web: "NXDOMAIN", "unknown." + web: "NXDOMAIN", "far.dots." + web: "NXDOMAIN",
	})

	// What a node says wrongly of its own pods takes nothing from those of others.
	far := map[string]string{web: "10.200.2.7 10.200.2.9 fd00:200:0:2::7", "far-1." + web: "10.200.2.7 fd00:200:0:2::7", "thief." + web: "NXDOMAIN"}
	for _, node := range []string{"one", "three", ""} {
		d.SetPods(append(slices.Clone(pods), ServicePod{Namespace: "prod", Name: "thief", Service: "web", Node: node, UID: "8", Addrs: pods[0].Addrs, Ready: true}))
		wantAnswers(t, d, "with a thief at node "+node, far)
	}

	_, near := attachIn(t, d, "near", ServiceRequest{Name: "prod/web"})
	wantAnswers(t, d, "attached, but no pod yet", map[string]string{web: "10.200.2.7 10.200.2.9 fd00:200:0:2::7"})
	here := ServicePod{Namespace: "prod", Name: "near", Service: "web", Node: "one", UID: "6", Addrs: near.Addrs}
	nowhere := ServicePod{Namespace: "prod", Name: "nowhere", Service: "web", Node: "one", UID: "7", Addrs: addrs("10.200.1.200"), Ready: true}
	d.SetPods([]ServicePod{pods[1], here, nowhere})
	wantAnswers(t, d, "none ready", map[string]string{web: "NOERROR", "near." + web: words(near.Addrs), "nowhere." + web: "NXDOMAIN", "far-1." + web: "NXDOMAIN"})
	here.Ready = true
	d.SetPods([]ServicePod{here, nowhere})
	wantAnswers(t, d, "one ready", map[string]string{web: words(near.Addrs), "near." + web: words(near.Addrs)})
}

// TestAReusedAddressHasNoOldName is about pods that are gone while Kubernetes still
// tells of them: whoever gets their address must not be found under their name.
func TestAReusedAddressHasNoOldName(t *testing.T) {
	d := newPlaneWith(t, servingPods)
	set := clusterOfOne()
	set.Nodes[0].Slices = prefixes("10.200.1.0/30") // one address for sandboxes
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	web, db := "old.web.prod.svc.overlay.local.", "young.db.prod.svc.overlay.local."
	_, first := attachIn(t, d, "first", ServiceRequest{Name: "prod/web"})
	old := ServicePod{Namespace: "prod", Name: "old", Service: "web", Node: "one", UID: "1", Addrs: first.Addrs, Ready: true}
	young := ServicePod{Namespace: "prod", Name: "young", Service: "db", Node: "one", UID: "2", Addrs: first.Addrs, Ready: true}
	d.SetPods([]ServicePod{old})
	has, gone := first.Addrs[0].String(), "NXDOMAIN"
	wantAnswers(t, d, "attached", map[string]string{web: has, "web.prod.svc.overlay.local.": has})
	if err := d.Detach(t.Context(), first.Key); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, d, "detached", map[string]string{web: gone, "web.prod.svc.overlay.local.": gone})
	_, second := attachIn(t, d, "second", ServiceRequest{Name: "prod/db"})
	if second.Addrs[0] != first.Addrs[0] {
		t.Fatalf("the second sandbox has %v, the first had %v", second.Addrs, first.Addrs)
	}
	wantAnswers(t, d, "given out again", map[string]string{web: gone})
	d.SetPods([]ServicePod{old})
	wantAnswers(t, d, "told of again", map[string]string{web: gone, "web.prod.svc.overlay.local.": gone})
	d.SetPods([]ServicePod{old, young})
	wantAnswers(t, d, "with its new pod", map[string]string{web: gone, db: has})
	d.SetPods([]ServicePod{young})
	wantAnswers(t, d, "without the old one", map[string]string{web: gone, db: has})
}

// TestAPodThatIsToldOfLate has Kubernetes tell of a pod's address when its sandbox
// is gone already: nobody else may be found under its names.
func TestAPodThatIsToldOfLate(t *testing.T) {
	set := clusterOfOne()
	set.Nodes[0].Slices = prefixes("10.200.1.0/30") // one address for sandboxes
	const web, db = "web.prod.svc.overlay.local.", "db.prod.svc.overlay.local."
	for _, tc := range []struct {
		name, next string // the service that gets the address
		steps      string // "u" is up, "r" restarts, "t" is told of the pod that had it, "a" attaches the next
	}{
		{"and then another service has it", "prod/db", "uta"},
		{"and then the same service has it", "prod/web", "uta"},
		{"when another service has it", "prod/db", "uat"},
		{"before the node is up", "prod/web", "tua"},
		{"after a restart", "prod/db", "uatrt"},
		{"when nobody is of a service", "", "uat"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newPlaneWith(t, servingPods)
			old := ServicePod{Namespace: "prod", Name: "old", Service: "web", Node: "one", UID: "1", Addrs: addrs("10.200.1.2"), Ready: true}
			for _, step := range tc.steps {
				switch step {
				case 'u':
					if err := d.SetNodes(t.Context(), set); err != nil {
						t.Fatal(err)
					}
				case 'r':
					d = restartWith(t, d, set)
				case 't':
					d.SetPods([]ServicePod{old})
				case 'a':
					if _, attached := attachIn(t, d, "next", ServiceRequest{Name: tc.next}); attached.Addrs[0] != old.Addrs[0] {
						t.Fatalf("it has %v", attached.Addrs)
					}
				}
			}
			wantAnswers(t, d, "told of late", map[string]string{web: "NXDOMAIN", "old." + web: "NXDOMAIN"})
			young := ServicePod{Namespace: "prod", Name: "young", Service: "db", Node: "one", UID: "2", Addrs: old.Addrs, Ready: true}
			if tc.next != "prod/db" {
				return
			}
			d.SetPods([]ServicePod{old, young})
			wantAnswers(t, d, "with its pod", map[string]string{web: "NXDOMAIN", db: "10.200.1.2", "young." + db: "10.200.1.2"})
		})
	}
}

// TestANamespaceThatVanishesTakesItsNames is about sandboxes that go without a DEL.
// Their names go with the event, not with the next look at everything.
func TestANamespaceThatVanishesTakesItsNames(t *testing.T) {
	d := newPlaneWith(t, serving)
	runPlane(t, d, clusterOfOne())
	_, web := attachIn(t, d, "web", ServiceRequest{Name: "shop/web"})
	wantAnswers(t, d, "attached", map[string]string{"web.shop.svc.overlay.local.": words(web.Addrs)})
	ip(t, "link", "del", web.Port)
	start := time.Now()
	eventually(t, "the name goes", func() error {
		if got := answerTo(d, "web.shop.svc.overlay.local."); got != "NXDOMAIN" {
			return errors.New(got)
		}
		return nil
	})
	if took := time.Since(start); took > resyncInterval*2/3 {
		t.Errorf("the name went after %v", took)
	}
}

// TestNodesAndGuestsThatShareAName is about nodes that were named by a few bits of
// their address: here only equal names collide, and the older node's stays.
func TestNodesAndGuestsThatShareAName(t *testing.T) {
	d := newPlaneWith(t, serving)
	set := clusterOfTwo(t)
	for i, name := range []string{"TWO", "node.with.dots", "node_with spaces"} {
		other := clusterOfTwo(t).Nodes[1]
		other.Name, other.Slices = name, prefixes(fmt.Sprintf("10.200.%d.0/24", 3+i))
		set.Nodes = append(set.Nodes, other)
	}
	refused := set.Nodes[1]
	refused.Name = "refused"
	set.Nodes = append(set.Nodes, refused)
	set.Guests = []NodeGuest{
		{"two", "vm", addrs("10.200.2.77", "10.200.1.77")}, {"node.with.dots", "VM", addrs("10.200.4.77")}, {"refused", "ghost", addrs("10.200.2.78")},
		{"two", "build.server", addrs("fd00:200:0:2::78")}, {"two", "two words", addrs("10.200.2.79")}, {"one", "forged", addrs("10.200.1.80")},
		{"unknown", "ghost", addrs("10.200.9.1")}, {"two", "outside", addrs("10.200.4.78")},
	}
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	node, guest := ".node.overlay.local.", ".guest.overlay.local."
	wantAnswers(t, d, "all", map[string]string{
		"one" + node: "10.200.1.1 fd00:200:0:1::1", "two" + node: "10.200.2.1 fd00:200:0:2::1", "node.with.dots" + node: "10.200.4.1", "refused" + node: "NXDOMAIN",
		"vm" + guest: "10.200.2.77", "build.server" + guest: "fd00:200:0:2::78", "forged" + guest: "NXDOMAIN", "ghost" + guest: "NXDOMAIN", "outside" + guest: "NXDOMAIN",
	})
	want := []string{
		"guest VM of node node.with.dots has no name: a guest of node two has the name",
		"guest outside of node two lacks addresses: [10.200.4.78] are not of the node's slices",
		"guest two words of node two has no name: ' ' is no letter, digit or hyphen: it is no name",
		"guest vm of node two lacks addresses: [10.200.1.77] are not of the node's slices",
		"node TWO has no name: node two has the name",
		"node node_with spaces has no name: ' ' is no letter, digit or hyphen: it is no name",
	}
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(d.DNSStatus().Problems))); diff != "" {
		t.Errorf("problems (-want +got)\n%s", diff)
	}
	set.Nodes, set.Guests = slices.Delete(set.Nodes, 1, 2), nil
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, d, "without the older", map[string]string{"two" + node: "10.200.3.1", "vm" + guest: "NXDOMAIN", "refused" + node: "10.200.2.1 fd00:200:0:2::1"})
}

// TestAnEndpointChangesNoName has nodes change in what no name follows from, while
// somebody else tells names: it waits for nobody, and has nothing to do.
func TestAnEndpointChangesNoName(t *testing.T) {
	d := newPlaneWith(t, servingPods)
	set := clusterOfTwo(t)
	set.Guests = []NodeGuest{{"two", "vm", addrs("10.200.2.77")}, {"two", "outside", addrs("10.200.4.78")}}
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	d.SetPods([]ServicePod{podAt("far", "1", "10.200.2.7")})
	set.Nodes[1].Endpoint = "192.0.2.7:51820"
	set.Nodes = append(set.Nodes, set.Nodes[1])
	set.Nodes[2].Name = "refused"
	ended := make(chan error)
	d.naming.mu.Lock()
	go func() { ended <- d.SetNodes(t.Context(), set) }()
	var err error
	select {
	case err = <-ended:
		d.naming.mu.Unlock()
	case <-time.After(patience):
		d.naming.mu.Unlock()
		err = errors.Join(errors.New("it waits"), <-ended)
	}
	if err != nil {
		t.Error(err)
	}
	web := "web.prod.svc.overlay.local."
	wantAnswers(t, d, "with another endpoint", map[string]string{web: "10.200.2.7", "vm.guest.overlay.local.": "10.200.2.77"})
	set.Nodes[1].Slices = prefixes("10.200.3.0/24")
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, d, "with another slice", map[string]string{web: "NXDOMAIN", "vm.guest.overlay.local.": "NXDOMAIN", "two.node.overlay.local.": "10.200.3.1"})
}

// TestGuestsAreToldOf has guests come and go on this node.
func TestGuestsAreToldOf(t *testing.T) {
	told := 0
	d := newPlaneWith(t, func(cfg *Config) {
		serving(cfg)
		cfg.OnGuests = func() { told++ }
	})
	if err := d.SetNodes(t.Context(), reachable()); err != nil {
		t.Fatal(err)
	}
	before := told
	laptop := mustAddGuest(t, d, "laptop")
	want := []NodeGuest{{Node: "one", Name: "laptop", Addrs: laptop.Addresses}}
	if diff := cmp.Diff(want, d.LocalGuests(), compareAddrs); diff != "" || told != before+1 {
		t.Errorf("told %d times, local guests (-want +got)\n%s", told-before, diff)
	}
	mustAddGuest(t, d, "two words")
	if diff := cmp.Diff(want, d.LocalGuests(), compareAddrs); diff != "" {
		t.Errorf("with one that has no name, local guests (-want +got)\n%s", diff)
	}
	if told := d.DNSStatus().Problems; len(told) != 1 || !strings.Contains(told[0], "two words") {
		t.Errorf("problems: %v", told)
	}
	if err := d.RemoveGuest(t.Context(), "two words"); err != nil {
		t.Fatal(err)
	}
	before += 2
	name := "laptop.guest.overlay.local."
	wantAnswers(t, d, "added", map[string]string{name: words(laptop.Addresses)})
	if err := d.RemoveGuest(t.Context(), "laptop"); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, d, "removed", map[string]string{name: "NXDOMAIN"})
	if len(d.LocalGuests()) > 0 || told != before+2 {
		t.Errorf("told %d times, local guests %v", told-before, d.LocalGuests())
	}
}

// TestRegisteredNamesAreServed is about registrations that nobody served, and
// about a name that went with one of its addresses.
func TestRegisteredNamesAreServed(t *testing.T) {
	d := newPlaneWith(t, serving)
	register := func(name, addr string) {
		t.Helper()
		if err := d.RegisterName(name, netip.MustParseAddr(addr)); err != nil {
			t.Error(err)
		}
	}
	register("Web", "10.200.1.7")
	runPlane(t, d, clusterOfOne())
	register("web.overlay.local.", "10.200.1.8")
	register("web.service.local.", "10.200.1.7")
	register("replica.web", "fd00:200:0:1::7")
	wantAnswers(t, d, "registered", map[string]string{
		"web.overlay.local.": "10.200.1.7 10.200.1.8", "WEB.overlay.LOCAL.": "10.200.1.7 10.200.1.8", "web.service.local.": "10.200.1.7",
		"replica.web.overlay.local.": "fd00:200:0:1::7", "web.service.local.overlay.local.": "NXDOMAIN", "unknown.overlay.local.": "NXDOMAIN",
	})
	_, web := attachIn(t, d, "web", ServiceRequest{Name: "web"})
	wantAnswers(t, d, "with a sandbox", map[string]string{"web.overlay.local.": words(append(addrs("10.200.1.7", "10.200.1.8"), web.Addrs...))})
	if err := d.Detach(t.Context(), web.Key); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, d, "without it", map[string]string{"web.overlay.local.": "10.200.1.7 10.200.1.8"})
	if err := d.UnregisterName("web"); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, d, "unregistered", map[string]string{"web.overlay.local.": "NOERROR", "replica.web.overlay.local.": "fd00:200:0:1::7", "web.service.local.": "10.200.1.7"})
}

// TestAListenerThatCannotBeHad has another program hold an address and port.
func TestAListenerThatCannotBeHad(t *testing.T) {
	d := newPlaneWith(t, serving)
	if err := d.SetNodes(t.Context(), clusterOfOne()); err != nil {
		t.Fatal(err)
	}
	other, err := net.ListenPacket("udp4", "10.200.1.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	runBeside(t, d.Run)
	eventually(t, "one fault", func() error {
		if faults := d.DNSFaults(); len(faults) != 1 || !strings.Contains(faults[0], "10.200.1.1:53") {
			return errors.New(strings.Join(faults, "\n"))
		}
		return nil
	})
	ns, _ := attachIn(t, d, "pod", ServiceRequest{}) // no ADD waits for it
	if _, err := ask(ns, "udp", "169.254.1.1:53", "one.node.overlay.local.", mdns.TypeA); err != nil {
		t.Errorf("beside the fault: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	wantListening(t, d)
	if faults := d.DNSFaults(); len(faults) > 0 {
		t.Errorf("faults are left: %v", faults)
	}
	if _, err := ask(ns, "udp", "10.200.1.1:53", "one.node.overlay.local.", mdns.TypeA); err != nil {
		t.Errorf("after the fault: %v", err)
	}
}

// TestListenersFollowSegments has services come and go, each with a bridge.
func TestListenersFollowSegments(t *testing.T) {
	d := newPlaneWith(t, serving)
	runPlane(t, d, clusterOfOne())
	links := func() []string {
		var all []string
		for _, listener := range d.DNSStatus().Listeners {
			if zone := listener.Addr.Addr().Zone(); zone != "" && listener.Addr.Port() == DNSPort {
				all = append(all, zone)
			}
		}
		slices.Sort(all)
		return all
	}
	bridges := func() []string {
		var all []string
		for _, segment := range d.current().attacher.Segments() {
			all = append(all, segment.Bridge)
		}
		slices.Sort(all)
		return all
	}
	for _, step := range []struct {
		name string
		do   func()
		want int
	}{
		{"at the start", func() {}, 1},
		{"a service", func() { attachIn(t, d, "web", ServiceRequest{Name: "shop/web"}) }, 2},
		{"another", func() { attachIn(t, d, "db", ServiceRequest{Name: "shop/db", Mode: Dedicated, Reach: All}) }, 3},
		{"one is gone", func() {
			if err := d.Detach(t.Context(), attach.Key{ContainerID: "web", IfName: "eth0"}); err != nil {
				t.Fatal(err)
			}
		}, 2},
	} {
		step.do()
		if diff := cmp.Diff(bridges(), links()); diff != "" || len(links()) != step.want {
			t.Errorf("%s: listens on %v (-want +got)\n%s", step.name, links(), diff)
		}
	}
	wantListening(t, d)
}

// TestNobodyListensWithoutDNS has names known and not served.
func TestNobodyListensWithoutDNS(t *testing.T) {
	d := newPlane(t)
	runPlane(t, d, clusterOfOne())
	if err := d.RegisterName("web", netip.MustParseAddr("10.200.1.7")); err != nil {
		t.Fatal(err)
	}
	ns, _ := attachIn(t, d, "pod", ServiceRequest{})
	if reply, err := askFor(300*time.Millisecond, ns, "udp", "169.254.1.1:53", "web.overlay.local.", mdns.TypeA); err == nil {
		t.Errorf("answered: %v", reply)
	}
	status := d.DNSStatus()
	if status.Enabled || len(status.Listeners) > 0 || len(d.DNSFaults()) > 0 || status.Names != 3 {
		t.Errorf("status: %+v, faults %v", status, d.DNSFaults())
	}
}

func TestAZoneThatIsNone(t *testing.T) {
	_, err := New(Config{Node: "one", StateDir: t.TempDir(), DNS: DNSConfig{Zone: "a..b"}, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "a..b") {
		t.Errorf("error %v", err)
	}
}
