//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// TestHostileNodes creates Nodes that claim what is not theirs, or nonsense. It
// costs each of them its own place only: the other peers stay exactly as they
// were, and an Event on that Node and a metric tell.
func TestHostileNodes(t *testing.T) {
	watchWire(t)
	awaitServing(t)
	victim, err := lab.nodes[2].status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	endpoint := "192.0.2.66:51820"
	cases := []struct {
		name, reason string
		ghost        ghost
	}{
		{"InvalidBase64", "BadAnnotation", ghost{slices: ghostSlices(210), annotations: map[string]string{"public-key": "!!!", "endpoint": endpoint}}},
		{"KeyOfAllZeros", "BadAnnotation", ghost{slices: ghostSlices(211), annotations: map[string]string{"public-key": strings.Repeat("A", 43) + "=", "endpoint": endpoint}}},
		{"EndpointIsNonsense", "BadAnnotation", ghost{slices: ghostSlices(212), annotations: map[string]string{"public-key": newKey(t), "endpoint": "::::"}}},
		{"KeepaliveIsNonsense", "BadAnnotation", ghost{slices: ghostSlices(213), annotations: map[string]string{"public-key": newKey(t), "endpoint": endpoint, "keepalive": "-1h"}}},
		{"HugeAnnotation", "AnnotationTooLarge", ghost{slices: ghostSlices(214), annotations: map[string]string{"public-key": strings.Repeat("A", 200<<10)}}},
		{"SomeoneElsesKey", "DuplicateKey", ghost{slices: ghostSlices(215), annotations: map[string]string{"public-key": victim.PublicKey, "endpoint": endpoint}}},
		{"SliceOfTheCluster", "OverlappingSlice", ghost{slices: []string{netip.PrefixFrom(lab.nodes[2].slices[0].Addr(), 16).Masked().String()}, annotations: map[string]string{"public-key": newKey(t), "endpoint": endpoint}}},
		{"SliceOfEverything", "BadAnnotation", ghost{slices: []string{"0.0.0.0/0", "::/0"}, annotations: map[string]string{"public-key": newKey(t), "endpoint": endpoint}}},
		{"SomeoneElsesSlice", "OverlappingSlice", ghost{slices: []string{lab.nodes[2].slices[0].String()}, annotations: map[string]string{"public-key": newKey(t), "endpoint": endpoint}}},
	}
	before := peersEverywhere(t)
	t.Cleanup(func() { recountSlices(t) })
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.ghost.name = "ghost-" + strings.ToLower(c.name)
			object := haunt(t, c.ghost)
			eventually(t, "the Event "+c.reason, func(ctx context.Context) error { return eventOn(ctx, object, c.reason) })
			err := together(lab.nodes, func(n *node) error {
				return poll(t.Context(), patience, func(ctx context.Context) error { return blames(ctx, n, c.reason) })
			})
			if err != nil {
				t.Errorf("metric: %v", err)
			}
			if diff := cmp.Diff(before, peersEverywhere(t), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("peers changed (-before +now)\n%s", diff)
			}
		})
	}
	t.Run("OneMebibyte", func(t *testing.T) {
		object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "ghost-mebibyte", Annotations: map[string]string{annotations + "public-key": strings.Repeat("A", 1<<20)}}}
		if _, err := lab.client.CoreV1().Nodes().Create(t.Context(), object, metav1.CreateOptions{}); err == nil {
			exorcise(t, object.Name)
			t.Error("the API server took an annotation of 1 MiB; the daemons have to face it, too")
		}
	})
	eventually(t, "the metric returns to nothing", func(ctx context.Context) error {
		return together(lab.nodes, func(n *node) error {
			count, err := n.metric(ctx, "overlayd_node_problems")
			if err == nil && count > 0 {
				err = fmt.Errorf("%v problems at %s", count, n.name)
			}
			return err
		})
	})
	pods := crew(t)
	askAll(t, everyWay(pods[2].place, pods[1].place, podPort, ownAddress(pods[2].place)))
}

// recountSlices restarts the controller manager: when a Node is deleted, it takes
// that Node's slices for free, though others have them.
func recountSlices(t *testing.T) {
	t.Helper()
	leases := lab.client.CoordinationV1().Leases("kube-system")
	holder := func(ctx context.Context) (string, error) {
		lease, err := leases.Get(ctx, "kube-controller-manager", metav1.GetOptions{})
		if err != nil || lease.Spec.HolderIdentity == nil {
			return "", err
		}
		return *lease.Spec.HolderIdentity, nil
	}
	ctx := context.Background()
	before, err := holder(ctx)
	if err != nil {
		t.Error(err)
		return
	}
	signal(t, lab.nodes[0], controllerManager, syscall.SIGKILL)
	err = poll(ctx, patience, func(ctx context.Context) error {
		now, err := holder(ctx)
		if err == nil && now == before {
			err = errors.New("the old one still leads")
		}
		return err
	})
	if err != nil {
		t.Errorf("restart the controller manager: %v", err)
	}
}

// peersEverywhere returns every daemon's peers, as far as they do not change by
// themselves.
func peersEverywhere(t *testing.T) map[string]map[string]shim.PeerStatus {
	t.Helper()
	all := map[string]map[string]shim.PeerStatus{}
	for _, n := range lab.nodes {
		status, err := n.status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all[n.name] = peersOf(status)
		for name, peer := range all[n.name] {
			all[n.name][name] = shim.PeerStatus{PublicKey: peer.PublicKey, Endpoint: peer.Endpoint, AllowedIPs: peer.AllowedIPs}
		}
	}
	return all
}

func eventOn(ctx context.Context, object *corev1.Node, reason string) error {
	events, err := lab.client.CoreV1().Events("").List(ctx, metav1.ListOptions{
		FieldSelector: "involvedObject.kind=Node,involvedObject.name=" + object.Name,
	})
	if err != nil {
		return err
	}
	var seen []string
	for _, event := range events.Items {
		if event.Reason == reason && event.InvolvedObject.UID == object.UID {
			return nil
		}
		seen = append(seen, event.Reason)
	}
	return fmt.Errorf("node %s has the Events %v, want %s", object.Name, seen, reason)
}

// blames returns an error unless the daemon's metric counts a problem of the
// reason.
func blames(ctx context.Context, n *node, reason string) error {
	count, err := n.metric(ctx, "overlayd_node_problems", fmt.Sprintf("reason=%q", reason))
	if err == nil && count == 0 {
		err = errors.New("it counts none")
	}
	if err != nil {
		return fmt.Errorf("overlayd_node_problems of %s: %w", n.name, err)
	}
	return nil
}
