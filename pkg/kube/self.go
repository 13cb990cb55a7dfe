package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// NotReadyTaint keeps pods off a node until its overlay is up, if the node was
// registered with it.
const NotReadyTaint = prefix + "not-ready"

// conditionReason is what the Node's condition NetworkUnavailable names.
const conditionReason = "OverlayReady"

// ownNode is this node's Node.
type ownNode struct {
	uid         types.UID
	created     time.Time
	version     string
	annotations map[string]string // ours
	slices      []netip.Prefix
	address     netip.Addr // the first InternalIP; zero if there is none
	taint       int        // where NotReadyTaint stands, -1 if nowhere
	available   bool       // NetworkUnavailable is False
	keepalive   time.Duration
	fault       error // what is wrong with its slices
}

// ownNodeOf reads what a Node says of this node.
func ownNodeOf(object metav1.Object) ownNode {
	node, ok := object.(*corev1.Node)
	if !ok {
		return ownNode{fault: errNoMetadata}
	}
	strip(node)
	own := ownNode{uid: node.UID, created: node.CreationTimestamp.Time, version: node.ResourceVersion, annotations: node.Annotations}
	own.slices, own.fault = parseSlices(node.Spec.PodCIDRs)
	own.keepalive = memberOf(node).keepalive
	own.taint = slices.IndexFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == NotReadyTaint })
	own.available = slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionFalse
	})
	for _, address := range node.Status.Addresses {
		if address.Type != corev1.NodeInternalIP || own.address.IsValid() {
			continue
		}
		if parsed, err := netip.ParseAddr(address.Address); err == nil {
			own.address = parsed.Unmap()
		}
	}
	return own
}

// selfPass makes the own Node say what is true of this node, and tells of what
// is wrong with others. It writes only what differs.
func (k *Kube) selfPass(ctx context.Context) error {
	own, found := k.own.Get(k.cfg.Node)
	if !k.own.Synced() || !found || k.own.Fault() != nil {
		return nil // the mirror wakes us
	}
	services, refused := k.cfg.Services()
	ofPeers := slices.Concat(k.serviceProblems(refused), k.silentProblems())
	k.mu.Lock()
	k.ofPeers = ofPeers // metrics show it no later than Events do
	applied, mtu, problems := k.applied, k.mtu, slices.Concat(k.problems, ofPeers)
	k.mu.Unlock()
	var errs []error
	if applied {
		errs = append(errs, k.publish(ctx, own, k.facts(own, mtu, services)), k.clearTaint(ctx, own), k.setAvailable(ctx, own))
	}
	if k.lacksSlice(own) {
		problems = append(problems, problem{node: k.cfg.Node, uid: own.uid, reason: reasonNoSlice, text: "it has no podCIDR, so its pods get no address"})
	}
	errs = append(errs, k.tell(ctx, problems))
	err := errors.Join(errs...)
	k.mu.Lock()
	k.selfErr = err
	k.mu.Unlock()
	return err
}

// slicePatience is how old a Node may be without a slice before that is worth
// an Event: a controller gives it one in a moment.
const slicePatience = time.Minute

func (k *Kube) lacksSlice(own ownNode) bool {
	if len(own.slices) > 0 {
		return false
	}
	if left := slicePatience - time.Since(own.created); left > 0 {
		time.AfterFunc(left, func() { wake(k.selfChanged) })
		return false
	}
	return true
}

// writeState paces writes of one kind.
type writeState struct {
	version string // of the Node that made the write necessary
	last    time.Time
	after   time.Time
	pause   backoff
}

// calm is after how long without a write the next one is not delayed.
const calm = 10 * time.Minute

// write writes once for what a version of the own Node shows: until the mirror
// shows a later one, it does not show the write either. Whoever undoes our
// writes finds them repeated ever more slowly.
func (k *Kube) write(kind string, own ownNode, f func() error) error {
	state, now := k.writers[kind], time.Now()
	if state.version == own.version {
		return nil
	}
	if left := state.after.Sub(now); left > 0 {
		time.AfterFunc(left, func() { wake(k.selfChanged) })
		return nil
	}
	if now.Sub(state.last) > calm {
		state.pause = backoff{}
	}
	if err := f(); err != nil {
		return err
	}
	state.version, state.last, state.after = own.version, now, now.Add(state.pause.next())
	k.writers[kind] = state
	return nil
}

// published are the annotations of facts.
func published() []string {
	return []string{PublicKey, Endpoint, MTU, Services, Candidates, Relay, Guests}
}

// facts are the annotations that this node publishes of itself.
func (k *Kube) facts(own ownNode, mtu int, services []wireguard.NodeService) map[string]string {
	facts := map[string]string{PublicKey: k.cfg.PublicKey, MTU: strconv.Itoa(mtu)}
	for key, text := range map[string]string{
		Endpoint: k.endpoint(own), Services: formatServices(services), Candidates: k.candidates(own), Relay: k.cfg.Relay(), Guests: k.guests(),
	} {
		if text != "" {
			facts[key] = text
		}
	}
	return facts
}

// endpoint is where this node says that it is reached.
func (k *Kube) endpoint(own ownNode) string {
	if k.cfg.Endpoint == "" && own.address.IsValid() {
		return netip.AddrPortFrom(own.address, uint16(k.cfg.ListenPort)).String()
	}
	return k.cfg.Endpoint
}

// ownEndpoint is where the others reach this node.
func (k *Kube) ownEndpoint(own ownNode) string {
	return cmp.Or(own.annotations[ForceEndpoint], k.endpoint(own))
}

// publish writes this node's facts unless its Node shows them. Server-side apply
// owns these annotations and no other: one that is no longer published goes.
func (k *Kube) publish(ctx context.Context, own ownNode, facts map[string]string) error {
	shown := maps.Clone(own.annotations)
	maps.DeleteFunc(shown, func(key, _ string) bool { return !slices.Contains(published(), key) })
	if maps.Equal(facts, shown) {
		return nil
	}
	// The UID keeps this from reaching another Node of the same name.
	patch := map[string]any{
		"apiVersion": "v1", "kind": "Node",
		"metadata": map[string]any{"name": k.cfg.Node, "uid": own.uid, "annotations": facts},
	}
	return k.write("annotations", own, func() error {
		if err := k.api.patchNode(ctx, k.cfg.Node, types.ApplyPatchType, patch); err != nil {
			return fmt.Errorf("publish annotations of node %s: %w", k.cfg.Node, err)
		}
		k.log.Info("published", "op", "kube", "node", k.cfg.Node, "endpoint", facts[Endpoint], "mtu", facts[MTU])
		return nil
	})
}

// clearTaint removes our taint; the test keeps it from removing another that
// has taken its place meanwhile.
func (k *Kube) clearTaint(ctx context.Context, own ownNode) error {
	if own.taint < 0 {
		return nil
	}
	path := fmt.Sprintf("/spec/taints/%d", own.taint)
	patch := []map[string]any{
		{"op": "test", "path": path + "/key", "value": NotReadyTaint},
		{"op": "remove", "path": path},
	}
	return k.write("taint", own, func() error {
		if err := k.api.patchNode(ctx, k.cfg.Node, types.JSONPatchType, patch); err != nil {
			return fmt.Errorf("remove taint %s of node %s: %w", NotReadyTaint, k.cfg.Node, err)
		}
		k.log.Info("taint removed", "op", "kube", "node", k.cfg.Node)
		return nil
	})
}

// setAvailable says that the node's network is there. If somebody else has said
// so already, that is fine.
func (k *Kube) setAvailable(ctx context.Context, own ownNode) error {
	if own.available {
		return nil
	}
	now := metav1.Now()
	patch := map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
		Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse,
		Reason: conditionReason, Message: "the overlay is up", LastHeartbeatTime: now, LastTransitionTime: now,
	}}}}
	return k.write("condition", own, func() error {
		if err := k.api.patchNode(ctx, k.cfg.Node, types.StrategicMergePatchType, patch, "status"); err != nil {
			return fmt.Errorf("set condition %s of node %s: %w", corev1.NodeNetworkUnavailable, k.cfg.Node, err)
		}
		k.log.Info("network condition set", "op", "kube", "node", k.cfg.Node)
		return nil
	})
}
