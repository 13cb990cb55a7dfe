//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// ghost is a Node without a machine: what its daemon would write, the tests do.
type ghost struct {
	name        string
	annotations map[string]string // without our prefix
	slices      []string
}

// newKey returns the public key of a machine that nobody has.
func newKey(t *testing.T) string {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key.PublicKey().String()
}

// ghostSlices are the number-th slices of the cluster, for numbers that kind's
// small clusters do not reach.
func ghostSlices(number byte) []string {
	var ghosts []string
	for _, slice := range lab.nodes[0].slices {
		raw := slice.Addr().AsSlice()
		raw[slice.Bits()/8-1] = number
		addr, _ := netip.AddrFromSlice(raw)
		ghosts = append(ghosts, netip.PrefixFrom(addr, slice.Bits()).String())
	}
	return ghosts
}

// haunt creates the Node, and removes it with the test. Labels that DaemonSets
// ask for are missing, so that nothing is scheduled there.
func haunt(t *testing.T, g ghost) *corev1.Node {
	t.Helper()
	object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: g.name, Annotations: map[string]string{}}}
	object.Spec.PodCIDRs = g.slices
	if len(g.slices) > 0 {
		object.Spec.PodCIDR = g.slices[0]
	}
	for key, value := range g.annotations {
		object.Annotations[annotations+key] = value
	}
	created, err := lab.client.CoreV1().Nodes().Create(t.Context(), object, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exorcise(t, g.name) })
	return created
}

func exorcise(t *testing.T, name string) {
	t.Helper()
	err := lab.client.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

// awaitPeer waits until every daemon's peers satisfy want, and logs how long
// that took.
func awaitPeer(t *testing.T, what, name string, want func(peer shim.PeerStatus, is bool) error) {
	t.Helper()
	started := time.Now()
	err := together(lab.nodes, func(n *node) error {
		return poll(t.Context(), patience, func(ctx context.Context) error {
			status, err := n.status(ctx)
			if err != nil {
				return err
			}
			peer, is := peersOf(status)[name]
			if err := want(peer, is); err != nil {
				return fmt.Errorf("at %s: %w", n.name, err)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Logf("%s: everywhere after %v", what, time.Since(started).Round(time.Millisecond))
}

// hasPeer wants a peer with a key and slices.
func hasPeer(key string, prefixes []string) func(shim.PeerStatus, bool) error {
	return func(peer shim.PeerStatus, is bool) error {
		var allowed []string
		for _, prefix := range peer.AllowedIPs {
			allowed = append(allowed, prefix.String())
		}
		if slices.Sort(allowed); !is || peer.PublicKey != key || !slices.Equal(allowed, sorted(prefixes)) {
			return fmt.Errorf("peer %v: key %s, slices %v; want %s, %v", is, peer.PublicKey, allowed, key, prefixes)
		}
		return nil
	}
}

func noPeer(_ shim.PeerStatus, is bool) error {
	if is {
		return errors.New("it is still a peer")
	}
	return nil
}

// TestPeersFollowNodes has a Node appear, change its key, go, and come back
// under the same name as another machine with another slice.
func TestPeersFollowNodes(t *testing.T) {
	awaitServing(t)
	first, second, third := newKey(t), newKey(t), newKey(t)
	g := ghost{name: "ghost-follow", slices: ghostSlices(201), annotations: map[string]string{"public-key": first, "endpoint": "192.0.2.1:51820"}}
	haunt(t, g)
	awaitPeer(t, "a new node", g.name, hasPeer(first, g.slices))

	changeNode(t, g.name, func(object *corev1.Node) { object.Annotations[annotations+"public-key"] = second })
	awaitPeer(t, "a node's new key", g.name, hasPeer(second, g.slices))

	exorcise(t, g.name)
	awaitPeer(t, "a deleted node", g.name, noPeer)
	awaitServing(t) // with no peer of any name, or of none, but the cluster's

	g.slices, g.annotations["public-key"] = ghostSlices(202), third
	haunt(t, g)
	awaitPeer(t, "another machine of the same name", g.name, hasPeer(third, g.slices))
	exorcise(t, g.name)
	awaitPeer(t, "a deleted node", g.name, noPeer)
	awaitServing(t) // with no peer of any name, or of none, but the cluster's
}

// TestSliceComesLate has a Node get its slices after it has said its key, as
// those of new machines do. Until every daemon has looked at it, the controller
// manager is held; a later Node that is a peer shows that they have.
func TestSliceComesLate(t *testing.T) {
	awaitServing(t)
	release := holdControllerManager(t)
	key, laterKey := newKey(t), newKey(t)
	g := haunt(t, ghost{name: "ghost-late", annotations: map[string]string{"public-key": key, "endpoint": "192.0.2.2:51820"}})
	later := ghost{name: "ghost-later", slices: ghostSlices(203), annotations: map[string]string{"public-key": laterKey, "endpoint": "192.0.2.3:51820"}}
	haunt(t, later)
	awaitPeer(t, "a node that came after one without slices", later.name, hasPeer(laterKey, later.slices))
	awaitPeer(t, "a node without slices", g.Name, noPeer)
	release()
	eventually(t, "the controller manager gives the node slices", func(ctx context.Context) (err error) {
		g, err = lab.client.CoreV1().Nodes().Get(ctx, g.Name, metav1.GetOptions{})
		if err == nil && len(g.Spec.PodCIDRs) == 0 {
			err = errors.New("it has none")
		}
		return err
	})
	awaitPeer(t, "a node whose slices came late", g.Name, hasPeer(key, g.Spec.PodCIDRs))
}

// holdControllerManager stops its process until the returned function or the end
// of the test lets it go on.
func holdControllerManager(t *testing.T) (release func()) {
	t.Helper()
	pid := signal(t, lab.nodes[0], controllerManager, syscall.SIGSTOP)
	release = func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Errorf("let the controller manager go on: %v", err)
		}
	}
	t.Cleanup(release)
	return release
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

// TestNodeDeletedAndBack deletes a worker's Node, whose kubelet then registers
// it again: it gets a new slice, and its pods reach all others, without any
// daemon being restarted elsewhere.
func TestNodeDeletedAndBack(t *testing.T) {
	watchWire(t)
	awaitServing(t)
	victim, others := lab.nodes[2], lab.nodes[:2]
	before := daemonProcesses(t, others)
	drain(t, victim)
	if err := lab.client.CoreV1().Nodes().Delete(t.Context(), victim.name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	err := together(others, func(n *node) error {
		return poll(t.Context(), patience, func(ctx context.Context) error {
			status, err := n.status(ctx)
			if err != nil {
				return err
			}
			if _, is := peersOf(status)[victim.name]; is {
				return fmt.Errorf("%s is still a peer of %s", victim.name, n.name)
			}
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("peers gone everywhere after %v", time.Since(started).Round(time.Millisecond))

	rejoin(t, victim)
	awaitServing(t)
	pods := crew(t)
	var questions []question
	for _, from := range pods {
		for _, to := range pods {
			questions = append(questions, everyWay(from.place, to.place, podPort, ownAddress(from.place))...)
		}
	}
	askAll(t, questions)
	if after := daemonProcesses(t, others); !slices.Equal(before, after) {
		t.Errorf("daemons elsewhere were processes %v and are %v", before, after)
	}
}

// drain deletes the node's pods but those of DaemonSets.
func drain(t *testing.T, n *node) {
	t.Helper()
	list, err := lab.client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + n.name})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		if owner := metav1.GetControllerOf(&p); owner != nil && owner.Kind == "DaemonSet" {
			continue
		}
		if err := lab.client.CoreV1().Pods(p.Namespace).Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// rejoin restarts a node's kubelet, which registers its Node, and waits until
// that is ready.
func rejoin(t *testing.T, n *node) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), lab.Engine, "exec", n.name, "systemctl", "restart", "kubelet").CombinedOutput(); err != nil {
		t.Fatalf("restart kubelet of %s: %v: %s", n.name, err, out)
	}
	eventually(t, n.name+" is back", func(ctx context.Context) error {
		object, err := lab.client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if err := nodeReady(object); err != nil {
			return err
		}
		return n.learn(*object)
	})
	lab.capture.watch(n.slices)
	t.Logf("%s has the slices %v", n.name, n.slices)
}

func daemonProcesses(t *testing.T, nodes []*node) []int {
	t.Helper()
	var pids []int
	for _, n := range nodes {
		pid, err := n.daemonProcess()
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}
