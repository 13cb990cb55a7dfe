//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// pod is one of the tests' pods, running.
type pod struct {
	place
	namespace string
	node      *node
	uid       types.UID
}

// podSpec is what tests choose about a pod.
type podSpec struct {
	name string
	// namespace is testNamespace if empty.
	namespace   string
	node        *node
	labels      map[string]string
	annotations map[string]string
	ports       []corev1.ContainerPort
}

func (s podSpec) home() string { return cmp.Or(s.namespace, testNamespace) }

// object is the Pod. It does nothing: what it should do, the tests do in its
// network namespace.
func (s podSpec) object(image string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: s.name, Namespace: s.home(), Labels: s.labels, Annotations: s.annotations},
		Spec: corev1.PodSpec{
			NodeName:                      s.node.name,
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			TerminationGracePeriodSeconds: new(int64(1)),
			AutomountServiceAccountToken:  new(false),
			EnableServiceLinks:            new(false),
			Containers: []corev1.Container{{
				Name: "idle", Image: image, Args: []string{"pause"}, Ports: s.ports,
			}},
		},
	}
}

// startPods creates pods, waits until all run, and removes them with the test.
func startPods(t *testing.T, specs ...podSpec) []*pod {
	t.Helper()
	pods, err := lab.startPods(t.Context(), specs)
	t.Cleanup(func() {
		if err := lab.deletePods(context.Background(), pods); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return pods
}

// startPods returns what it created, also beside an error.
func (c *cluster) startPods(ctx context.Context, specs []podSpec) ([]*pod, error) {
	var pods []*pod
	for _, spec := range specs {
		created, err := c.client.CoreV1().Pods(spec.home()).Create(ctx, spec.object(c.Image), metav1.CreateOptions{})
		if err != nil {
			return pods, fmt.Errorf("create pod %s: %w", spec.name, err)
		}
		pods = append(pods, &pod{place: place{name: spec.name}, namespace: spec.home(), node: spec.node, uid: created.UID})
	}
	return pods, together(pods, func(p *pod) error {
		return poll(ctx, patience, func(ctx context.Context) error { return c.learnPod(ctx, p) })
	})
}

// together calls fn for all at once.
func together[T any](all []T, fn func(T) error) error {
	errs := make([]error, len(all))
	var group sync.WaitGroup
	for i, one := range all {
		group.Go(func() { errs[i] = fn(one) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// learnPod finds addresses and namespace of a pod once it is ready.
func (c *cluster) learnPod(ctx context.Context, p *pod) error {
	object, err := c.client.CoreV1().Pods(p.namespace).Get(ctx, p.name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if !isReady(object) {
		return fmt.Errorf("pod %s is %s: %s", p.name, object.Status.Phase, c.complaints(ctx, object))
	}
	p.addrs = nil
	for _, ip := range object.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return fmt.Errorf("pod %s: %w", p.name, err)
		}
		p.addrs = append(p.addrs, addr)
	}
	if len(p.addrs) != 2 {
		return fmt.Errorf("pod %s has the addresses %v, not one of each family", p.name, p.addrs)
	}
	path, err := p.node.sandbox(string(p.uid))
	if err != nil {
		return err
	}
	p.ns = &netlab.NS{Name: p.name, Path: path}
	return nil
}

func isReady(object *corev1.Pod) bool {
	for _, condition := range object.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// complaints are the events of a pod, which say why it does not start.
func (c *cluster) complaints(ctx context.Context, object *corev1.Pod) string {
	events, err := c.client.CoreV1().Events(object.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "involvedObject.uid=" + string(object.UID) + ",type=Warning",
	})
	if err != nil || len(events.Items) == 0 {
		return "no warning so far"
	}
	return events.Items[len(events.Items)-1].Message
}

// sandbox returns the path of a pod's network namespace: that of a process of
// the pod's cgroup, if it is not the node's own.
func (n *node) sandbox(uid string) (string, error) {
	own, err := os.Readlink(n.ns.Path)
	if err != nil {
		return "", err
	}
	for _, pid := range processesOf(uid) {
		path := filepath.Join("/proc", pid, "ns/net")
		if link, err := os.Readlink(path); err == nil && link != own {
			return path, nil
		}
	}
	return "", fmt.Errorf("no process of pod %s on node %s", uid, n.name)
}

// processesOf lists a pod's processes. They are looked for by the pod's UID in
// the name of the cgroup, where systemd wants underscores.
func processesOf(uid string) []string {
	files, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	var pids []string
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			continue // ended meanwhile
		}
		if text := strings.ReplaceAll(string(content), "_", "-"); strings.Contains(text, "pod"+uid) {
			pids = append(pids, filepath.Base(filepath.Dir(file)))
		}
	}
	return pids
}

// deletePods deletes pods and waits until they are gone.
func (c *cluster) deletePods(ctx context.Context, pods []*pod) error {
	return together(pods, func(p *pod) error {
		client := c.client.CoreV1().Pods(p.namespace)
		return poll(ctx, patience, func(ctx context.Context) error {
			err := client.Delete(ctx, p.name, metav1.DeleteOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			if err == nil {
				err = fmt.Errorf("pod %s is not gone", p.name)
			}
			return err
		})
	})
}
