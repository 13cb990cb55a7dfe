package kube

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/test/apiserver"
)

// tenantPod is a pod of this node with labels and annotations of ours.
func tenantPod(namespace, name string, labels, annotations apiserver.Object) apiserver.Object {
	return apiserver.Object{
		"kind": "Pod", "apiVersion": "v1",
		"metadata": apiserver.Object{"namespace": namespace, "name": name, "uid": name, "labels": labels, "annotations": annotations},
		"spec":     apiserver.Object{"nodeName": "self"},
	}
}

func TestServiceOfAPod(t *testing.T) {
	l := newLab(t)
	for name, annotations := range map[string]apiserver.Object{
		"plain": {}, "secret": {Mode: "dedicated", JoinGlobal: "false"},
	} {
		l.Create("namespaces", apiserver.Object{
			"kind": "Namespace", "apiVersion": "v1", "metadata": apiserver.Object{"name": name, "annotations": annotations},
		})
	}
	labelled := apiserver.Object{ServiceLabel: "web"}
	type request = dataplane.ServiceRequest
	tests := []struct {
		name, namespace string
		labels          apiserver.Object
		annotations     apiserver.Object
		want            request
		refused         string // part of the error
	}{
		{name: "none", namespace: "secret"},
		{name: "by label", namespace: "plain", labels: labelled, want: request{Name: "plain/web", Mode: dataplane.Shared, Reach: dataplane.All}},
		{name: "auto is shared", namespace: "plain", labels: labelled, annotations: apiserver.Object{Mode: "auto"}, want: request{Name: "plain/web", Mode: dataplane.Shared, Reach: dataplane.All}},
		{name: "as its namespace says", namespace: "secret", labels: labelled, want: request{Name: "secret/web", Mode: dataplane.Dedicated, Reach: dataplane.Itself}},
		{
			name: "otherwise than its namespace", namespace: "secret", labels: labelled, annotations: apiserver.Object{JoinGlobal: "true"},
			want: request{Name: "secret/web", Mode: dataplane.Dedicated, Reach: dataplane.All},
		},
		{name: "a mode that is none", namespace: "plain", labels: labelled, annotations: apiserver.Object{Mode: "private"}, refused: `mode is "private"`},
		{name: "neither true nor false", namespace: "plain", labels: labelled, annotations: apiserver.Object{JoinGlobal: "no"}, refused: `join-global is "no"`},
		{name: "cut off without a service", namespace: "plain", annotations: apiserver.Object{JoinGlobal: "false"}, refused: "without the label"},
	}
	for _, tt := range tests {
		l.Create("pods", tenantPod(tt.namespace, strings.ReplaceAll(tt.name, " ", "-"), tt.labels, tt.annotations))
	}
	asked, err := New(Config{Node: "self", Kubeconfig: l.Kubeconfig(t), Log: discard}) // that nothing was shown
	if err != nil {
		t.Fatal(err)
	}
	defer asked.api.core.Client.CloseIdleConnections()
	l.start()
	eventually(t, func() error {
		if !l.kube.pods.Synced() || !l.kube.namespaces.Synced() {
			return errors.New("pods and namespaces are not known")
		}
		return nil
	})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := PodID{Namespace: tt.namespace, Name: strings.ReplaceAll(tt.name, " ", "-")}
			for _, kube := range []*Kube{l.kube, asked} {
				got, err := kube.Service(t.Context(), id)
				if tt.refused != "" {
					if !errors.Is(err, dataplane.ErrInvalid) || !strings.Contains(err.Error(), tt.refused) {
						t.Errorf("error %v, want one that says %s", err, tt.refused)
					}
					continue
				}
				if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
					t.Errorf("service (-want +got)\n%s%v", diff, err)
				}
			}
		})
	}
	if reads := l.Reads("/api/v1/namespaces/plain"); reads == 0 {
		t.Error("a namespace that the watch has not shown was not read")
	}
}

// TestLostWatchOfNamespaces has a namespace cut its services off while nothing
// shows it: no pod may start as if it had not.
func TestLostWatchOfNamespaces(t *testing.T) {
	l := newLab(t)
	l.Create("namespaces", apiserver.Object{"kind": "Namespace", "apiVersion": "v1", "metadata": apiserver.Object{"name": "tenant"}})
	l.Create("pods", tenantPod("tenant", "web", apiserver.Object{ServiceLabel: "web"}, nil))
	l.start()
	eventually(t, func() error {
		if !l.kube.pods.Synced() || !l.kube.namespaces.Standing() {
			return errors.New("pods and namespaces are not known")
		}
		return nil
	})
	read := l.Reads("/api/v1/namespaces/tenant")
	reach := func() dataplane.Reach {
		t.Helper()
		request, err := l.kube.Service(t.Context(), PodID{Namespace: "tenant", Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		return request.Reach
	}
	if got := reach(); got != dataplane.All || l.Reads("/api/v1/namespaces/tenant") != read {
		t.Errorf("reach %v, and a namespace that the watch shows was read", got)
	}

	l.Refuse(func(r *http.Request) int {
		if r.URL.Path == "/api/v1/namespaces" {
			return http.StatusForbidden
		}
		return 0
	})
	l.Break()
	l.Mend()
	eventually(t, func() error {
		if l.kube.namespaces.Standing() {
			return errors.New("the watch stands")
		}
		return nil
	})
	l.Edit("namespaces", "", "tenant", func(o apiserver.Object) { annotate(o, JoinGlobal, "false") })
	if got := reach(); got != dataplane.Itself {
		t.Errorf("reach %v, but the namespace has cut its services off", got)
	}
	l.Refuse(func(r *http.Request) int {
		if strings.HasPrefix(r.URL.Path, "/api/v1/namespaces") {
			return http.StatusForbidden
		}
		return 0
	})
	if got, err := l.kube.Service(t.Context(), PodID{Namespace: "tenant", Name: "web"}); err == nil {
		t.Errorf("service %+v of a namespace that nobody knows", got)
	}
}

// webService is a service as a node publishes it.
func webService(block string) wireguard.NodeService {
	return wireguard.NodeService{Name: "ns/web", PublicKey: keyFor("web"), Port: 51821, Blocks: []netip.Prefix{netip.MustParsePrefix(block)}}
}

func TestServicesArePublishedAndFollowed(t *testing.T) {
	l := newLab(t)
	peer := peerObject("b", "10.244.1.0/24")
	annotate(peer, Services, formatServices([]wireguard.NodeService{webService("10.244.1.240/28")}))
	l.Create("nodes", peer)
	var local atomic.Pointer[[]wireguard.NodeService]
	local.Store(&[]wireguard.NodeService{})
	l.start(func(c *Config) {
		c.Services = func() ([]wireguard.NodeService, []wireguard.Problem) { return *local.Load(), nil }
	})
	l.annotation(PublicKey, keyFor("self"))
	l.annotation(Services, "")
	set := l.plane.last()
	at := slices.IndexFunc(set.Nodes, func(n dataplane.Node) bool { return n.Name == "b" })
	if at < 0 || len(set.Nodes[at].Services) != 1 || !set.Nodes[at].Services[0].Equal(webService("10.244.1.240/28")) {
		t.Errorf("node set %+v, want the service of node b", set)
	}
	if own := slices.IndexFunc(set.Nodes, func(n dataplane.Node) bool { return n.Name == "self" }); own < 0 || set.Nodes[own].Endpoint != "192.0.2.1:51820" {
		t.Errorf("node set %+v, want this node's endpoint", set)
	}
	for _, services := range [][]wireguard.NodeService{{webService("10.244.0.240/28")}, {}} {
		local.Store(&services)
		l.kube.ServicesChanged()
		l.annotation(Services, formatServices(services))
	}
	// After a start without an API server they are known from disk.
	l.inForce()
	l.stop()
	saved, err := l.kube.load()
	if err != nil || saved == nil {
		t.Fatalf("no node set on disk: %v", err)
	}
	if at := slices.IndexFunc(saved.nodes(), func(n dataplane.Node) bool { return len(n.Services) == 1 }); at < 0 {
		t.Errorf("the saved set %+v has no services", saved)
	}
}

// TestGarbageInServicesCostsServices keeps the node itself a peer.
func TestGarbageInServicesCostsServices(t *testing.T) {
	l := newLab(t)
	for name, text := range map[string]string{"b": `{"ns/web":17}`, "c": strings.Repeat("x", maxServices+1)} {
		peer := peerObject(name, fmt.Sprintf("10.244.%d.0/24", name[0]))
		annotate(peer, Services, text)
		l.Create("nodes", peer)
	}
	l.start()
	l.plane.hasPeers(t, "b", "c")
	eventually(t, func() error {
		if n := l.kube.Stats().Problems[reasonBadService]; n != 2 {
			return fmt.Errorf("%d nodes with bad services, want 2", n)
		}
		return nil
	})
}

// TestRefusedServiceIsAnEvent is about what the data plane refuses: it knows the
// slices.
func TestRefusedServiceIsAnEvent(t *testing.T) {
	l := newLab(t)
	l.Create("nodes", peerObject("b", "10.244.1.0/24"))
	refused := []wireguard.Problem{{Node: "b", Err: errors.New("service ns/web: its block 10.0.0.0/28 is outside its slices")}, {Node: "peer of an agent", Err: errors.New("x")}}
	l.start(func(c *Config) {
		c.Services = func() ([]wireguard.NodeService, []wireguard.Problem) { return nil, refused }
	})
	eventually(t, func() error {
		for _, event := range l.List("events") {
			if event["reason"] == reasonBadService && event["message"] == "node b is left out of a service: service ns/web: its block 10.0.0.0/28 is outside its slices" {
				return nil
			}
		}
		return fmt.Errorf("events %v", l.List("events"))
	})
	if n := l.kube.Stats().Problems[reasonBadService]; n != 1 {
		t.Errorf("%d problems, want 1", n)
	}
}

// TestSilentNodeIsAnEvent counts it as long as it is silent.
func TestSilentNodeIsAnEvent(t *testing.T) {
	l := newLab(t)
	l.Create("nodes", peerObject("b", "10.244.1.0/24"))
	var silent atomic.Pointer[[]string]
	silent.Store(&[]string{})
	l.start(func(c *Config) { c.Silent = func() []string { return *silent.Load() } })
	l.plane.hasPeers(t, "b")
	for _, names := range [][]string{{"b", "an added peer"}, {}} {
		silent.Store(&names)
		l.kube.PeersChanged()
		eventually(t, func() error {
			if n := l.kube.Stats().Problems[reasonUnhealthy]; (n == 1) != (len(names) > 0) {
				return fmt.Errorf("%d silent nodes", n)
			}
			return nil
		})
	}
	events := l.List("events")
	if len(events) != 1 || events[0]["reason"] != reasonUnhealthy || events[0]["message"] != "node b does not answer: what is sent to it by WireGuard has no answer" {
		t.Errorf("events %v", events)
	}
}
