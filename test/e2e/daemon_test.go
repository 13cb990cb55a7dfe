//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// Names of deploy/daemonset.yaml, and of what the daemons write.
const (
	daemonNamespace   = "zlayer-system"
	daemonName        = "overlayd"
	teardownNamespace = "zlayer-teardown"
	annotations       = "overlay.zlayer.dev/"
	notReadyTaint     = "overlay.zlayer.dev/not-ready"
	daemonSocket      = "/run/zlayer/overlayd.sock"
	metricsURL        = "http://127.0.0.1:9551/metrics"
	// controllerManager is its process, of whose name the kernel keeps 15 bytes.
	controllerManager = "kube-controller"
)

// status asks the node's daemon as `overlayd status` does, from outside of the
// node.
func (n *node) status(ctx context.Context) (*shim.StatusSnapshot, error) {
	client, err := shim.Dial(ctx, n.path(daemonSocket), shim.DialOptions{Attempts: 1, CallTimeout: 10 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("status of %s: %w", n.name, err)
	}
	defer func() { _ = client.Close() }()
	status, err := client.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("status of %s: %w", n.name, err)
	}
	return status, nil
}

// peersOf returns a daemon's working peers by the node's name.
func peersOf(status *shim.StatusSnapshot) map[string]shim.PeerStatus {
	peers := map[string]shim.PeerStatus{}
	for _, peer := range status.Peers {
		if peer.Problem == "" {
			peers[peer.Node] = peer
		}
	}
	return peers
}

// serving returns an error unless the daemon is ready and has exactly the other
// nodes of the cluster as peers.
func (n *node) serving(ctx context.Context) error {
	status, err := n.status(ctx)
	if err != nil {
		return err
	}
	if !status.Ready {
		return fmt.Errorf("daemon of %s waits for %v", n.name, status.Waiting)
	}
	peers := peersOf(status)
	for _, other := range lab.nodes {
		if _, is := peers[other.name]; is == (other == n) {
			return fmt.Errorf("daemon of %s has the peers %v", n.name, peers)
		}
	}
	if len(peers) != len(lab.nodes)-1 {
		return fmt.Errorf("daemon of %s has the peers %v", n.name, peers)
	}
	return nil
}

// awaitServing waits until all daemons serve.
func awaitServing(t *testing.T) {
	t.Helper()
	if err := lab.awaitServing(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) awaitServing(ctx context.Context) error {
	return together(c.nodes, func(n *node) error { return poll(ctx, patience, n.serving) })
}

// daemonProcess finds the node's daemon.
func (n *node) daemonProcess() (int, error) { return n.process(daemonName) }

// process finds a process of the host network on the node by its name, as this
// machine's kernel has it, so that it is found while the API server is away.
func (n *node) process(wanted string) (int, error) {
	node, err := os.Readlink(n.ns.Path)
	if err != nil {
		return 0, err
	}
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, file := range files {
		name, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(name)) != wanted {
			continue
		}
		dir := filepath.Dir(file)
		if link, err := os.Readlink(filepath.Join(dir, "ns/net")); err == nil && link == node {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("no process %s on %s", wanted, n.name)
}

// killDaemon kills it without warning and waits until its successor serves.
func killDaemon(t *testing.T, n *node) {
	t.Helper()
	pid := signal(t, n, daemonName, syscall.SIGKILL)
	eventually(t, "the killed daemon of "+n.name+" is back", func(ctx context.Context) error {
		if now, err := n.daemonProcess(); err != nil || now == pid {
			return errors.Join(err, fmt.Errorf("process %d", now))
		}
		return n.serving(ctx)
	})
}

// signal sends a signal to a process of the node, and returns which it was.
func signal(t *testing.T, n *node, name string, what syscall.Signal) int {
	t.Helper()
	pid, err := n.process(name)
	if err == nil {
		err = syscall.Kill(pid, what)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// restartDaemons does what `kubectl rollout restart` does, and waits.
func restartDaemons(t *testing.T) {
	t.Helper()
	if err := lab.restartDaemons(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) restartDaemons(ctx context.Context) error {
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, time.Now().Format(time.RFC3339Nano))
	_, err := c.client.AppsV1().DaemonSets(daemonNamespace).Patch(ctx, daemonName, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("restart daemons: %w", err)
	}
	if err := c.awaitRollout(ctx, daemonName); err != nil {
		return err
	}
	return c.awaitServing(ctx)
}

// awaitRollout waits until a DaemonSet of ours runs as it says.
func (c *cluster) awaitRollout(ctx context.Context, name string) error {
	err := poll(ctx, patience, func(ctx context.Context) error {
		set, err := c.client.AppsV1().DaemonSets(daemonNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return rolledOut(set)
	})
	if err != nil {
		return fmt.Errorf("roll out DaemonSet %s: %w", name, err)
	}
	return nil
}

func rolledOut(set *appsv1.DaemonSet) error {
	s := set.Status
	if s.ObservedGeneration < set.Generation || s.UpdatedNumberScheduled < s.DesiredNumberScheduled ||
		s.NumberAvailable < s.DesiredNumberScheduled || s.DesiredNumberScheduled == 0 {
		return fmt.Errorf("of %d pods, %d are up to date and %d available", s.DesiredNumberScheduled, s.UpdatedNumberScheduled, s.NumberAvailable)
	}
	return nil
}

// metric sums the samples of a metric whose labels contain all of want.
func (n *node) metric(ctx context.Context, name string, want ...string) (float64, error) {
	page, err := n.get(ctx, metricsURL)
	if err != nil {
		return 0, err
	}
	return sumSamples(page, name, want...)
}

// sumSamples reads Prometheus' text format.
func sumSamples(page, name string, want ...string) (float64, error) {
	sum, found := 0.0, false
	for lines := bufio.NewScanner(strings.NewReader(page)); lines.Scan(); {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "{") {
			continue
		}
		if slices.ContainsFunc(want, func(label string) bool { return !strings.Contains(rest, label) }) {
			continue
		}
		value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", name, err)
		}
		sum, found = sum+value, true
	}
	if !found {
		return 0, fmt.Errorf("no metric %s with %v", name, want)
	}
	return sum, nil
}

// TestNodesAreReady checks what an installed network looks like: the taint is
// gone, the condition set, and each daemon has the others as peers. It stays like
// that: a taint and a condition that are put back to what they were at the
// start of a node are mended.
func TestNodesAreReady(t *testing.T) {
	watchWire(t)
	awaitServing(t)
	for _, n := range lab.nodes {
		ready := func(ctx context.Context) error {
			object, err := lab.client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			return nodeReady(object)
		}
		eventually(t, "node "+n.name+" is ready", ready)
		// A patch of the taints would replace them all, the control plane's own too.
		changeNode(t, n.name, func(object *corev1.Node) {
			object.Spec.Taints = append(object.Spec.Taints, corev1.Taint{Key: notReadyTaint, Effect: corev1.TaintEffectPreferNoSchedule})
		})
		eventually(t, "node "+n.name+" is ready after it got the taint", ready)
		patch := `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"True","reason":"NoRoute"}]}}`
		if _, err := lab.client.CoreV1().Nodes().Patch(t.Context(), n.name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "node "+n.name+" is ready after its condition has changed", ready)
	}
}

// changeNode changes a Node as somebody else would.
func changeNode(t *testing.T, name string, change func(*corev1.Node)) {
	t.Helper()
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		object, err := lab.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(object)
		_, err = lab.client.CoreV1().Nodes().Update(t.Context(), object, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func nodeReady(object *corev1.Node) error {
	for _, taint := range object.Spec.Taints {
		if taint.Key == notReadyTaint {
			return fmt.Errorf("node %s has the taint %s", object.Name, taint.Key)
		}
	}
	want := map[corev1.NodeConditionType]corev1.ConditionStatus{
		corev1.NodeReady: corev1.ConditionTrue, corev1.NodeNetworkUnavailable: corev1.ConditionFalse,
	}
	for _, condition := range object.Status.Conditions {
		if status, ok := want[condition.Type]; ok && status == condition.Status {
			delete(want, condition.Type)
		}
	}
	if len(want) > 0 {
		return fmt.Errorf("node %s: of its conditions, these are missing: %v", object.Name, want)
	}
	return nil
}
