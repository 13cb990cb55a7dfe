//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// follows is how soon answers have to follow what happens.
const follows = 10 * time.Second

// TestNames has an ordinary pod, one that is in no service, ask the cluster's own
// DNS for the names of the overlay, as make up has that forward them.
func TestNames(t *testing.T) {
	watchWire(t)
	awaitServing(t)
	service, err := lab.client.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := nameTests{
		client: startPods(t, podSpec{name: "names-client", node: lab.nodes[1]})[0],
		server: netip.AddrPortFrom(netip.MustParseAddr(service.Spec.ClusterIP), 53),
	}
	t.Run("Records", n.records)
	t.Run("Scaling", n.scaling)
	t.Run("DaemonsRestart", n.daemonsRestart)
	t.Run("NodeLoss", n.nodeLoss)
}

// nameTests are who asks, and whom.
type nameTests struct {
	client *pod
	server netip.AddrPort // the cluster's DNS
}

// ownServer is the overlay's DNS at every pod's gateway.
var ownServer = netip.MustParseAddrPort("169.254.1.1:53")

func serviceName(service, namespace string) string {
	return service + "." + namespace + ".svc.overlay.local."
}

// startReplicas starts pods of a service, one on each of nodes.
func startReplicas(t *testing.T, service, namespace string, nodes ...*node) []*pod {
	t.Helper()
	var specs []podSpec
	for i, n := range nodes {
		specs = append(specs, podSpec{
			name: fmt.Sprintf("%s-%d", service, i), namespace: namespace, node: n, labels: map[string]string{serviceLabel: service},
		})
	}
	return startPods(t, specs...)
}

func addrsOf(pods ...*pod) []netip.Addr {
	var addrs []netip.Addr
	for _, p := range pods {
		addrs = append(addrs, p.addrs...)
	}
	return addrs
}

// follow waits until a name has exactly these addresses, no longer than answers
// may take to follow, and logs how long it was.
func (n nameTests) follow(t *testing.T, what, name string, want []netip.Addr) {
	t.Helper()
	started := time.Now()
	if err := poll(t.Context(), follows, func(ctx context.Context) error { return n.client.resolves(ctx, n.server, name, want) }); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Logf("%s: %s has %d addresses after %v", what, name, len(want), time.Since(started).Round(time.Millisecond))
}

// records looks at each kind of name. Two namespaces have a service of the same
// name, and that of one is a dedicated service.
func (n nameTests) records(t *testing.T) {
	tenantNamespace(t, "names-tenant")
	pods := startReplicas(t, "names-web", testNamespace, lab.nodes[1], lab.nodes[2])
	tenants := startReplicas(t, "names-web", "names-tenant", lab.nodes[2])
	web := serviceName("names-web", testNamespace)
	n.follow(t, "a new service", web, addrsOf(pods...))
	n.follow(t, "another namespace's", serviceName("names-web", "names-tenant"), addrsOf(tenants...))
	for _, p := range pods {
		n.follow(t, "a pod's own name", p.name+"."+web, p.addrs)
		for _, addr := range p.addrs {
			n.pointsTo(t, addr, p.name+"."+web)
		}
	}
	for _, of := range lab.nodes {
		name := of.name + ".node.overlay.local."
		addrs, err := n.client.addresses(t.Context(), n.server, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, slice := range of.slices {
			if len(addrs) != len(of.slices) || !slices.ContainsFunc(addrs, slice.Contains) {
				t.Errorf("%s has the addresses %v, want one of each of the slices %v", name, addrs, of.slices)
			}
		}
	}
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
	}{
		{serviceName("no-such-service", testNamespace), dns.TypeA, dns.RcodeNameError},
		{serviceName("names-web", "no-such-namespace"), dns.TypeAAAA, dns.RcodeNameError},
		{"no-such-node.node.overlay.local.", dns.TypeA, dns.RcodeNameError},
		{"svc.overlay.local.", dns.TypeA, dns.RcodeSuccess}, // there is none of the type
		{web, dns.TypeMX, dns.RcodeSuccess},
	} {
		for _, network := range []string{"udp", "tcp"} {
			answer, err := n.client.lookup(t.Context(), network, n.server, c.name, c.kind)
			if err != nil || answer.Rcode != c.rcode || len(answer.Answer) > 0 || len(answer.Ns) != 1 || answer.Ns[0].Header().Rrtype != dns.TypeSOA {
				t.Errorf("%s by %s: want %s without answers but with a SOA; got %v, %v", c.name, network, dns.RcodeToString[c.rcode], answer, err)
			}
		}
	}
	own, err := n.client.lookup(t.Context(), "udp", n.server, "kubernetes.default.svc.cluster.local.", dns.TypeA)
	if err != nil || len(addrsIn(own)) != 1 {
		t.Errorf("the cluster's own names: %v, %v", own, err)
	}
}

// pointsTo asks the pod's own node, as dig -x ADDR @169.254.1.1 does: the
// cluster's DNS keeps these zones to itself.
func (n nameTests) pointsTo(t *testing.T, addr netip.Addr, want string) {
	t.Helper()
	reverse, err := dns.ReverseAddr(addr.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := poll(t.Context(), follows, func(ctx context.Context) error {
		answer, err := n.client.lookup(ctx, "udp", ownServer, reverse, dns.TypePTR)
		if err != nil {
			return err
		}
		if len(answer.Answer) == 1 {
			if ptr, ok := answer.Answer[0].(*dns.PTR); ok && ptr.Ptr == want {
				return nil
			}
		}
		return fmt.Errorf("the name of %v is %v, want %s", addr, answer.Answer, want)
	}); err != nil {
		t.Error(err)
	}
}

// scaling changes how many pods a Deployment has.
func (n nameTests) scaling(t *testing.T) {
	const service = "names-scaled"
	client := lab.client.AppsV1().Deployments(testNamespace)
	labels := map[string]string{serviceLabel: service}
	template := podSpec{node: lab.nodes[0]}.object(lab.Image).Spec
	template.NodeName = "" // wherever the scheduler wants
	_, err := client.Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: service},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(0)), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: template},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Delete(context.Background(), service, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	name := serviceName(service, testNamespace)
	for _, replicas := range []int{2, 5, 1, 3} {
		patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
		if _, err := client.Patch(t.Context(), service, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		n.follow(t, fmt.Sprintf("scaled to %d", replicas), name, readyReplicas(t, service, replicas))
	}
	if _, err := client.Patch(t.Context(), service, types.MergePatchType, []byte(`{"spec":{"replicas":0}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	readyReplicas(t, service, 0)
	if err := poll(t.Context(), follows, func(ctx context.Context) error {
		answer, err := n.client.lookup(ctx, "udp", n.server, name, dns.TypeA)
		if err == nil && answer.Rcode != dns.RcodeNameError {
			err = fmt.Errorf("%s: want NXDOMAIN, got %v", name, answer)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// readyReplicas waits until a service has so many pods, all ready but those that
// are on their end, and returns their addresses; none waits for the end of all.
func readyReplicas(t *testing.T, service string, replicas int) []netip.Addr {
	t.Helper()
	var addrs []netip.Addr
	eventually(t, fmt.Sprintf("%d pods of %s are ready", replicas, service), func(ctx context.Context) error {
		list, err := lab.client.CoreV1().Pods(testNamespace).List(ctx, metav1.ListOptions{LabelSelector: serviceLabel + "=" + service})
		if err != nil {
			return err
		}
		addrs = nil
		ready := 0
		for i := range list.Items {
			object := &list.Items[i]
			if object.DeletionTimestamp != nil && replicas > 0 {
				continue
			}
			if !isReady(object) {
				return fmt.Errorf("pod %s is %s", object.Name, object.Status.Phase)
			}
			ready++
			for _, ip := range object.Status.PodIPs {
				addrs = append(addrs, netip.MustParseAddr(ip.IP))
			}
		}
		if ready != replicas {
			return fmt.Errorf("there are %d", ready)
		}
		return nil
	})
	return addrs
}

// daemonsRestart restarts all daemons, and then kills that of the client's node.
// Who asks meanwhile may have to wait, but never hears that there is no such name,
// which a resolver would believe. Without WireGuard in the kernel a node is lost
// while its daemon is away, so one of the addresses may be missing.
func (n nameTests) daemonsRestart(t *testing.T) {
	pods := startReplicas(t, "names-restart", testNamespace, lab.nodes[0], lab.nodes[2])
	name := serviceName("names-restart", testNamespace)
	n.follow(t, "a new service", name, addrsOf(pods...))
	watches := []*nameWatch{n.watch(n.server, name), n.watch(ownServer, name)}
	restartDaemons(t)
	killDaemon(t, n.client.node)
	n.follow(t, "after the restarts", name, addrsOf(pods...))
	for _, w := range watches {
		answers := w.end()
		failed := 0
		for _, a := range answers {
			switch {
			case a.err != nil:
				failed++
			case len(a.addrs) == 0:
				t.Errorf("%v said %s without addresses", w.server, dns.RcodeToString[a.rcode])
			}
		}
		t.Logf("%v: of %d questions %d were not answered", w.server, len(answers), failed)
		if failed == len(answers) {
			t.Errorf("%v answered nothing", w.server)
		}
	}
}

// nodeLoss cuts a node off and brings it back. Nobody who asks is without an
// answer meanwhile, and none of the answers leads to the lost node for long.
func (n nameTests) nodeLoss(t *testing.T) {
	lost := lab.nodes[2]
	moveClusterDNS(t, lost)
	pods := startReplicas(t, "names-loss", testNamespace, lab.nodes[0], lab.nodes[1], lost)
	name := serviceName("names-loss", testNamespace)
	n.follow(t, "a new service", name, addrsOf(pods...))
	w := n.watch(n.server, name)
	t.Cleanup(func() { w.end() })
	w.until(t, time.Now().Add(follows)) // both servers of the cluster have been asked by then
	cutOff := time.Now()
	reconnect := cutOffNode(t, lost)
	w.until(t, cutOff.Add(follows+5*time.Second))
	reconnect()
	n.follow(t, "a node that is back", name, addrsOf(pods...))
	n.judgeLoss(t, w.end(), cutOff, pods)
}

// judgeLoss wants the survivors in all answers, and the last pod, the lost
// node's, in none between cutOff, with some time to follow, and its return.
func (n nameTests) judgeLoss(t *testing.T, answers []nameAnswer, cutOff time.Time, pods []*pod) {
	t.Helper()
	survivors, gone := pods[:len(pods)-1], pods[len(pods)-1].addr(false)
	var last time.Time // that it was answered before its return
	left := false
	for _, a := range answers {
		if a.err != nil || a.rcode != dns.RcodeSuccess {
			t.Errorf("%v after the loss: %s, %v", a.at.Sub(cutOff), dns.RcodeToString[a.rcode], a.err)
			continue
		}
		for _, p := range survivors {
			if !slices.Contains(a.addrs, p.addr(false)) {
				t.Errorf("%v after the loss: the answer %v lacks %s", a.at.Sub(cutOff), a.addrs, p.name)
			}
		}
		switch {
		case !a.at.After(cutOff):
		case !slices.Contains(a.addrs, gone):
			left = true
		case a.at.Before(cutOff.Add(follows + 5*time.Second)):
			last = a.at
		}
	}
	if !left || last.After(cutOff.Add(follows)) {
		t.Errorf("answers lead to the lost node until %v after the loss", last.Sub(cutOff))
	}
	t.Logf("%d answers, the last that leads to the lost node %v after the loss", len(answers), last.Sub(cutOff).Round(time.Millisecond))
}

// lossTable holds the rules that cut a node off.
const lossTable = "inet e2e-loss"

// cutOffNode has nothing pass the node's link to the others, as if its cable were
// pulled, until reconnect or the end of the test.
func cutOffNode(t *testing.T, n *node) (reconnect func()) {
	t.Helper()
	const rules = `
table %[1]s {
	chain in {
		type filter hook prerouting priority raw
		iifname %[2]q drop
	}
	chain out {
		type filter hook postrouting priority srcnat + 10
		oifname %[2]q drop
	}
}
`
	if err := n.nft(t.Context(), fmt.Sprintf(rules, lossTable, underlay)); err != nil {
		t.Fatal(err)
	}
	reconnect = func() {
		if err := n.nft(context.Background(), fmt.Sprintf("table %[1]s\ndelete table %[1]s\n", lossTable)); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		reconnect()
		if err := lab.awaitServing(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return reconnect
}

// moveClusterDNS has the cluster's DNS run elsewhere: were it lost with the node,
// kube-proxy would lead there until Kubernetes notices, after 40 s.
func moveClusterDNS(t *testing.T, from *node) {
	t.Helper()
	changeNode(t, from.name, func(object *corev1.Node) { object.Spec.Unschedulable = true })
	t.Cleanup(func() {
		patch := []byte(`{"spec":{"unschedulable":null}}`)
		if _, err := lab.client.CoreV1().Nodes().Patch(context.Background(), from.name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Error(err)
		}
	})
	pods := lab.client.CoreV1().Pods("kube-system")
	eventually(t, "the cluster's DNS leaves "+from.name, func(ctx context.Context) error {
		list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "k8s-app=kube-dns"})
		if err != nil {
			return err
		}
		var errs []error
		for i := range list.Items {
			object := &list.Items[i]
			if object.Spec.NodeName == from.name {
				errs = append(errs, fmt.Errorf("pod %s is there", object.Name), pods.Delete(ctx, object.Name, metav1.DeleteOptions{}))
			} else if !isReady(object) {
				errs = append(errs, fmt.Errorf("pod %s is not ready", object.Name))
			}
		}
		return errors.Join(errs...)
	})
}

// resolves returns an error unless a name has exactly these addresses.
func (p place) resolves(ctx context.Context, server netip.AddrPort, name string, want []netip.Addr) error {
	got, err := p.addresses(ctx, server, name)
	if err != nil {
		return err
	}
	want = slices.SortedFunc(slices.Values(want), netip.Addr.Compare)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		return fmt.Errorf("addresses of %s (-want +got)\n%s", name, diff)
	}
	return nil
}
