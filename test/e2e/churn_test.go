//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zlayer/zlayer-cni/test/audit"
)

// TestPodsComeAndGo creates and deletes pods on one node, many at a time, and
// audits the node. The same with the reference plugin ptp instead of ours, in
// turns, shows what the network costs a pod's start.
func TestPodsComeAndGo(t *testing.T) {
	watchWire(t)
	awaitServing(t)
	const rounds = 2
	n := lab.nodes[2]
	before := attachments(t, n)
	var ours, reference startTimes
	for round := range rounds {
		ours.add(churn(t, n, fmt.Sprintf("ours-%d", round), lab.Churn/rounds))
		eventually(t, "the node holds what it held before", func(ctx context.Context) error { return settled(ctx, n, before) })
		withReferencePlugin(t, n, func() {
			reference.add(churn(t, n, fmt.Sprintf("ptp-%d", round), max(1, lab.Churn/rounds/4)))
		})
	}
	t.Logf("mean per pod start      pods  sandbox made  running")
	t.Logf("zlayer-cni             %5.0f     %6.0f ms  %6.0f ms", ours.sandboxes, ours.sandbox(), ours.running())
	t.Logf("ptp and host-local     %5.0f     %6.0f ms  %6.0f ms", reference.sandboxes, reference.sandbox(), reference.running())
}

// startTimes are sums of a kubelet's metrics.
type startTimes struct {
	sandboxes, sandboxSeconds, pods, podSeconds float64
}

func (s *startTimes) add(o startTimes) {
	s.sandboxes += o.sandboxes
	s.sandboxSeconds += o.sandboxSeconds
	s.pods += o.pods
	s.podSeconds += o.podSeconds
}

// sandbox is the mean time to make a sandbox with its network, in milliseconds.
func (s *startTimes) sandbox() float64 { return s.sandboxSeconds / s.sandboxes * 1000 }

// running is the mean time from a kubelet's first sight of a pod until it runs,
// in milliseconds.
func (s *startTimes) running() float64 { return s.podSeconds / s.pods * 1000 }

// churn has n pods come and go, and returns what their starts took.
func churn(t *testing.T, n *node, name string, pods int) startTimes {
	t.Helper()
	const atOnce = 10
	before := kubeletTimes(t, n)
	started := time.Now()
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(atOnce)
	for i := range pods {
		group.Go(func() error {
			started, err := lab.startPods(ctx, []podSpec{{name: fmt.Sprintf("churn-%s-%d", name, i), node: n}})
			return errors.Join(err, lab.deletePods(context.WithoutCancel(ctx), started))
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d pods came and went in %v, %d at a time", name, pods, time.Since(started).Round(time.Second), atOnce)
	after := kubeletTimes(t, n)
	after.add(startTimes{-before.sandboxes, -before.sandboxSeconds, -before.pods, -before.podSeconds})
	return after
}

func kubeletTimes(t *testing.T, n *node) startTimes {
	t.Helper()
	page, err := lab.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", n.name, "proxy/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const run, start = "kubelet_runtime_operations_duration_seconds", "kubelet_pod_start_duration_seconds"
	sample := func(name string, labels ...string) float64 {
		value, _ := sumSamples(string(page), name, labels...) // a kubelet that has started no pod yet has none
		return value
	}
	const sandbox = `operation_type="run_podsandbox"`
	return startTimes{
		sandboxes: sample(run+"_count", sandbox), sandboxSeconds: sample(run+"_sum", sandbox),
		pods: sample(start + "_count"), podSeconds: sample(start + "_sum"),
	}
}

func attachments(t *testing.T, n *node) int {
	t.Helper()
	status, err := n.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(status.Attachments)
}

// settled audits the node, and wants as many attachments as before.
func settled(ctx context.Context, n *node, before int) error {
	status, err := n.status(ctx)
	if err != nil {
		return err
	}
	if len(status.Attachments) != before {
		return fmt.Errorf("%d attachments, want %d", len(status.Attachments), before)
	}
	return audit.Node(n.ns, *status)
}

// referenceRange is where the reference plugin takes addresses from.
const referenceRange = "10.249.0.0/24"

// withReferencePlugin replaces our plugin by ptp and host-local for the pods
// that the node's runtime starts during fn. What is chained behind ours is
// chained behind it, too.
func withReferencePlugin(t *testing.T, n *node, fn func()) {
	t.Helper()
	const folder = "/etc/cni/net.d/"
	text, err := os.ReadFile(n.path(folder + "10-zlayer.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		CNIVersion string            `json:"cniVersion"`
		Name       string            `json:"name"`
		Plugins    []json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	list.Name = "e2e-reference"
	list.Plugins[0] = json.RawMessage(`{"type": "ptp", "ipam": {"type": "host-local", "dataDir": "/run/e2e-reference",
		"ranges": [[{"subnet": "` + referenceRange + `"}], [{"subnet": "fd99::/112"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}`)
	if text, err = json.Marshal(list); err != nil {
		t.Fatal(err)
	}
	path := n.path(folder + "00-e2e-reference.conflist")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	remove := func() { _ = os.Remove(path) }
	t.Cleanup(remove)
	awaitPlugin(t, n, true)
	fn()
	remove()
	awaitPlugin(t, n, false)
}

// awaitPlugin starts pods until one has an address of the reference plugin, or
// has none.
func awaitPlugin(t *testing.T, n *node, reference bool) {
	t.Helper()
	attempt := 0
	eventually(t, fmt.Sprintf("the runtime uses the reference plugin: %v", reference), func(ctx context.Context) error {
		attempt++
		pods, err := lab.startPods(ctx, []podSpec{{name: fmt.Sprintf("which-%v-%d", reference, attempt), node: n}})
		if err == nil && netip.MustParsePrefix(referenceRange).Contains(pods[0].addr(false)) != reference {
			err = fmt.Errorf("a pod has the address %v", pods[0].addr(false))
		}
		return errors.Join(err, lab.deletePods(ctx, pods))
	})
}
