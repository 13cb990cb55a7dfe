package dataplane

import (
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

// ServicePod is a pod that belongs to a service, on any node.
type ServicePod struct {
	// Namespace, Name and Service are the pod's, in Kubernetes' words, Node where it runs.
	Namespace, Name, Service, Node string
	// UID tells it from another pod of the same name; it may be empty.
	UID string
	// Addrs are its addresses; none once it has ended, although Kubernetes may still tell of some.
	Addrs []netip.Addr
	// Ready says that the service's name may lead to it.
	Ready bool
}

// SetPods replaces all pods that belong to services, those of other nodes
// included. Only addresses in the slices of a pod's node are taken, and on this
// node only those that a sandbox of the pod's service has: one that is taken off
// its segment has no name from then on, however long or late Kubernetes tells of
// its pod. Call it only with Config.DNS.Pods.
func (d *Dataplane) SetPods(pods []ServicePod) {
	n := d.naming
	n.setPods.Lock()
	defer n.setPods.Unlock()
	changed := n.pods.compare(pods)
	n.mu.Lock()
	first := !n.pods.known
	keys := n.pods.change(changed, n.hasLeft)
	n.pods.known = true
	if first {
		n.tellPodsLocked()
	}
	n.mu.Unlock()
	if !first {
		n.tellPods(keys)
	}
}

// tellPods tells of some pods.
func (n *naming) tellPods(keys []podKey) {
	for some := range slices.Chunk(keys, toldAtOnce) { // sandboxes come and go meanwhile
		n.mu.Lock()
		for _, key := range some {
			n.tellPodLocked(key)
		}
		n.mu.Unlock()
	}
}

// toldAtOnce is of how many changed pods the zone is told while others wait.
const toldAtOnce = 16

// tellPodsLocked tells of all pods, as the whole source once there was a set of them.
func (n *naming) tellPodsLocked() {
	if !n.pods.known {
		n.tellPresumedLocked()
		return
	}
	owners := make(map[string][]dns.Entry, len(n.pods.all))
	for key := range n.pods.all {
		if entries := n.podEntries(key); len(entries) > 0 {
			owners[key.owner()] = entries
		}
	}
	n.tell(sourcePods, owners)
}

// tellPodsAtLocked tells of the pods that claim one of some addresses of this node.
func (n *naming) tellPodsAtLocked(addrs []netip.Addr) {
	for _, addr := range addrs {
		for _, key := range n.pods.claimants[nodeAddr{n.self, addr}] {
			n.tellPodLocked(key)
		}
	}
}

// tellPodLocked tells what a pod has now, which may be nothing.
func (n *naming) tellPodLocked(key podKey) {
	n.tellOne(sourcePods, key.owner(), n.podEntries(key))
}

// podEntries are the names of a pod: its service's while it is ready, and its own
// as long as it has an address.
func (n *naming) podEntries(key podKey) []dns.Entry {
	told := n.pods.all[key]
	if told == nil {
		return nil
	}
	pod := told.pod
	service, err := namespacedName(pod.Namespace, pod.Service)
	if err != nil {
		return nil
	}
	addrs, _ := n.places.part(pod.Node, pod.Addrs)
	addrs = slices.DeleteFunc(addrs, func(addr netip.Addr) bool {
		return pod.Node == n.self && !n.isAttached(pod, addr) || !n.pods.holds(key, addr)
	})
	if len(addrs) == 0 {
		return nil
	}
	var entries []dns.Entry
	if pod.Ready {
		entries = append(entries, dns.Entry{Name: service, Addrs: addrs, TTL: podTTL})
	}
	if own, err := label(pod.Name); err == nil {
		entries = append(entries, dns.Entry{Name: own + "." + service, Addrs: addrs, TTL: podTTL, Reverse: true})
	}
	return entries
}

// isAttached tells whether a sandbox of this node has a pod's address, and is of
// its service: else it is another's.
func (n *naming) isAttached(pod ServicePod, addr netip.Addr) bool {
	id, here := n.at[addr]
	return here && attach.Attachment{Segment: n.sandboxes[id].segment}.OfSegment(pod.Namespace+"/"+pod.Service)
}

// hasLeft tells whether the sandbox of a pod that claims an address is gone:
// Kubernetes tells of an address only after it was attached.
func (n *naming) hasLeft(pod ServicePod, addr netip.Addr) bool {
	_, here := n.at[addr]
	return n.adopted && pod.Node == n.self && !here
}
