package kube

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
)

// namedPod is a pod with ServiceLabel, of whichever node: what names need of it.
// Without addresses it has no name.
type namedPod = dataplane.ServicePod

// namedPodOf reads what a pod says. One of the host's network has the node's
// addresses, one that has ended gives its own back, and one that is on its end is
// not ready, whatever its last probe has said.
func namedPodOf(object metav1.Object) namedPod {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return namedPod{}
	}
	named := namedPod{Namespace: pod.Namespace, Name: pod.Name, Service: pod.Labels[ServiceLabel], Node: pod.Spec.NodeName, UID: string(pod.UID)}
	if pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return named
	}
	for _, ip := range pod.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			named.Addrs = append(named.Addrs, addr.Unmap())
		}
	}
	named.Ready = pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
	return named
}

// stripPod drops of a pod what namedPodOf does not read.
func stripPod(pod *corev1.Pod) {
	pod.Labels = map[string]string{ServiceLabel: pod.Labels[ServiceLabel]}
	pod.OwnerReferences, pod.Finalizers = nil, nil
	pod.Spec = corev1.PodSpec{NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork}
	conditions := slices.DeleteFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type != corev1.PodReady })
	pod.Status = corev1.PodStatus{Phase: pod.Status.Phase, PodIPs: pod.Status.PodIPs, Conditions: conditions}
}

// podsPace is the least time between two sets of pods: a rollout changes each of
// its pods several times.
const podsPace = 200 * time.Millisecond

// tellPods hands over the pods of the cluster's services, first when all of them
// are known and then whenever they have changed. In between, and at the end, it
// has them written down.
func (k *Kube) tellPods(ctx context.Context) {
	var told []namedPod
	var keep <-chan time.Time // while what lies on disk is older
	first := true
	for {
		select {
		case <-ctx.Done():
			if keep != nil {
				k.keepPods(told)
			}
			return
		case <-keep:
			keep = nil
			if !k.keepPods(told) {
				keep = time.After(podsKeep)
			}
			continue
		case <-k.podsChanged:
		}
		if now := k.listPods(); k.named.Synced() && (first || !slices.EqualFunc(now, told, equalPods)) {
			k.cfg.Pods(now)
			told, first = now, false
			if keep == nil && k.cfg.LastPods != nil {
				keep = time.After(podsKeep)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(podsPace):
		}
	}
}

// keepPods writes pods down, and logs why it cannot unless that was so before.
func (k *Kube) keepPods(pods []namedPod) bool {
	fault := ""
	if err := k.savePods(pods); err != nil {
		fault = err.Error()
	}
	if fault != "" && fault != k.keepFault {
		k.log.Warn("pods of services not kept for the next start, will try again", "op", "kube", "err", fault)
	}
	k.keepFault = fault
	return fault == ""
}

// listPods are the pods that have a service and addresses, in the order of their
// names.
func (k *Kube) listPods() []namedPod {
	pods := slices.DeleteFunc(k.named.List(), func(p namedPod) bool { return p.Service == "" || len(p.Addrs) == 0 })
	slices.SortFunc(pods, func(a, b namedPod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return pods
}

func equalPods(a, b namedPod) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.UID == b.UID && a.Service == b.Service && a.Node == b.Node &&
		a.Ready == b.Ready && slices.Equal(a.Addrs, b.Addrs)
}
