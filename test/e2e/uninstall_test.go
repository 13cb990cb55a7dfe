//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestUninstall removes the network as the README says, installs it again, sees
// that it works, and removes it again: both times the nodes hold nothing of
// ours, and they are the same. While there is no network, what pods have still to
// say to each other is no affair of the capture's.
func TestUninstall(t *testing.T) {
	set, err := lab.client.AppsV1().DaemonSets(daemonNamespace).Get(t.Context(), daemonName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	install := installation{image: set.Spec.Template.Spec.Containers[0].Image}
	t.Cleanup(func() {
		if err := install.add(context.Background()); err != nil {
			t.Error(err)
		}
		lab.capture.takeLeaks()
	})
	first := install.removeAndLook(t)
	if err := install.add(t.Context()); err != nil {
		t.Fatal(err)
	}
	lab.capture.takeLeaks()
	t.Run("Again", func(t *testing.T) {
		pods := crew(t)
		askAll(t, everyWay(pods[2].place, pods[1].place, podPort, ownAddress(pods[2].place)))
	})
	second := install.removeAndLook(t)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("the nodes were not left as they were (-before +after)\n%s", diff)
	}
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

// removeAndLook deletes what the manifest has, tears the nodes down, and returns
// what they hold afterwards.
func (i installation) removeAndLook(t *testing.T) map[string][]string {
	t.Helper()
	if err := i.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for _, n := range lab.nodes {
		holds, err := n.inventory()
		if err != nil {
			t.Fatal(err)
		}
		found[n.name] = holds
		for _, thing := range holds {
			if strings.Contains(thing, "zlayer") || strings.Contains(thing, " zl-") || strings.Contains(thing, "protocol 122") {
				t.Errorf("%s still holds %s", n.name, thing)
			}
		}
	}
	return found
}

// remove follows the README's section Uninstall.
func (i installation) remove(ctx context.Context) error {
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
		sets, err := lab.client.AppsV1().DaemonSets("zlayer-teardown").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		return errors.Join(mapErrors(sets.Items, func(set appsv1.DaemonSet) error { return rolledOut(&set) })...)
	})
	return errors.Join(err, teardown.remove(ctx), lab.removeAnnotations(ctx))
}

// removeAnnotations does what the README's kubectl annotate does.
func (c *cluster) removeAnnotations(ctx context.Context) error {
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:null,%q:null,%q:null}}}`, annotations+"public-key", annotations+"endpoint", annotations+"mtu")
	return together(c.nodes, func(n *node) error {
		object, err := c.client.CoreV1().Nodes().Patch(ctx, n.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		if err != nil {
			return err
		}
		for key := range object.Annotations {
			if strings.HasPrefix(key, annotations) {
				return fmt.Errorf("node %s still has the annotation %s", n.name, key)
			}
		}
		return nil
	})
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

// inventory lists what on a node could be this network's: files, links, rules,
// routes, tables and sysctls.
func (n *node) inventory() ([]string, error) {
	var all []string
	for _, part := range []func() ([]string, error){n.files, n.netlinkObjects, n.tables, n.sysctls} {
		found, err := part()
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", n.name, err)
		}
		all = append(all, found...)
	}
	slices.Sort(all)
	return all, nil
}

// files lists the folders that a network's installation touches.
func (n *node) files() ([]string, error) {
	var found []string
	for _, folder := range []string{"/opt/cni", "/etc/cni", "/etc/zlayer", "/run/zlayer", "/run/wireguard", "/var/lib/zlayer"} {
		root := n.path(folder)
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			line := "file " + folder + strings.TrimPrefix(path, root)
			if entry.Type().IsRegular() {
				content, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %x", sha256.Sum256(content))
			}
			found = append(found, line)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// netlinkObjects lists links, rules, and routes of every table. Routes that the
// kernel makes by itself and forgets, such as those of router advertisements,
// are left out.
func (n *node) netlinkObjects() ([]string, error) {
	handle, err := n.ns.Handle()
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	links, err := handle.LinkList()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, link := range links {
		found = append(found, fmt.Sprintf("link %s %s %s", link.Type(), link.Attrs().Name, link.Attrs().Alias))
	}
	for _, ipFamily := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := handle.RuleList(ipFamily)
		if err != nil {
			return nil, err
		}
		for _, rule := range rules {
			found = append(found, "rule "+rule.String())
		}
		routes, err := handle.RouteListFiltered(ipFamily, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		for _, route := range routes {
			if route.Protocol != unix.RTPROT_RA && route.Type != unix.RTN_MULTICAST {
				found = append(found, fmt.Sprintf("route %v table %d protocol %d", route.Dst, route.Table, route.Protocol))
			}
		}
	}
	return found, nil
}

func (n *node) tables() ([]string, error) {
	file, err := n.ns.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	conn, err := nftables.New(nftables.WithNetNSFd(int(file.Fd())))
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, table := range tables {
		found = append(found, fmt.Sprintf("nftables table %d %s", table.Family, table.Name))
	}
	return found, nil
}

// sysctls reads those of the node's network that a network may change. The
// files show the network namespace of the thread that reads them.
func (n *node) sysctls() ([]string, error) {
	var found []string
	err := n.do(func() error {
		for _, pattern := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/*/*", "net/ipv6/conf/*/*", "net/bridge/*"} {
			files, err := filepath.Glob("/proc/sys/" + pattern)
			if err != nil {
				return err
			}
			for _, file := range files {
				content, err := os.ReadFile(file)
				if err != nil {
					continue // stable_secret cannot be read before it is set
				}
				found = append(found, fmt.Sprintf("sysctl %s = %s", strings.TrimPrefix(file, "/proc/sys/"), strings.TrimSpace(string(content))))
			}
		}
		return nil
	})
	return found, err
}
