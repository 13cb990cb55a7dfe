package kube

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/test/apiserver"
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{})

func TestNodesBecomeTheSet(t *testing.T) {
	l := newLab(t)
	peer := peerObject("b", "10.244.1.0/24", "fd00:10:244:1::/64")
	annotate(peer, ForceEndpoint, "gate.example:4000", Keepalive, "25s")
	l.Create("nodes", peer)
	l.Create("nodes", nodeObject("joining", "10.244.2.0/24"))
	l.Create("nodes", peerObject("without-slice"))
	l.start()
	l.plane.hasPeers(t, "b")
	want := dataplane.NodeSet{
		Cluster: prefixes("10.244.0.0/16", "fd00:10:244::/48"),
		Nodes: []dataplane.Node{
			{Name: "self", PublicKey: keyFor("self"), Endpoint: "192.0.2.1:51820", Slices: prefixes("10.244.0.0/24", "fd00:10:244::/64")},
			{
				Name: "b", PublicKey: keyFor("b"), Endpoint: "gate.example:4000", Keepalive: 25 * time.Second,
				Slices: prefixes("10.244.1.0/24", "fd00:10:244:1::/64"),
			},
		},
	}
	if diff := cmp.Diff(want, l.plane.last(), comparePrefixes); diff != "" {
		t.Errorf("node set (-want +got):\n%s", diff)
	}
	l.hasFault("")
	l.inForce()
	eventually(t, func() error { // what it published itself is no news
		for _, m := range l.kube.nodes.List() {
			if m.name == "self" && m.endpoint != "" {
				return nil
			}
		}
		return errors.New("the own annotations have not come back")
	})
	l.Edit("nodes", "", "b", func(o apiserver.Object) { annotate(o, Endpoint, "192.0.2.8:51820") }) // force-endpoint counts
	l.Create("nodes", peerObject("c", "10.244.3.0/24"))
	l.plane.hasPeers(t, "b", "c")
	if got := l.plane.count(); got != 2 {
		t.Errorf("%d sets for two states of the cluster", got)
	}
}

func TestNodesComeAndGo(t *testing.T) {
	l := newLab(t)
	l.start()
	l.plane.hasPeers(t)
	l.Create("nodes", peerObject("b", "10.244.1.0/24"))
	l.plane.hasPeers(t, "b")
	l.Create("nodes", nodeObject("c", "10.244.2.0/24"))
	l.Edit("nodes", "", "c", func(o apiserver.Object) { annotate(o, PublicKey, keyFor("c"), Endpoint, "192.0.2.7:51820") })
	l.plane.hasPeers(t, "b", "c")
	l.Delete("nodes", "", "b")
	l.plane.hasPeers(t, "c")

	// The same name again, with another key and slice.
	again := peerObject("b", "10.244.9.0/24")
	annotate(again, PublicKey, keyFor("b again"))
	l.Create("nodes", again)
	l.plane.hasPeers(t, "b", "c")
	for _, node := range l.plane.last().Nodes {
		if node.Name == "b" && (node.PublicKey != keyFor("b again") || node.Slices[0] != netip.MustParsePrefix("10.244.9.0/24")) {
			t.Errorf("the new b is %+v", node)
		}
	}
	l.Edit("nodes", "", "c", func(o apiserver.Object) { annotate(o, Endpoint, "192.0.2.8:51820") })
	eventually(t, func() error {
		for _, node := range l.plane.last().Nodes {
			if node.Endpoint == "192.0.2.8:51820" {
				return nil
			}
		}
		return fmt.Errorf("the endpoint of c is not followed: %+v", l.plane.last().Nodes)
	})
}

func TestFullNodesAreReadOnce(t *testing.T) {
	l := newLab(t)
	l.Create("nodes", peerObject("b", "10.244.1.0/24"))
	l.start()
	l.plane.hasPeers(t, "b")
	for i := range 5 { // as its kubelet does
		l.Edit("nodes", "", "b", func(o apiserver.Object) { o["status"] = apiserver.Object{"heartbeat": i} })
	}
	l.Edit("nodes", "", "b", func(o apiserver.Object) { annotate(o, Endpoint, "192.0.2.8:51820") })
	eventually(t, func() error {
		if got := l.plane.last().Nodes[1].Endpoint; got != "192.0.2.8:51820" {
			return fmt.Errorf("the endpoint of b is %s", got)
		}
		return nil
	})
	if got := l.Reads("/api/v1/nodes/b"); got != 1 {
		t.Errorf("b was read %d times", got)
	}
}

func TestSliceThatComesLate(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.Create("nodes", peerObject("b"))
	l.Edit("nodes", "", "self", func(o apiserver.Object) { o["spec"] = apiserver.Object{} })
	l.start()
	l.hasFault("node self has no podCIDR yet")
	if l.plane.count() > 0 {
		t.Error("a set was applied without a slice")
	}
	l.Edit("nodes", "", "self", func(o apiserver.Object) { o["spec"] = apiserver.Object{"podCIDRs": []any{"10.244.0.0/24"}} })
	l.plane.hasPeers(t)
	l.Edit("nodes", "", "b", func(o apiserver.Object) { o["spec"] = apiserver.Object{"podCIDRs": []any{"10.244.1.0/24"}} })
	l.plane.hasPeers(t, "b")
}

func TestOwnNodeThatComesLate(t *testing.T) {
	l := newLab(t)
	l.Delete("nodes", "", "self")
	l.start()
	l.hasFault("no Node self at the API server yet")
	l.Create("nodes", nodeObject("self", "10.244.0.0/24"))
	l.plane.hasPeers(t)
	l.annotation(PublicKey, keyFor("self"))
}

// TestACrowdIsFewSets has more nodes come at once than are read one by one, and
// more than a page.
func TestACrowdIsFewSets(t *testing.T) {
	l := newLab(t)
	l.start()
	l.plane.hasPeers(t)
	before := l.plane.count()
	const crowd = 250
	var names []string
	for i := range crowd {
		name := fmt.Sprintf("node-%03d", i)
		names = append(names, name)
		l.Create("nodes", peerObject(name, fmt.Sprintf("10.244.%d.0/24", i+1)))
	}
	l.plane.hasPeers(t, names...)
	if sets := l.plane.count() - before; sets > 10 {
		t.Errorf("%d nodes made %d sets", crowd, sets)
	}
	singly := 0
	for _, name := range names {
		singly += l.Reads("/api/v1/nodes/" + name)
	}
	if singly >= crowd/2 {
		t.Errorf("%d of %d nodes were read one by one", singly, crowd)
	}
}

func TestClusterPrefixes(t *testing.T) {
	kubeadm := func(subnet string) func(*lab) {
		return func(l *lab) {
			l.Create("configmaps", apiserver.Object{
				"kind": "ConfigMap", "apiVersion": "v1",
				"metadata": apiserver.Object{"namespace": "kube-system", "name": "kubeadm-config"},
				"data":     apiserver.Object{"ClusterConfiguration": "networking:\n  serviceSubnet: 10.96.0.0/12\n  podSubnet: " + subnet + "\n"},
			})
		}
	}
	forbidden := func(l *lab) {
		l.Refuse(func(r *http.Request) int {
			if strings.Contains(r.URL.Path, "/configmaps/") {
				return http.StatusForbidden
			}
			return 0
		})
	}
	services := prefixes("10.96.0.0/12")
	union := prefixes("10.244.0.0/24", "10.244.1.0/24", "fd00:10:244::/64")
	tests := []struct {
		name    string
		set     []netip.Prefix
		prepare func(*lab)
		want    []netip.Prefix
		// services are known of
		services []netip.Prefix
	}{
		{"configuration", prefixes("10.244.0.0/17"), kubeadm("10.0.0.0/8"), prefixes("10.244.0.0/17"), services},
		{"kubeadm", nil, kubeadm("10.244.0.0/16,fd00:10:244::/56"), prefixes("10.244.0.0/16", "fd00:10:244::/56"), services},
		{"kubeadm's is not true any more", nil, kubeadm("10.99.0.0/16"), union, services},
		{"kubeadm's is garbage", nil, kubeadm("garbage"), union, services},
		{"kubeadm's is empty", nil, kubeadm(`""`), union, services},
		{"not kubeadm's", nil, func(*lab) {}, union, nil},
		{"may not be read", nil, forbidden, union, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			l.Create("nodes", peerObject("b", "10.244.1.0/24"))
			tt.prepare(l)
			l.start(func(c *Config) { c.Cluster = tt.set })
			l.plane.hasPeers(t, "b")
			if diff := cmp.Diff(tt.want, l.plane.last().Cluster, comparePrefixes); diff != "" {
				t.Errorf("cluster (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.services, l.plane.last().ServiceCIDRs, comparePrefixes, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("services (-want +got):\n%s", diff)
			}
		})
	}
}

func TestApplyIsRepeatedUntilItWorks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.plane.setFail(errNoDevice)
	l.start()
	l.hasFault("apply node set: no device")
	if l.kube.InForce() {
		t.Error("a set that was not applied is in force")
	}
	if got := l.Writes(); len(got) > 0 {
		t.Errorf("written before the data plane is up: %v", got)
	}
	l.plane.setFail(nil)
	l.plane.hasPeers(t)
	l.hasFault("")
}

func TestCredentialsThatCannotBeRead(t *testing.T) {
	if _, err := New(Config{Kubeconfig: t.TempDir() + "/none", Log: discard}); err == nil || !strings.HasPrefix(err.Error(), "read credentials for the API server: ") {
		t.Errorf("kubeconfig: %v", err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := New(Config{Log: discard}); err == nil || !strings.HasPrefix(err.Error(), "read credentials for the API server: ") {
		t.Errorf("outside a pod: %v", err)
	}
}
