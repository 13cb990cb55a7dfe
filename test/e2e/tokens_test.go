//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestTokens checks with the API server what the token of one node's daemon is
// good for. Nothing is really written: admission takes part in dry runs.
func TestTokens(t *testing.T) {
	own, other := lab.nodes[1].name, lab.nodes[2].name
	client := clientOf(t, own)
	patch := func(node string, kind types.PatchType, body string, sub ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := client.CoreV1().Nodes().Patch(ctx, node, kind, []byte(body), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, sub...)
			return err
		}
	}
	annotate := func(node, key string) func(context.Context) error {
		return patch(node, types.MergePatchType, fmt.Sprintf(`{"metadata":{"annotations":{%q:"x"}}}`, key))
	}
	condition := func(node, kind string) func(context.Context) error {
		return patch(node, types.StrategicMergePatchType, fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":"False","reason":"Test"}]}}`, kind), "status")
	}
	cases := []struct {
		name    string
		do      func(context.Context) error
		allowed bool
	}{
		{"read nodes", func(ctx context.Context) error {
			_, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
			return err
		}, true},
		{"own key", annotate(own, annotations+"public-key"), true},
		{"own endpoint", annotate(own, annotations+"endpoint"), true},
		{"own NetworkUnavailable", condition(own, "NetworkUnavailable"), true},

		{"another node's key", annotate(other, annotations+"public-key"), false},
		{"another node's NetworkUnavailable", condition(other, "NetworkUnavailable"), false},
		{"an administrator's endpoint", annotate(own, annotations+"force-endpoint"), false},
		{"an administrator's keepalive", annotate(own, annotations+"keepalive"), false},
		{"someone else's annotation", annotate(own, "example.com/other"), false},
		{"an annotation that ours begins like", annotate(own, "overlay.zlayer.dev.example.com/public-key"), false},
		{"a label", patch(own, types.MergePatchType, `{"metadata":{"labels":{"example.com/label":"x"}}}`), false},
		{"a label of ours", patch(own, types.MergePatchType, `{"metadata":{"labels":{"overlay.zlayer.dev/label":"x"}}}`), false},
		{"an owner", patch(own, types.MergePatchType, `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"x","uid":"x"}]}}`), false},
		{"a finalizer", patch(own, types.MergePatchType, `{"metadata":{"finalizers":["example.com/stay"]}}`), false},
		{"unschedulable", patch(own, types.MergePatchType, `{"spec":{"unschedulable":true}}`), false},
		{"a taint", patch(own, types.MergePatchType, `{"spec":{"taints":[{"key":"example.com/taint","effect":"NoSchedule"}]}}`), false},
		{"a taint of ours", patch(own, types.MergePatchType, `{"spec":{"taints":[{"key":"overlay.zlayer.dev/not-ready","effect":"NoExecute"}]}}`), false},
		{"a provider", patch(own, types.MergePatchType, `{"spec":{"providerID":"other"}}`), false},
		{"own Ready", condition(own, "Ready"), false},
		{"own addresses", patch(own, types.MergePatchType, `{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}`, "status"), false},
		{"own capacity", patch(own, types.MergePatchType, `{"status":{"capacity":{"cpu":"1000"}}}`, "status"), false},
		{"own annotation by way of status", patch(own, types.MergePatchType, `{"metadata":{"annotations":{"example.com/other":"x"}}}`, "status"), false},
		{"delete the own node", func(ctx context.Context) error {
			return client.CoreV1().Nodes().Delete(ctx, own, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
		}, false},
		{"create a node", func(ctx context.Context) error {
			_, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "new"}}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}, false},
		{"read secrets", func(ctx context.Context) error {
			_, err := client.CoreV1().Secrets("kube-system").List(ctx, metav1.ListOptions{})
			return err
		}, false},
		{"change a pod", func(ctx context.Context) error {
			pods, err := client.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{Limit: 1})
			if err != nil || len(pods.Items) == 0 {
				t.Errorf("list pods: %v", err)
				return nil
			}
			_, err = client.CoreV1().Pods("kube-system").Patch(ctx, pods.Items[0].Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"x"}}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			switch err := c.do(t.Context()); {
			case c.allowed && err != nil:
				t.Errorf("is refused: %v", err)
			case !c.allowed && err == nil:
				t.Error("is allowed")
			case !c.allowed && !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err):
				t.Errorf("fails for another reason: %v", err)
			}
		})
	}
}

// TestTokenOfNoPod checks that a token of the service account which belongs to
// no pod, and so to no node, changes nothing.
func TestTokenOfNoPod(t *testing.T) {
	client := clientWith(t, nil)
	body := fmt.Sprintf(`{"metadata":{"annotations":{%q:"x"}}}`, annotations+"public-key")
	_, err := client.CoreV1().Nodes().Patch(t.Context(), lab.nodes[1].name, types.MergePatchType, []byte(body), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
	if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
		t.Errorf("patch a node: %v, want it refused", err)
	}
}

// clientOf is a client with a token as the node's daemon has one.
func clientOf(t *testing.T, node string) kubernetes.Interface {
	t.Helper()
	pods, err := lab.daemonPods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := pods[node]
	return clientWith(t, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID})
}

func clientWith(t *testing.T, bound *authenticationv1.BoundObjectReference) kubernetes.Interface {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	answer, err := lab.client.CoreV1().ServiceAccounts(daemonNamespace).CreateToken(t.Context(), daemonName, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(lab.config)
	config.BearerToken = answer.Status.Token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}
