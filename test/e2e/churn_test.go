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
		ours.add(churn(t, n, fmt.Sprintf("ours-%d", round), lab.Churn/rounds), 1)
		eventually(t, "the node holds what it held before", func(ctx context.Context) error { return settled(ctx, n, before) })
		withReferencePlugin(t, n, func() {
			reference.add(churn(t, n, fmt.Sprintf("ptp-%d", round), max(1, lab.Churn/rounds/4)), 1)
		})
	}
	printTimes(t, ours, reference)
}

// TestPodsAtOnce gives a node 50 pods at once, with our plugin and with the
// reference plugin in turns.
func TestPodsAtOnce(t *testing.T) {
	awaitServing(t)
	const pods = 50
	rounds := max(1, lab.Churn/100)
	n := lab.nodes[2]
	before := attachments(t, n)
	var ours, reference startTimes
	for round := range rounds {
		ours.add(burst(t, n, fmt.Sprintf("ours-%d", round), pods), 1)
		eventually(t, "the node holds what it held before", func(ctx context.Context) error { return settled(ctx, n, before) })
		withReferencePlugin(t, n, func() { reference.add(burst(t, n, fmt.Sprintf("ptp-%d", round), pods), 1) })
	}
	printTimes(t, ours, reference)
}

// churn has pods come and go, some at a time, and returns what their starts took.
func churn(t *testing.T, n *node, name string, pods int) startTimes {
	t.Helper()
	const atOnce = 10
	return measureStarts(t, n, func() {
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
	})
}

// burst starts pods all at once, and returns what their starts took.
func burst(t *testing.T, n *node, name string, pods int) startTimes {
	t.Helper()
	specs := make([]podSpec, pods)
	for i := range specs {
		specs[i] = podSpec{name: fmt.Sprintf("burst-%s-%d", name, i), node: n}
	}
	return measureStarts(t, n, func() {
		begin := time.Now()
		started, err := lab.startPods(t.Context(), specs)
		t.Logf("%s: %d pods at once, all running after %v", name, pods, time.Since(begin).Round(100*time.Millisecond))
		if err := errors.Join(err, lab.deletePods(context.Background(), started)); err != nil {
			t.Fatal(err)
		}
	})
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
