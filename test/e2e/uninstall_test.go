//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestUninstall removes the network as the README says, and finds the nodes as
// they were before it was first installed. Then it installs the network again,
// on a node that forwards nothing, too, sees that it works, and removes it again.
// While there is no network, what pods have still to say to each other is no
// affair of the capture's.
func TestUninstall(t *testing.T) {
	set, err := lab.client.AppsV1().DaemonSets(daemonNamespace).Get(t.Context(), daemonName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := untouched(t)
	install := installation{image: set.Spec.Template.Spec.Containers[0].Image}
	t.Cleanup(func() {
		if err := install.add(context.Background()); err != nil {
			t.Error(err)
		}
		lab.capture.takeLeaks()
	})
	install.removeAndLook(t, before)
	host := lab.nodes[2]
	before[host.name] = forwardNothing(t, host)
	if err := install.add(t.Context()); err != nil {
		t.Fatal(err)
	}
	lab.capture.takeLeaks()
	t.Run("Again", func(t *testing.T) {
		pods := crew(t)
		askAll(t, everyWay(pods[2].place, pods[1].place, podPort, ownAddress(pods[2].place)))
	})
	install.removeAndLook(t, before)
}

// untouched returns what the nodes were like before the first network, by name.
func untouched(t *testing.T) map[string]string {
	t.Helper()
	kept, err := lab.client.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "zlayer-before", metav1.GetOptions{})
	if err != nil {
		t.Fatalf("what the nodes were like before, which make up keeps: %v", err)
	}
	return kept.Data
}

// forwardNothing makes a node a host that is no router, and returns what it is
// like then. The node becomes what it was with the test.
func forwardNothing(t *testing.T, n *node) string {
	t.Helper()
	was, err := n.state(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.setSysctls(context.Background(), was); err != nil {
			t.Error(err)
		}
	})
	if err := n.sysctl(t.Context(), "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0", "net.ipv6.conf."+underlay+".accept_ra=1"); err != nil {
		t.Fatal(err)
	}
	is, err := n.state(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return is
}

// state returns what a network could leave behind on the node.
func (n *node) state(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "../kind/state.sh", n.name)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("state of %s: %w: %s", n.name, err, &stderr)
	}
	return string(out), nil
}

// lacking returns the lines of a state that another lacks.
func lacking(state, other string) string {
	there := map[string]bool{}
	for line := range strings.Lines(other) {
		there[line] = true
	}
	var lines strings.Builder
	for line := range strings.Lines(state) {
		if !there[line] {
			lines.WriteString(line)
		}
	}
	return lines.String()
}

// setSysctls gives the kernel settings of a state back to the node. Some change
// others, but no second time.
func (n *node) setSysctls(ctx context.Context, state string) error {
	for range 2 {
		now, err := n.state(ctx)
		if err != nil {
			return err
		}
		var settings []string
		for line := range strings.Lines(lacking(state, now)) {
			if setting, is := strings.CutPrefix(strings.TrimSpace(line), "sysctl "); is {
				settings = append(settings, strings.Replace(setting, " = ", "=", 1))
			}
		}
		if len(settings) == 0 {
			return nil
		}
		if err := n.sysctl(ctx, settings...); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) sysctl(ctx context.Context, settings ...string) error {
	args := append([]string{"exec", n.name, "sysctl", "-qw"}, settings...)
	if out, err := exec.CommandContext(ctx, lab.Engine, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("set kernel settings of %s: %w: %s", n.name, err, out)
	}
	return nil
}

// installation is this network, as people install and remove it.
type installation struct{ image string }

// add applies the manifest, waits until all nodes serve, and gives the pods that
// were there another network.
func (i installation) add(ctx context.Context) error {
	m, err := lab.readManifest(lab.Manifest, i.image)
	if err != nil {
		return err
	}
	if err := m.apply(ctx); err != nil {
		return err
	}
	if err := lab.awaitServing(ctx); err != nil {
		return err
	}
	return lab.restartPods(ctx)
}

// removeAndLook deletes what the manifest has, tears the nodes down, and wants
// them as they were before. Kubelets and controllers take a moment.
func (i installation) removeAndLook(t *testing.T, before map[string]string) {
	t.Helper()
	if err := i.remove(t); err != nil {
		t.Fatal(err)
	}
	err := together(lab.nodes, func(n *node) error {
		return poll(t.Context(), patience, func(ctx context.Context) error {
			now, err := n.state(ctx)
			if err != nil {
				return err
			}
			if gone, left := lacking(before[n.name], now), lacking(now, before[n.name]); gone != "" || left != "" {
				return fmt.Errorf("%s was not left as it was; gone are\n%sand there are\n%s", n.name, gone, left)
			}
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
}

// remove follows the README's section Uninstall.
func (i installation) remove(t *testing.T) error {
	ctx := t.Context()
	m, err := lab.readManifest(lab.Manifest, i.image)
	if err != nil {
		return err
	}
	if err := m.remove(ctx); err != nil {
		return err
	}
	teardown, err := lab.readManifest(filepath.Join(filepath.Dir(lab.Manifest), "teardown.yaml"), i.image)
	if err != nil {
		return err
	}
	if err := teardown.apply(ctx); err != nil {
		return err
	}
	err = poll(ctx, patience, func(ctx context.Context) error {
		sets, err := lab.client.AppsV1().DaemonSets(teardownNamespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		return errors.Join(mapErrors(sets.Items, func(set appsv1.DaemonSet) error { return rolledOut(&set) })...)
	})
	if err == nil {
		t.Run("Token", func(t *testing.T) { tryTeardownTokens(t) })
	}
	return errors.Join(err, teardown.remove(ctx))
}

func mapErrors[T any](list []T, fn func(T) error) []error {
	var errs []error
	for _, one := range list {
		errs = append(errs, fn(one))
	}
	return errs
}

// restartPods deletes the pods of the cluster that are not of the host network,
// whose controllers make new ones.
func (c *cluster) restartPods(ctx context.Context) error {
	list, err := c.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, p := range list.Items {
		if p.Spec.HostNetwork || p.Namespace == testNamespace {
			continue
		}
		if err := c.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return nil
}
