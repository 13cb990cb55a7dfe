//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The words by which pods join services.
const (
	serviceLabel   = "overlay.zlayer.dev/service"
	modeKey        = "overlay.zlayer.dev/mode"
	joinGlobalKey  = "overlay.zlayer.dev/join-global"
	servicesOfNode = "overlay.zlayer.dev/services"
)

// tenantNamespace makes a namespace whose labelled pods are in dedicated,
// cut-off services, and removes it with the test.
func tenantNamespace(t *testing.T, name string) {
	t.Helper()
	namespaces := lab.client.CoreV1().Namespaces()
	eventually(t, "make namespace "+name, func(ctx context.Context) error {
		_, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: name, Annotations: map[string]string{modeKey: "dedicated", joinGlobalKey: "false"},
		}}, metav1.CreateOptions{})
		return err
	})
	t.Cleanup(func() {
		if err := namespaces.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
}

// TestTenantsDoNotReachEachOther has two namespaces with a service of the same
// name, each on both workers, and a pod beside them on each.
func TestTenantsDoNotReachEachOther(t *testing.T) {
	watchWire(t)
	tenantNamespace(t, "tenant-a")
	tenantNamespace(t, "tenant-b")
	web := map[string]string{serviceLabel: "web"}
	var specs []podSpec
	for _, namespace := range []string{"tenant-a", "tenant-b"} {
		for i, n := range []*node{lab.nodes[1], lab.nodes[2]} {
			specs = append(specs, podSpec{name: fmt.Sprintf("%s-%d", namespace, i), namespace: namespace, node: n, labels: web})
		}
	}
	specs = append(specs, podSpec{name: "stranger-0", node: lab.nodes[1]}, podSpec{name: "stranger-1", node: lab.nodes[2]})
	pods := startPods(t, specs...)
	for _, p := range pods {
		serve(t, p.place, podPort)
	}
	anyClient := func(bool) func(netip.Addr) bool { return nil }
	a, b, strangers := pods[0:2], pods[2:4], pods[4:6]
	var open []question
	for _, own := range [][]*pod{a, b, strangers} {
		open = append(open, everyWay(own[0].place, own[1].place, podPort, anyClient)...)
		open = append(open, everyWay(own[1].place, own[0].place, podPort, anyClient)...)
	}
	for _, p := range pods { // as the kubelet's probes do
		open = append(open, everyWay(p.node.place, p.place, podPort, anyClient)...)
	}
	askAll(t, open)
	var shut []question
	for _, from := range pods {
		for _, to := range pods {
			if sameTenant(from, to) {
				continue
			}
			shut = append(shut, everyWay(from.place, to.place, podPort, anyClient)...)
		}
	}
	refuseAll(t, shut)
	askAll(t, open) // all the while, and still
	servicesArePublished(t, map[string][]string{"tenant-a/web": {lab.nodes[1].name, lab.nodes[2].name}, "tenant-b/web": {lab.nodes[1].name, lab.nodes[2].name}})
	if err := lab.deletePods(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	servicesArePublished(t, map[string][]string{"tenant-a/web": {lab.nodes[1].name, lab.nodes[2].name}})
}

func sameTenant(a, b *pod) bool { return a.namespace == b.namespace }

// refuseAll asks all questions at once, none of which may be answered.
func refuseAll(t *testing.T, questions []question) {
	t.Helper()
	err := together(questions, func(q question) error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := q.ask(ctx); err != nil {
			return nil
		}
		return fmt.Errorf("%s reaches %v by %s", q.from.name, q.target, q.network)
	})
	if err != nil {
		t.Error(err)
	}
}

// servicesArePublished waits until exactly these nodes say that they host these
// services.
func servicesArePublished(t *testing.T, want map[string][]string) {
	t.Helper()
	eventually(t, "services in the nodes' annotations", func(ctx context.Context) error {
		nodes, err := lab.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		got := map[string][]string{}
		for i := range nodes.Items {
			var services map[string]json.RawMessage
			text := nodes.Items[i].Annotations[servicesOfNode]
			if text == "" {
				continue
			}
			if err := json.Unmarshal([]byte(text), &services); err != nil {
				return fmt.Errorf("node %s: %w", nodes.Items[i].Name, err)
			}
			for name := range services {
				got[name] = append(got[name], nodes.Items[i].Name)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("services %v, want %v", got, want)
		}
		return nil
	})
}

// TestContradictingPodDoesNotStart has a pod ask for what cannot be, and looks
// for the reason where people do.
func TestContradictingPodDoesNotStart(t *testing.T) {
	for name, tc := range map[string]struct {
		annotations map[string]string
		reason      string
	}{
		"shared-and-cut-off": {map[string]string{joinGlobalKey: "false"}, "only a dedicated one can"},
		"no-such-mode":       {map[string]string{modeKey: "private"}, "not auto, shared or dedicated"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := podSpec{name: name, node: lab.nodes[1], labels: map[string]string{serviceLabel: "web"}, annotations: tc.annotations}
			created, err := lab.client.CoreV1().Pods(testNamespace).Create(t.Context(), spec.object(lab.Image), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := lab.deletePods(context.Background(), []*pod{{place: place{name: name}, namespace: testNamespace}}); err != nil {
					t.Error(err)
				}
			})
			eventually(t, "an event that says why", func(ctx context.Context) error {
				if said := lab.complaints(ctx, created); !strings.Contains(said, tc.reason) {
					return errors.New(said)
				}
				return nil
			})
		})
	}
}
