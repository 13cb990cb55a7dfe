//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vishvananda/netlink"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// testNamespace holds everything that the tests create.
const testNamespace = "zlayer-e2e"

// patience bounds every wait for something that normally takes a moment; the
// machine may be slow and busy.
const patience = 2 * time.Minute

// cluster is the one under test.
type cluster struct {
	settings
	config  *rest.Config
	client  kubernetes.Interface
	nodes   []*node // the control plane first, then by name
	capture *capture
}

// node is a machine of the cluster, which is a container here.
type node struct {
	place
	// pid is the container's first process.
	pid          int
	controlPlane bool
	// slices are the pods' addresses on this node.
	slices []netip.Prefix
}

// path is where a file of the node is seen from here.
func (n *node) path(name string) string { return fmt.Sprintf("/proc/%d/root%s", n.pid, name) }

func newCluster(ctx context.Context, s settings) (*cluster, error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster (KUBECONFIG): %w", err)
	}
	config.QPS, config.Burst = 100, 200
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	c := &cluster{settings: s, config: config, client: client}
	if err := c.findNodes(ctx); err != nil {
		return nil, err
	}
	if err := c.makeNamespace(ctx); err != nil {
		return nil, err
	}
	c.capture, err = startCapture(c.nodes)
	return c, err
}

// close removes what the tests made, and fails if the wire showed what it must
// not.
func (c *cluster) close(ctx context.Context) error {
	removed := c.client.CoreV1().Namespaces().Delete(ctx, testNamespace, metav1.DeleteOptions{})
	return errors.Join(removed, c.capture.close())
}

// findNodes reads the nodes and finds their containers by name, which kind
// makes the same.
func (c *cluster) findNodes(ctx context.Context) error {
	list, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for _, object := range list.Items {
		n, err := c.findNode(ctx, object)
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
	}
	slices.SortFunc(c.nodes, func(a, b *node) int {
		if a.controlPlane != b.controlPlane {
			return map[bool]int{true: -1, false: 1}[a.controlPlane]
		}
		return strings.Compare(a.name, b.name)
	})
	if len(c.nodes) != 3 || !c.nodes[0].controlPlane || c.nodes[1].controlPlane {
		return fmt.Errorf("the tests want one control plane and two workers; the cluster has %d nodes", len(c.nodes))
	}
	return nil
}

func (c *cluster) findNode(ctx context.Context, object corev1.Node) (*node, error) {
	out, err := exec.CommandContext(ctx, c.Engine, "inspect", "--format", "{{.State.Pid}}", object.Name).Output()
	if err != nil {
		return nil, fmt.Errorf("find the container of node %s with %s: %w", object.Name, c.Engine, err)
	}
	n := &node{}
	if n.pid, err = strconv.Atoi(strings.TrimSpace(string(out))); err != nil {
		return nil, fmt.Errorf("find the container of node %s: %w", object.Name, err)
	}
	_, n.controlPlane = object.Labels["node-role.kubernetes.io/control-plane"]
	n.place = place{name: object.Name, ns: &netlab.NS{Name: object.Name, Path: fmt.Sprintf("/proc/%d/ns/net", n.pid)}}
	return n, n.learn(object)
}

// learn takes addresses and slices from the Node.
func (n *node) learn(object corev1.Node) error {
	n.addrs, n.slices = nil, nil
	for _, address := range object.Status.Addresses {
		if address.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(address.Address)
		if err != nil {
			return fmt.Errorf("node %s: %w", n.name, err)
		}
		n.addrs = append(n.addrs, addr)
	}
	for _, cidr := range object.Spec.PodCIDRs {
		slice, err := netip.ParsePrefix(cidr)
		if err != nil {
			return fmt.Errorf("node %s: %w", n.name, err)
		}
		n.slices = append(n.slices, slice)
	}
	if len(n.addrs) != 2 || len(n.slices) != 2 {
		return fmt.Errorf("the tests want both IP families; node %s has the addresses %v and the slices %v", n.name, n.addrs, n.slices)
	}
	return nil
}

// makeNamespace begins with an empty namespace, whatever an earlier run left.
func (c *cluster) makeNamespace(ctx context.Context) error {
	namespaces := c.client.CoreV1().Namespaces()
	if err := namespaces.Delete(ctx, testNamespace, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return poll(ctx, patience, func(ctx context.Context) error {
		_, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: testNamespace}}, metav1.CreateOptions{})
		return err
	})
}

// poll repeats try until it succeeds; after limit it returns the last error.
func poll(ctx context.Context, limit time.Duration, try func(context.Context) error) error {
	const interval = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // else it may only say that time is up
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %v: %w", limit, last)
		case <-time.After(interval):
		}
	}
}

// eventually fails the test unless try succeeds within patience.
func eventually(t *testing.T, what string, try func(context.Context) error) {
	t.Helper()
	if err := poll(t.Context(), patience, try); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// gateways are where the node's default routes lead: this machine's addresses
// on the nodes' network.
func (n *node) gateways() ([]netip.Addr, error) {
	handle, err := n.ns.Handle()
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	var found []netip.Addr
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := handle.RouteList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("list routes of %s: %w", n.name, err)
		}
		for _, route := range routes {
			isDefault := route.Dst == nil || route.Dst.IP.IsUnspecified()
			if addr, ok := netip.AddrFromSlice(route.Gw); ok && isDefault {
				found = append(found, addr.Unmap())
				break
			}
		}
	}
	if len(found) != 2 {
		return nil, fmt.Errorf("node %s has the default gateways %v, not one of each family", n.name, found)
	}
	return found, nil
}
