//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// servicePort is every service's.
const servicePort = 80

// newService makes a service of both families for the pods that labels select.
func newService(t *testing.T, name string, labels map[string]string, change func(*corev1.ServiceSpec)) *corev1.Service {
	t.Helper()
	port := func(protocol corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{
			Name: strings.ToLower(string(protocol)), Protocol: protocol,
			Port: servicePort, TargetPort: intstr.FromInt32(podPort),
		}
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: testNamespace},
		Spec: corev1.ServiceSpec{
			Selector:       labels,
			IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack),
			IPFamilies:     []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			Ports:          []corev1.ServicePort{port(corev1.ProtocolTCP), port(corev1.ProtocolUDP)},
		},
	}
	change(&service.Spec)
	client := lab.client.CoreV1().Services(testNamespace)
	service, err := client.Create(t.Context(), service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return service
}

// clusterAddrs are a service's own addresses, as a place that answers.
func clusterAddrs(t *testing.T, service *corev1.Service) place {
	t.Helper()
	p := place{}
	for _, ip := range service.Spec.ClusterIPs {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			t.Fatal(err)
		}
		p.addrs = append(p.addrs, addr)
	}
	return p
}

// TestServices checks what kube-proxy and the network do together, for each of
// kube-proxy's modes that this network supports.
func TestServices(t *testing.T) {
	pods := crew(t)
	all := map[string]string{"crew": "services"}
	one := startPods(t, podSpec{name: "services-alone", node: lab.nodes[1], labels: map[string]string{"alone": "yes"}})[0]
	serve(t, one.place, podPort)
	s := serviceTests{
		pods: pods, alone: one,
		cluster:  newService(t, "cluster", all, func(*corev1.ServiceSpec) {}),
		sticky:   newService(t, "sticky", all, func(spec *corev1.ServiceSpec) { spec.SessionAffinity = corev1.ServiceAffinityClientIP }),
		headless: newService(t, "headless", all, func(spec *corev1.ServiceSpec) { spec.ClusterIP = corev1.ClusterIPNone }),
		hairpin:  newService(t, "hairpin", map[string]string{"alone": "yes"}, func(*corev1.ServiceSpec) {}),
		nodePort: newService(t, "nodeport", all, func(spec *corev1.ServiceSpec) { spec.Type = corev1.ServiceTypeNodePort }),
		local: newService(t, "local", map[string]string{"alone": "yes"}, func(spec *corev1.ServiceSpec) {
			spec.Type, spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyLocal
		}),
	}
	for _, mode := range proxyModes(t) {
		t.Run(mode, func(t *testing.T) {
			setProxyMode(t, mode)
			s.awaitProxy(t)
			t.Run("ClusterIP", s.clusterIP)
			t.Run("EveryBackend", s.everyBackend)
			t.Run("Hairpin", s.toItself)
			t.Run("SessionAffinity", s.affinity)
			t.Run("NodePort", s.nodePorts)
			t.Run("ExternalTrafficPolicyLocal", s.externalLocal)
			t.Run("Headless", s.names)
		})
	}
}

// serviceTests are the services and who is behind them.
type serviceTests struct {
	pods  []*pod // behind all services but the next one's
	alone *pod

	cluster, sticky, headless, hairpin, nodePort, local *corev1.Service
}

// awaitProxy waits until kube-proxy has set up the services on every node. Until
// then their addresses are no pods', and leave by the default route.
func (s serviceTests) awaitProxy(t *testing.T) {
	t.Helper()
	var questions []question
	for _, n := range lab.nodes {
		questions = append(questions, openly(n.place, clusterAddrs(t, s.cluster), servicePort, anyone)...)
	}
	askAll(t, questions)
}

// clusterIP asks from pods and nodes. A pod keeps its address, unless it gets
// to itself.
func (s serviceTests) clusterIP(t *testing.T) {
	target := clusterAddrs(t, s.cluster)
	var questions []question
	for _, p := range s.pods {
		questions = append(questions, everyWay(p.place, target, servicePort, anyone)...)
	}
	questions = append(questions, everyWay(s.alone.place, target, servicePort, ownAddress(s.alone.place))...)
	for _, n := range lab.nodes {
		questions = append(questions, everyWay(n.place, target, servicePort, anyone)...)
	}
	askAll(t, questions)
}

// everyBackend asks until each backend has answered.
func (s serviceTests) everyBackend(t *testing.T) {
	watchWire(t)
	want := map[string]bool{}
	for _, p := range s.pods {
		want[p.name] = true
	}
	for _, ipv6 := range []bool{false, true} {
		target := netip.AddrPortFrom(clusterAddrs(t, s.cluster).addr(ipv6), servicePort)
		answered := map[string]bool{}
		eventually(t, fmt.Sprintf("all backends of %v answer", target), func(ctx context.Context) error {
			said, err := s.alone.ask(ctx, "tcp", target, marker)
			if err != nil {
				return err
			}
			answered[said.server] = true
			if !maps.Equal(answered, want) {
				return fmt.Errorf("so far %v", slices.Sorted(maps.Keys(answered)))
			}
			return nil
		})
	}
}

func (s serviceTests) toItself(t *testing.T) {
	target := clusterAddrs(t, s.hairpin)
	target.name = s.alone.name
	askAll(t, everyWay(s.alone.place, target, servicePort, anyone))
}

func (s serviceTests) affinity(t *testing.T) {
	watchWire(t)
	const times = 20
	for _, ipv6 := range []bool{false, true} {
		target := netip.AddrPortFrom(clusterAddrs(t, s.sticky).addr(ipv6), servicePort)
		eventually(t, fmt.Sprintf("the same backend answers at %v", target), func(ctx context.Context) error {
			answered := map[string]int{}
			for range times {
				said, err := s.alone.ask(ctx, "tcp", target, marker)
				if err != nil {
					return err
				}
				answered[said.server]++
			}
			if len(answered) != 1 {
				return fmt.Errorf("these answered: %v", answered)
			}
			return nil
		})
	}
}

// nodePorts asks every node from outside, from pods and from nodes.
func (s serviceTests) nodePorts(t *testing.T) {
	askers := []place{outside(), s.alone.place}
	for _, p := range s.pods {
		askers = append(askers, p.place)
	}
	for _, n := range lab.nodes {
		askers = append(askers, n.place)
	}
	var questions []question
	for _, n := range lab.nodes {
		target := place{addrs: n.addrs}
		for _, from := range askers {
			questions = append(questions, openly(from, target, 0, anyone)...)
		}
	}
	for i := range questions {
		questions[i].target = netip.AddrPortFrom(questions[i].target.Addr(), nodePortOf(s.nodePort, questions[i].network))
	}
	askAll(t, questions)
}

func nodePortOf(service *corev1.Service, network string) uint16 {
	for _, port := range service.Spec.Ports {
		if port.Name == network {
			return uint16(port.NodePort)
		}
	}
	return 0
}

// externalLocal checks that the node with the backend keeps the client's
// address, and that another node does not answer.
func (s serviceTests) externalLocal(t *testing.T) {
	client := outside()
	var err error
	if client.addrs, err = s.alone.node.gateways(); err != nil {
		t.Fatal(err)
	}
	var questions []question
	for _, ipv6 := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			questions = append(questions, question{
				from: client, network: network, word: open, server: s.alone.name, client: ownAddress(client)(ipv6),
				target: netip.AddrPortFrom(s.alone.node.addr(ipv6), nodePortOf(s.local, network)),
			})
		}
	}
	askAll(t, questions)
	err = together(questions, func(q question) error {
		other := lab.nodes[2].addr(q.target.Addr().Is6())
		said, err := client.ask(t.Context(), q.network, netip.AddrPortFrom(other, q.target.Port()), open)
		if err == nil {
			return fmt.Errorf("%s, which has no backend, passed %s to %s", lab.nodes[2].name, q.network, said.server)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// names checks that pods resolve a headless service to its pods' addresses,
// by UDP and TCP.
func (s serviceTests) names(t *testing.T) {
	watchWire(t)
	dns, err := lab.client.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var want []netip.Addr
	for _, p := range s.pods {
		want = append(want, p.addrs...)
	}
	slices.SortFunc(want, netip.Addr.Compare)
	for _, p := range append(slices.Clone(s.pods), s.alone) {
		for _, network := range []string{"udp", "tcp"} {
			resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return p.dial(ctx, network, net.JoinHostPort(dns.Spec.ClusterIP, "53"))
			}}
			eventually(t, p.name+" resolves a headless service by "+network, func(ctx context.Context) error {
				found, err := resolver.LookupNetIP(ctx, "ip", s.headless.Name+"."+testNamespace+".svc.cluster.local.")
				if err != nil {
					return err
				}
				for i := range found {
					found[i] = found[i].Unmap()
				}
				slices.SortFunc(found, netip.Addr.Compare)
				if diff := cmp.Diff(want, found, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
					return fmt.Errorf("(-want +got)\n%s", diff)
				}
				return nil
			})
		}
	}
}
