//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// podPort and nodePort are where the tests' servers answer in pods and on
// nodes.
const (
	podPort  = 8080
	nodePort = 18080
)

// crew is a pod on every node and a second one on the first worker, all
// serving on podPort. The last two are on one node.
func crew(t *testing.T) []*pod {
	t.Helper()
	prefix := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(t.Name(), "Test")), "/", "-")
	var specs []podSpec
	for _, n := range []*node{lab.nodes[0], lab.nodes[2], lab.nodes[1], lab.nodes[1]} {
		name := fmt.Sprintf("%s-%d", prefix, len(specs))
		specs = append(specs, podSpec{name: name, node: n, labels: map[string]string{"crew": prefix}})
	}
	pods := startPods(t, specs...)
	for _, p := range pods {
		serve(t, p.place, podPort)
	}
	return pods
}

// serve answers at a place for the rest of the test.
func serve(t *testing.T, p place, port uint16) {
	t.Helper()
	s, err := p.serve(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
}

// question is one path to try, and what the server should see.
type question struct {
	from    place
	network string
	target  netip.AddrPort
	// server is who should answer; empty: anybody.
	server string
	// word is what they say: open or, if empty, the marker.
	word string
	// client tells whether the address that the server sees is right; nil: any is.
	client func(netip.Addr) bool
}

// askAll asks all questions at once, each until it is answered as it should be.
func askAll(t *testing.T, questions []question) {
	t.Helper()
	watchWire(t)
	if len(questions) == 0 {
		t.Fatal("no question to ask")
	}
	err := together(questions, func(q question) error {
		return poll(t.Context(), patience, func(ctx context.Context) error { return q.ask(ctx) })
	})
	if err != nil {
		t.Error(err)
	}
}

func (q question) ask(ctx context.Context) error {
	said, err := q.from.ask(ctx, q.network, q.target, cmp.Or(q.word, marker))
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%s asks %v by %s", q.from.name, q.target, q.network)
	if q.server != "" && said.server != q.server {
		return fmt.Errorf("%s: %s answered, want %s", what, said.server, q.server)
	}
	if q.client != nil && !q.client(said.client) {
		return fmt.Errorf("%s: the server sees the address %v", what, said.client)
	}
	return nil
}

// everyWay asks a place by TCP and UDP on its addresses of both families.
func everyWay(from, to place, port uint16, client func(ipv6 bool) func(netip.Addr) bool) []question {
	var questions []question
	for _, ipv6 := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			questions = append(questions, question{
				from: from, network: network, target: netip.AddrPortFrom(to.addr(ipv6), port),
				server: to.name, client: client(ipv6),
			})
		}
	}
	return questions
}

// openly is everyWay where the way is not the pods' network.
func openly(from, to place, port uint16, client func(ipv6 bool) func(netip.Addr) bool) []question {
	questions := everyWay(from, to, port, client)
	for i := range questions {
		questions[i].word = open
	}
	return questions
}

func anyone(bool) func(netip.Addr) bool { return nil }

// ownAddress wants the server to see the address of the one who asks.
func ownAddress(p place) func(bool) func(netip.Addr) bool {
	return func(ipv6 bool) func(netip.Addr) bool {
		return func(seen netip.Addr) bool { return seen == p.addr(ipv6) }
	}
}

// TestPodsReachPods checks pod to pod on one node and across nodes, with the
// source address kept.
func TestPodsReachPods(t *testing.T) {
	pods := crew(t)
	var questions []question
	for _, from := range pods {
		for _, to := range pods {
			questions = append(questions, everyWay(from.place, to.place, podPort, ownAddress(from.place))...)
		}
	}
	askAll(t, questions)
}

// TestPodsReachNodes checks pod to node; pods of the host network are in the
// nodes' own. Other nodes are outside of the pods' network, and see the node.
func TestPodsReachNodes(t *testing.T) {
	pods := crew(t)
	var questions []question
	for _, to := range lab.nodes {
		serve(t, to.place, nodePort)
		for _, from := range pods {
			client := ownAddress(from.node.place)
			if from.node == to {
				client = anyone
			}
			questions = append(questions, openly(from.place, to.place, nodePort, client)...)
		}
	}
	askAll(t, questions)
}

// TestNodesReachPods checks node to pod, and so pods of the host network to
// pods. Through the tunnel, they come from the node's own slice.
func TestNodesReachPods(t *testing.T) {
	pods := crew(t)
	var questions []question
	for _, from := range lab.nodes {
		for _, to := range pods {
			client := func(bool) func(netip.Addr) bool { return from.owns }
			if from == to.node {
				client = anyone
			}
			questions = append(questions, everyWay(from.place, to.place, podPort, client)...)
		}
	}
	askAll(t, questions)
}

func (n *node) owns(addr netip.Addr) bool {
	for _, slice := range n.slices {
		if slice.Contains(addr) {
			return true
		}
	}
	return false
}

// TestPodsReachTheAPIServer checks the service address and each address of the
// control plane.
func TestPodsReachTheAPIServer(t *testing.T) {
	watchWire(t)
	service, err := lab.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	targets := []string{netip.AddrPortFrom(netip.MustParseAddr(service.Spec.ClusterIP), 443).String()}
	for _, addr := range lab.nodes[0].addrs {
		targets = append(targets, netip.AddrPortFrom(addr, 6443).String())
	}
	for _, p := range crew(t) {
		for _, target := range targets {
			eventually(t, fmt.Sprintf("%s asks the API server at %s", p.name, target), func(ctx context.Context) error {
				return askAPIServer(ctx, p.place, target)
			})
		}
	}
}

// askAPIServer reads the version, and checks the certificate.
func askAPIServer(ctx context.Context, from place, target string) error {
	config, err := rest.TLSConfigFor(lab.config)
	if err != nil {
		return err
	}
	config.ServerName = "kubernetes" // a name that the certificate has at every address
	transport := &http.Transport{DialContext: from.dial, DisableKeepAlives: true, TLSClientConfig: config}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+target+"/version", http.NoBody)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("%s", response.Status)
	}
	return nil
}

// TestHostPort checks a pod's port on its node's addresses, from outside, from
// other nodes and from pods everywhere.
func TestHostPort(t *testing.T) {
	const hostPort = 18090
	pods := crew(t)
	target := startPods(t, podSpec{name: "hostport", node: lab.nodes[1], ports: []corev1.ContainerPort{
		{Name: "tcp", ContainerPort: podPort, HostPort: hostPort, Protocol: corev1.ProtocolTCP},
		{Name: "udp", ContainerPort: podPort, HostPort: hostPort, Protocol: corev1.ProtocolUDP},
	}})[0]
	serve(t, target.place, podPort)
	at := lab.nodes[1].place
	at.name = target.name // who answers there
	askers := []place{outside(), lab.nodes[0].place, lab.nodes[2].place}
	for _, p := range pods {
		askers = append(askers, p.place)
	}
	var questions []question
	for _, from := range askers {
		questions = append(questions, openly(from, at, hostPort, anyone)...)
	}
	askAll(t, questions)
}

// outside is this machine, which kind's nodes reach by their default route.
func outside() place { return place{name: "outside"} }

// TestEgressIsMasqueraded checks that outside of the cluster a pod has its
// node's address.
func TestEgressIsMasqueraded(t *testing.T) {
	pods := crew(t)
	world := outside()
	var err error
	if world.addrs, err = lab.nodes[1].gateways(); err != nil {
		t.Fatal(err)
	}
	serve(t, world, nodePort)
	var questions []question
	for _, from := range pods {
		questions = append(questions, openly(from.place, world, nodePort, ownAddress(from.node.place))...)
	}
	askAll(t, questions)
}
