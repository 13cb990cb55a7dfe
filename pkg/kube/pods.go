package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ErrNoPod means that the API server does not show the pod, or shows another of
// the same name.
var ErrNoPod = errors.New("no such pod")

// podTimeout bounds the one time that a pod is read because the watch has not
// shown it.
const podTimeout = 5 * time.Second

// PodID names a pod as a runtime does. Without a UID any pod of the name is
// meant.
type PodID struct {
	Namespace, Name, UID string
}

// String returns NAMESPACE/NAME.
func (p PodID) String() string { return p.Namespace + "/" + p.Name }

// Pod is what the overlay obeys of a pod.
type Pod struct {
	// Labels and Annotations are ours, those that start with overlay.zlayer.dev/.
	Labels, Annotations map[string]string
}

// pod is a pod as its metadata shows it.
type pod struct {
	Pod
	uid, hash string
}

func podOf(object metav1.Object) pod {
	strip(object)
	labels := maps.Clone(object.GetLabels())
	maps.DeleteFunc(labels, func(key, _ string) bool { return !kept(key) })
	annotations := object.GetAnnotations()
	hash := annotations[mirrorHash]
	delete(annotations, mirrorHash)
	return pod{Pod: Pod{Labels: labels, Annotations: annotations}, uid: string(object.GetUID()), hash: hash}
}

// is tells whether p is the pod with that UID. The runtime knows a static pod
// by its hash.
func (p pod) is(uid string) bool { return uid == "" || uid == p.uid || uid == p.hash }

// Pod finds a pod of this node. The watch may not have shown it yet: then it is
// read once.
//
// Errors: ErrNoPod, or why the API server did not answer. With both, trying
// again may help.
func (k *Kube) Pod(ctx context.Context, id PodID) (Pod, error) {
	if found, ok := k.pods.Get(id.String()); ok && found.is(id.UID) {
		return found.Pod, nil
	}
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	object, err := k.api.getPod(ctx, id.Namespace, id.Name)
	if apierrors.IsNotFound(err) {
		return Pod{}, fmt.Errorf("find pod %s: %w", id, ErrNoPod)
	}
	if err != nil {
		return Pod{}, fmt.Errorf("find pod %s: %w", id, err)
	}
	found := podOf(object)
	if !found.is(id.UID) {
		return Pod{}, fmt.Errorf("find pod %s: its UID is %s, not %s: %w", id, found.uid, id.UID, ErrNoPod)
	}
	return found.Pod, nil
}
