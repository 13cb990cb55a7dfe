//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestIdleWritesNothing waits in a cluster where nothing happens, and counts the
// daemons' requests that write. The API server counts requests by FlowSchema,
// so one that matches just these makes its metric tell.
func TestIdleWritesNothing(t *testing.T) {
	watchWire(t)
	awaitServing(t)
	writes := countRequests(t, "e2e-overlayd-writes", "create", "update", "patch", "delete", "deletecollection")
	reads := countRequests(t, "e2e-overlayd-reads", "get", "list", "watch")
	// The schemas are in force once they count: a token of the daemons' account
	// asks until it does.
	probe := newToken(t, daemonAccount(), nil).client
	eventually(t, "the API server counts", func(ctx context.Context) error {
		_, _ = probe.CoreV1().Nodes().Patch(ctx, "nobody", "application/merge-patch+json", []byte("{}"), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		_, _ = probe.CoreV1().Nodes().Get(ctx, "nobody", metav1.GetOptions{})
		w, err := writes(ctx)
		if err != nil {
			return err
		}
		r, err := reads(ctx)
		if err == nil && (w == 0 || r == 0) {
			err = fmt.Errorf("%v writes and %v reads", w, r)
		}
		return err
	})
	before, beforeReads := must(t, writes), must(t, reads)
	idle := time.NewTimer(lab.Idle)
	defer idle.Stop()
	select {
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	case <-idle.C:
	}
	written, read := must(t, writes)-before, must(t, reads)-beforeReads
	t.Logf("in %v: %v requests that write and %v that read, of 3 daemons", lab.Idle, written, read)
	if written > 0 {
		t.Errorf("%v requests that write in %v in which nothing happened", written, lab.Idle)
	}
}

func must(t *testing.T, count func(context.Context) (float64, error)) float64 {
	t.Helper()
	value, err := count(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// countRequests has the API server count what the daemons' service account asks
// by these verbs. The count starts some seconds after the call.
func countRequests(t *testing.T, name string, verbs ...string) func(context.Context) (float64, error) {
	t.Helper()
	everything := []flowcontrolv1.ResourcePolicyRule{{
		Verbs: verbs, APIGroups: []string{"*"}, Resources: []string{"*"}, ClusterScope: true, Namespaces: []string{"*"},
	}}
	schema := &flowcontrolv1.FlowSchema{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: flowcontrolv1.FlowSchemaSpec{
			PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "workload-high"},
			MatchingPrecedence:         500,
			DistinguisherMethod:        &flowcontrolv1.FlowDistinguisherMethod{Type: flowcontrolv1.FlowDistinguisherMethodByUserType},
			Rules: []flowcontrolv1.PolicyRulesWithSubjects{{
				Subjects: []flowcontrolv1.Subject{{
					Kind:           flowcontrolv1.SubjectKindServiceAccount,
					ServiceAccount: &flowcontrolv1.ServiceAccountSubject{Namespace: daemonNamespace, Name: daemonName},
				}},
				ResourceRules: everything,
			}},
		},
	}
	client := lab.client.FlowcontrolV1().FlowSchemas()
	if _, err := client.Create(t.Context(), schema, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return func(ctx context.Context) (float64, error) {
		page, err := lab.client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
		if err != nil {
			return 0, err
		}
		count, err := sumSamples(string(page), "apiserver_flowcontrol_dispatched_requests_total", fmt.Sprintf("flow_schema=%q", name))
		if err != nil {
			return 0, nil // nothing counted yet
		}
		return count, nil
	}
}
