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

// token is a client with a token as a node's pod of a service account has one.
// Nothing that it does is really written: admission takes part in dry runs.
type token struct{ client kubernetes.Interface }

func (k token) patch(node string, kind types.PatchType, body string, sub ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := k.client.CoreV1().Nodes().Patch(ctx, node, kind, []byte(body), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, sub...)
		return err
	}
}

func (k token) annotate(node, key string) func(context.Context) error {
	return k.patch(node, types.MergePatchType, fmt.Sprintf(`{"metadata":{"annotations":{%q:"x"}}}`, key))
}

func (k token) condition(node, kind string) func(context.Context) error {
	return k.patch(node, types.StrategicMergePatchType, fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":"False","reason":"Test"}]}}`, kind), "status")
}

func (k token) remove(node string) func(context.Context) error {
	return func(ctx context.Context) error {
		return k.client.CoreV1().Nodes().Delete(ctx, node, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
	}
}

func (k token) readSecrets(ctx context.Context) error {
	_, err := k.client.CoreV1().Secrets("kube-system").List(ctx, metav1.ListOptions{})
	return err
}

// attempt is something that a token allows, or not.
type attempt struct {
	name    string
	do      func(context.Context) error
	allowed bool
}

func tryToken(t *testing.T, attempts []attempt) {
	t.Helper()
	for _, a := range attempts {
		t.Run(a.name, func(t *testing.T) {
			switch err := a.do(t.Context()); {
			case a.allowed && err != nil:
				t.Errorf("is refused: %v", err)
			case !a.allowed && err == nil:
				t.Error("is allowed")
			case !a.allowed && !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err):
				t.Errorf("fails for another reason: %v", err)
			}
		})
	}
}

// TestTokens checks with the API server what the token of one node's daemon is
// good for.
func TestTokens(t *testing.T) {
	own, other := lab.nodes[1].name, lab.nodes[2].name
	token := tokenOf(t, daemonAccount(), own)
	tryToken(t, []attempt{
		{"read nodes", func(ctx context.Context) error {
			_, err := token.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
			return err
		}, true},
		{"own key", token.annotate(own, annotations+"public-key"), true},
		{"own endpoint", token.annotate(own, annotations+"endpoint"), true},
		{"own candidates", token.annotate(own, annotations+"candidates"), true},
		{"own relay", token.annotate(own, annotations+"relay"), true},
		{"own NetworkUnavailable", token.condition(own, "NetworkUnavailable"), true},

		{"another node's key", token.annotate(other, annotations+"public-key"), false},
		{"another node's candidates", token.annotate(other, annotations+"candidates"), false},
		{"another node's relay", token.annotate(other, annotations+"relay"), false},
		{"another node's NetworkUnavailable", token.condition(other, "NetworkUnavailable"), false},
		{"an administrator's endpoint", token.annotate(own, annotations+"force-endpoint"), false},
		{"an administrator's keepalive", token.annotate(own, annotations+"keepalive"), false},
		{"someone else's annotation", token.annotate(own, "example.com/other"), false},
		{"an annotation that ours begins like", token.annotate(own, "overlay.zlayer.dev.example.com/public-key"), false},
		{"a label", token.patch(own, types.MergePatchType, `{"metadata":{"labels":{"example.com/label":"x"}}}`), false},
		{"a label of ours", token.patch(own, types.MergePatchType, `{"metadata":{"labels":{"overlay.zlayer.dev/label":"x"}}}`), false},
		{"an owner", token.patch(own, types.MergePatchType, `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"x","uid":"x"}]}}`), false},
		{"a finalizer", token.patch(own, types.MergePatchType, `{"metadata":{"finalizers":["example.com/stay"]}}`), false},
		{"unschedulable", token.patch(own, types.MergePatchType, `{"spec":{"unschedulable":true}}`), false},
		{"a taint", token.patch(own, types.MergePatchType, `{"spec":{"taints":[{"key":"example.com/taint","effect":"NoSchedule"}]}}`), false},
		{"a taint of ours", token.patch(own, types.MergePatchType, `{"spec":{"taints":[{"key":"overlay.zlayer.dev/not-ready","effect":"NoExecute"}]}}`), false},
		{"a provider", token.patch(own, types.MergePatchType, `{"spec":{"providerID":"other"}}`), false},
		{"own Ready", token.condition(own, "Ready"), false},
		{"own addresses", token.patch(own, types.MergePatchType, `{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}`, "status"), false},
		{"own capacity", token.patch(own, types.MergePatchType, `{"status":{"capacity":{"cpu":"1000"}}}`, "status"), false},
		{"own annotation by way of status", token.patch(own, types.MergePatchType, `{"metadata":{"annotations":{"example.com/other":"x"}}}`, "status"), false},
		{"delete the own node", token.remove(own), false},
		{"create a node", func(ctx context.Context) error {
			_, err := token.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "new"}}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}, false},
		{"read secrets", token.readSecrets, false},
		{"change a pod", func(ctx context.Context) error {
			pods, err := token.client.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{Limit: 1})
			if err != nil || len(pods.Items) == 0 {
				t.Errorf("list pods: %v", err)
				return nil
			}
			_, err = token.client.CoreV1().Pods("kube-system").Patch(ctx, pods.Items[0].Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"x"}}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}, false},
	})
}

// tryTeardownTokens does the same with those of deploy/teardown.yaml, which takes
// away and gives nothing. A Node has all that goes for the time of the test.
func tryTeardownTokens(t *testing.T) {
	own, other := lab.nodes[1].name, lab.nodes[2].name
	token := tokenOf(t, teardownAccount(), own)
	admin := lab.client.CoreV1().Nodes()
	for _, node := range []string{own, other} {
		written := fmt.Sprintf(`{"metadata":{"annotations":{%q:"x",%q:"{}",%q:"1s"}}}`, annotations+"public-key", annotations+"services", annotations+"keepalive")
		if _, err := admin.Patch(t.Context(), node, types.MergePatchType, []byte(written), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		removed := fmt.Sprintf(`{"metadata":{"annotations":{%q:null,%q:null,%q:null}}}`, annotations+"public-key", annotations+"services", annotations+"keepalive")
		t.Cleanup(func() {
			if _, err := admin.Patch(context.Background(), node, types.MergePatchType, []byte(removed), metav1.PatchOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	without := func(node, key string) func(context.Context) error {
		return token.patch(node, types.MergePatchType, fmt.Sprintf(`{"metadata":{"annotations":{%q:null}}}`, key))
	}
	tryToken(t, []attempt{
		{"read a node", func(ctx context.Context) error {
			_, err := token.client.CoreV1().Nodes().Get(ctx, own, metav1.GetOptions{})
			return err
		}, true},
		{"no own key", without(own, annotations+"public-key"), true},
		{"no own services", without(own, annotations+"services"), true},

		{"another node's key", without(other, annotations+"public-key"), false},
		{"an own endpoint", token.annotate(own, annotations+"endpoint"), false},
		{"an administrator's keepalive", without(own, annotations+"keepalive"), false},
		{"someone else's annotation", without(own, "node.alpha.kubernetes.io/ttl"), false},
		{"own NetworkUnavailable", token.condition(own, "NetworkUnavailable"), false},
		{"no own Ready", token.patch(own, types.StrategicMergePatchType, `{"status":{"conditions":[{"type":"Ready","$patch":"delete"}]}}`, "status"), false},
		{"own capacity", token.patch(own, types.MergePatchType, `{"status":{"capacity":{"cpu":"1000"}}}`, "status"), false},
		{"a label", token.patch(own, types.MergePatchType, `{"metadata":{"labels":{"example.com/label":"x"}}}`), false},
		{"a taint of ours", token.patch(own, types.MergePatchType, `{"spec":{"taints":[{"key":"overlay.zlayer.dev/not-ready","effect":"NoExecute"}]}}`), false},
		{"delete the own node", token.remove(own), false},
		{"list nodes", func(ctx context.Context) error {
			_, err := token.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
			return err
		}, false},
		{"read secrets", token.readSecrets, false},
	})
}

// TestTokenOfNoPod checks that a token of the service account which belongs to
// no pod, and so to no node, changes nothing.
func TestTokenOfNoPod(t *testing.T) {
	token := newToken(t, daemonAccount(), nil)
	err := token.annotate(lab.nodes[1].name, annotations+"public-key")(t.Context())
	if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
		t.Errorf("patch a node: %v, want it refused", err)
	}
}

// account is a service account of pods with a label.
type account struct{ namespace, name, selector string }

func daemonAccount() account {
	return account{namespace: daemonNamespace, name: daemonName, selector: "app.kubernetes.io/name=overlayd"}
}

func teardownAccount() account {
	return account{namespace: teardownNamespace, name: "teardown", selector: "app.kubernetes.io/name=zlayer-teardown"}
}

// podsByNode returns the account's pods.
func (c *cluster) podsByNode(ctx context.Context, a account) (map[string]corev1.Pod, error) {
	list, err := c.client.CoreV1().Pods(a.namespace).List(ctx, metav1.ListOptions{LabelSelector: a.selector})
	if err != nil {
		return nil, err
	}
	pods := map[string]corev1.Pod{}
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			pods[p.Spec.NodeName] = p
		}
	}
	return pods, nil
}

// tokenOf is the token of an account's pod on a node.
func tokenOf(t *testing.T, a account, node string) token {
	t.Helper()
	pods, err := lab.podsByNode(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	p := pods[node]
	return newToken(t, a, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID})
}

func newToken(t *testing.T, a account, bound *authenticationv1.BoundObjectReference) token {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	answer, err := lab.client.CoreV1().ServiceAccounts(a.namespace).CreateToken(t.Context(), a.name, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(lab.config)
	config.BearerToken = answer.Status.Token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return token{client}
}
