package dataplane

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// podAt is a pod of the service "web" on node "two".
func podAt(name, uid string, texts ...string) ServicePod {
	return ServicePod{Namespace: "prod", Name: name, Service: "web", Node: "two", UID: uid, Addrs: addrs(texts...), Ready: true}
}

// TestAnAddressThatSeveralPodsClaim is about pods that Kubernetes still tells of
// when another has their address already.
func TestAnAddressThatSeveralPodsClaim(t *testing.T) {
	old, young := podAt("old", "1", "10.200.2.7"), podAt("young", "2", "10.200.2.7")
	again := podAt("old", "3", "10.200.2.7")
	hasLeft := func(ServicePod, netip.Addr) bool { return false }
	for _, tc := range []struct {
		name string
		sets [][]ServicePod
		want string
	}{
		{"one", [][]ServicePod{{old}}, "1"},
		{"the same twice", [][]ServicePod{{old, old}}, "1"},
		{"a second came", [][]ServicePod{{old}, {old, young}}, "2"},
		{"in another order", [][]ServicePod{{old}, {young, old}}, "2"},
		{"and stays", [][]ServicePod{{old}, {old, young}, {old, young}, {young, old}}, "2"},
		{"until the first is gone", [][]ServicePod{{old}, {old, young}, {young}}, "2"},
		{"a third came", [][]ServicePod{{old}, {old, young}, {old, young, again}}, "3"},
		{"two at once", [][]ServicePod{{old, young}}, ""},
		{"two at once, again and again", [][]ServicePod{{old, young}, {old, young}}, ""},
		{"two at once, one of them gone", [][]ServicePod{{old, young}, {young}}, "2"},
		{"the same name anew", [][]ServicePod{{old}, {again}}, "3"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var table podTable
			for _, set := range tc.sets {
				table.change(table.compare(set), hasLeft)
			}
			holder := ""
			for key := range table.all {
				if table.holds(key, old.Addrs[0]) {
					holder += key.uid
				}
			}
			if holder != tc.want {
				t.Errorf("pod %q has the address, want %q", holder, tc.want)
			}
		})
	}
}

// TestAnAddressThatWasGivenBack is about a pod of this node whose sandbox is gone:
// whatever Kubernetes says, its address is nobody's until another pod claims it.
func TestAnAddressThatWasGivenBack(t *testing.T) {
	addr := netip.MustParseAddr("10.200.2.7")
	old, young := podAt("old", "1", "10.200.2.7"), podAt("young", "2", "10.200.2.7")
	var table podTable
	hasLeft := func(ServicePod, netip.Addr) bool { return false }
	set := func(pods ...ServicePod) { table.change(table.compare(pods), hasLeft) }
	set(old)
	table.leave("one", addr)
	if !table.holds(podKey{"prod", "old", "1"}, addr) {
		t.Error("another node's pod lost its address")
	}
	table.leave("two", addr)
	for _, pods := range [][]ServicePod{{old}, {old, young}, {old, young}} {
		if table.holds(podKey{"prod", "old", "1"}, addr) {
			t.Error("it has its address again")
		}
		set(pods...)
	}
	if !table.holds(podKey{"prod", "young", "2"}, addr) {
		t.Error("the pod that has it now is not known to")
	}
	set(young)
	set(old)
	if !table.holds(podKey{"prod", "old", "1"}, addr) {
		t.Error("what was given back once is remembered forever")
	}
}

// TestOnePodOfManyCostsLittle changes one of 10,000 pods. What it allocates is what
// it does, however loaded the machine is.
func TestOnePodOfManyCostsLittle(t *testing.T) {
	n, err := newNaming("one", DNSConfig{Pods: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n.places = placesOf("one", prefixes("10.200.0.0/24"), []Node{{Name: "two"}}, []wireguard.Peer{{Node: "two", AllowedIPs: prefixes("10.201.0.0/16")}})
	d := &Dataplane{naming: n}
	pods := make([]ServicePod, 10000)
	for i := range pods {
		pods[i] = podAt(fmt.Sprintf("web-%d", i), "", fmt.Sprintf("10.201.%d.%d", i/250, i%250))
		pods[i].Service = fmt.Sprintf("web-%d", i/10)
	}
	d.SetPods(pods)
	web := "web-500.prod.svc.overlay.local."
	before := answerTo(d, web)
	allocs := testing.AllocsPerRun(10, func() {
		pods[5000].Ready = !pods[5000].Ready
		d.SetPods(pods)
	})
	t.Logf("%v allocations", allocs)
	if allocs > 200 {
		t.Errorf("%v allocations for one changed pod", allocs)
	}
	if after := answerTo(d, web); after == before || len(n.pods.all) != len(pods) {
		t.Errorf("the pod was not ready in the end, and is answered: %s", after)
	}
}

func TestPlaces(t *testing.T) {
	set := clusterOfTwo(t)
	peers, problems := wireguard.Plan(wireguard.PlanInput{Self: "one", Nodes: set.Nodes})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p := placesOf("one", set.Nodes[0].Slices, set.Nodes, append(peers, wireguard.Peer{Node: "added by an agent", AllowedIPs: prefixes("10.200.3.0/24")}))
	got := map[string]string{}
	for _, addr := range []string{"10.200.1.0", "10.200.1.255", "10.200.2.7", "10.200.0.255", "10.200.3.0", "fd00:200:0:2::7", "fd00:200:0:3::", "::", "0.0.0.0", "ffff::"} {
		got[addr] = p.nodeOf(netip.MustParseAddr(addr))
	}
	want := map[string]string{
		"10.200.1.0": "one", "10.200.1.255": "one", "10.200.2.7": "two", "10.200.0.255": "", "10.200.3.0": "added by an agent",
		"fd00:200:0:2::7": "two", "fd00:200:0:3::": "", "::": "", "0.0.0.0": "", "ffff::": "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nodes of addresses (-want +got)\n%s", diff)
	}
	if added := netip.MustParseAddr("10.200.3.7"); p.has("added by an agent", added) {
		t.Error("the added peer is a node whose pods have names")
	}
}
