//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// manifests is where kubelets find static pods.
const manifests = "/etc/kubernetes/manifests/"

// TestAPIServerAway stops the API server. Streams go on, pods can be deleted,
// daemons that are killed meanwhile come up from what they know, and none
// crashes. A static pod stands for pods that are deleted: without an API server,
// a kubelet hears of no other.
func TestAPIServerAway(t *testing.T) {
	watchWire(t)
	awaitServing(t)
	pods := crew(t)
	worker := lab.nodes[1]
	static, forget := staticPod(t, worker)
	restarts, err := lab.daemonRestarts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	streams := append(startStreams(t, pods[2], pods[1]), startStreams(t, pods[2], pods[3])...)

	restore := stopAPIServer(t)
	end := time.Now().Add(lab.Outage)
	killDaemon(t, worker)
	killDaemon(t, lab.nodes[2])
	var questions []question
	for _, from := range pods {
		for _, to := range pods {
			questions = append(questions, everyWay(from.place, to.place, podPort, ownAddress(from.place))...)
		}
	}
	askAll(t, questions)
	forget()
	eventually(t, "a pod that is deleted meanwhile leaves the network", func(ctx context.Context) error {
		return attached(ctx, worker, static, false)
	})
	for time.Now().Before(end) {
		if err := together(lab.nodes, func(n *node) error { return n.serving(t.Context()) }); err != nil {
			t.Error(err)
			break
		}
		time.Sleep(time.Second)
	}
	askAll(t, questions)
	restore()

	for _, s := range streams {
		s.finish(t)
	}
	restarts[worker.name]++
	restarts[lab.nodes[2].name]++
	eventually(t, "no daemon restarted but the two that were killed", func(ctx context.Context) error {
		now, err := lab.daemonRestarts(ctx)
		if err == nil && !maps.Equal(restarts, now) {
			err = fmt.Errorf("restarts are %v, want %v", now, restarts)
		}
		return err
	})
	startPods(t, podSpec{name: "after-the-outage", node: worker})
}

// stopAPIServer takes its static pod away, until the returned function brings it
// back, which the end of the test does at the latest.
func stopAPIServer(t *testing.T) (restore func()) {
	t.Helper()
	here, there := lab.nodes[0].path(manifests+"kube-apiserver.yaml"), lab.nodes[0].path("/etc/kubernetes/e2e-kube-apiserver.yaml")
	if err := os.Rename(here, there); err != nil {
		t.Fatal(err)
	}
	answers := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return lab.client.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	}
	restore = func() {
		if err := os.Rename(there, here); errors.Is(err, os.ErrNotExist) {
			return // restored already
		} else if err != nil {
			t.Error(err)
		}
		if err := poll(context.Background(), patience, answers); err != nil {
			t.Errorf("the API server is not back: %v", err)
		}
	}
	t.Cleanup(restore)
	eventually(t, "the API server is away", func(ctx context.Context) error {
		if answers(ctx) == nil {
			return errors.New("it answers")
		}
		return nil
	})
	return restore
}

// staticPod has a kubelet run a pod of its own accord, until it is told to
// forget it. It returns the pod's address.
func staticPod(t *testing.T, n *node) (addr netip.Addr, forget func()) {
	t.Helper()
	object := podSpec{name: "static", node: n}.object(lab.Image)
	object.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	object.Spec.NodeName, object.Spec.Tolerations = "", nil
	text, err := yaml.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	path := n.path(manifests + "e2e-static.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	forget = func() {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	t.Cleanup(forget)
	eventually(t, "a static pod runs", func(ctx context.Context) error {
		mirror, err := lab.client.CoreV1().Pods(testNamespace).Get(ctx, "static-"+n.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !isReady(mirror) {
			return fmt.Errorf("it is %s: %s", mirror.Status.Phase, lab.complaints(ctx, mirror))
		}
		addr, err = netip.ParseAddr(mirror.Status.PodIP)
		if err != nil {
			return err
		}
		return attached(ctx, n, addr, true)
	})
	return addr, forget
}

// attached returns an error unless the daemon says that addr is attached, or is
// not.
func attached(ctx context.Context, n *node, addr netip.Addr, want bool) error {
	status, err := n.status(ctx)
	if err != nil {
		return err
	}
	is := false
	for _, a := range status.Attachments {
		is = is || slices.Contains(a.Addresses, addr)
	}
	if is != want {
		return fmt.Errorf("attachment of %v on %s: %v, want %v", addr, n.name, is, want)
	}
	return nil
}

// daemonRestarts returns how often each node's daemon has been restarted.
func (c *cluster) daemonRestarts(ctx context.Context) (map[string]int32, error) {
	pods, err := c.podsByNode(ctx, daemonAccount())
	if err != nil {
		return nil, err
	}
	counts := map[string]int32{}
	for name, p := range pods {
		counts[name] = restartsOf(p)
	}
	return counts, nil
}

func restartsOf(p corev1.Pod) int32 {
	var count int32
	for _, container := range p.Status.ContainerStatuses {
		count += container.RestartCount
	}
	return count
}
