package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// Forget removes what a Kube has written to a Node: its annotations, and the
// condition NetworkUnavailable if it is ours. Those of administrators stay, and
// the taint that kept pods away does not come back. It returns what it removed,
// also beside an error; a Node that holds nothing of ours, or is gone, is no
// error and is not written to. The kubeconfig is that of Config.
//
// No daemon may run: it would write them again.
func Forget(ctx context.Context, kubeconfig, node string) (removed []string, err error) {
	client, err := newAPI(kubeconfig)
	if err != nil {
		return nil, err
	}
	object, err := client.getNode(ctx, node)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read node %s: %w", node, err)
	}
	annotations, annotationsErr := client.forgetAnnotations(ctx, object)
	condition, conditionErr := client.forgetCondition(ctx, object)
	return slices.Concat(annotations, condition), errors.Join(annotationsErr, conditionErr)
}

// forgetAnnotations removes them whoever owns them: server-side apply would
// leave those that a backup has brought back.
func (a *api) forgetAnnotations(ctx context.Context, node *corev1.Node) (removed []string, err error) {
	gone := map[string]any{}
	for _, key := range published() {
		if _, is := node.Annotations[key]; is {
			gone[key] = nil
			removed = append(removed, fmt.Sprintf("annotation %s of node %s", key, node.Name))
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	// The UID keeps this from reaching another Node of the same name.
	patch := map[string]any{"metadata": map[string]any{"uid": node.UID, "annotations": gone}}
	if err := a.patchNode(ctx, node.Name, types.MergePatchType, patch); err != nil {
		return nil, fmt.Errorf("remove annotations of node %s: %w", node.Name, err)
	}
	return removed, nil
}

// forgetCondition removes the condition if it has our reason; the test keeps it
// from removing another that has taken its place meanwhile.
func (a *api) forgetCondition(ctx context.Context, node *corev1.Node) (removed []string, err error) {
	at := slices.IndexFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeNetworkUnavailable && c.Reason == conditionReason
	})
	if at < 0 {
		return nil, nil
	}
	path := fmt.Sprintf("/status/conditions/%d", at)
	patch := []map[string]any{
		{"op": "test", "path": path + "/reason", "value": conditionReason},
		{"op": "remove", "path": path},
	}
	if err := a.patchNode(ctx, node.Name, types.JSONPatchType, patch, "status"); err != nil {
		return nil, fmt.Errorf("remove condition %s of node %s: %w", corev1.NodeNetworkUnavailable, node.Name, err)
	}
	return []string{fmt.Sprintf("condition %s of node %s", corev1.NodeNetworkUnavailable, node.Name)}, nil
}
