package dataplane

import (
	"net/netip"
	"slices"

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
// node only those that a sandbox has: one that is taken off its segment has no
// name from then on, however long Kubernetes tells of its pod. Call it only with
// Config.DNS.Pods.
func (d *Dataplane) SetPods(pods []ServicePod) {
	n := d.naming
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods.set(pods)
	n.tellPodsLocked()
}

// tellPodsLocked tells of all pods, once there was a set of them.
func (n *naming) tellPodsLocked() {
	if !n.pods.known {
		return
	}
	owners := make(map[string][]dns.Entry, len(n.pods.all))
	for key, pod := range n.pods.all {
		if entries := n.podEntries(key, pod); len(entries) > 0 {
			owners[key.owner()] = entries
		}
	}
	n.tellLocked(sourcePods, owners)
}

// tellPodsAtLocked tells of the pods that claim one of some addresses.
func (n *naming) tellPodsAtLocked(addrs []netip.Addr) {
	for _, addr := range addrs {
		for _, key := range n.pods.claimants[addr] {
			n.tellOneLocked(sourcePods, key.owner(), n.podEntries(key, n.pods.all[key]))
		}
	}
}

// podEntries are the names of a pod: its service's while it is ready, and its own
// as long as it has an address.
func (n *naming) podEntries(key podKey, pod ServicePod) []dns.Entry {
	service, err := namespacedName(pod.Namespace, pod.Service)
	if err != nil {
		return nil
	}
	addrs, _ := n.addrsAt(pod.Node, pod.Addrs)
	addrs = slices.DeleteFunc(addrs, func(addr netip.Addr) bool {
		_, here := n.at[addr]
		return pod.Node == n.self && !here || !n.pods.holds(key, addr)
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

// podKey tells a pod from all others, those of its name included.
type podKey struct{ namespace, name, uid string }

func (k podKey) owner() string { return k.namespace + "/" + k.name + "/" + k.uid }

// podClaim is a pod's on an address.
type podClaim struct {
	pod  podKey
	addr netip.Addr
}

// podTable knows which pod has an address, also while Kubernetes still tells of
// one that had it before. The zero value is ready.
type podTable struct {
	known     bool
	all       map[podKey]ServicePod
	claimants map[netip.Addr][]podKey
	holders   map[netip.Addr]podKey // of addresses that several claim
	left      map[podClaim]bool     // what sandboxes of this node gave back, as long as it is claimed
}

// set takes over the whole set.
func (t *podTable) set(pods []ServicePod) {
	before := *t
	*t = podTable{
		known: true, all: make(map[podKey]ServicePod, len(pods)), claimants: make(map[netip.Addr][]podKey, len(pods)),
		holders: map[netip.Addr]podKey{}, left: map[podClaim]bool{},
	}
	for _, pod := range pods {
		key := podKey{pod.Namespace, pod.Name, pod.UID}
		t.all[key] = pod
		for _, addr := range pod.Addrs {
			if addr = addr.Unmap(); !slices.Contains(t.claimants[addr], key) {
				t.claimants[addr] = append(t.claimants[addr], key)
			}
			if one := (podClaim{key, addr}); before.left[one] {
				t.left[one] = true
			}
		}
	}
	for addr, claimants := range t.claimants {
		if len(claimants) > 1 {
			t.settle(addr, before)
		}
	}
}

// settle finds who of several has an address: the one that claims it since the
// last set, else who had it then. Of several that came at once nobody knows.
func (t *podTable) settle(addr netip.Addr, before podTable) {
	var latest []podKey
	for _, key := range t.claimants[addr] {
		if !slices.Contains(before.claimants[addr], key) {
			latest = append(latest, key)
		}
	}
	holder, held := before.holders[addr]
	switch {
	case len(latest) == 1:
		t.holders[addr] = latest[0]
	case len(latest) == 0 && held:
		t.holders[addr] = holder
	}
}

// holds tells whether an address is the pod's, of those who claim it.
func (t *podTable) holds(key podKey, addr netip.Addr) bool {
	if t.left[podClaim{key, addr}] {
		return false
	}
	return len(t.claimants[addr]) == 1 || t.holders[addr] == key
}

// leave notes that the sandbox that had an address is off its segment: whoever
// claims it has it no more.
func (t *podTable) leave(node string, addr netip.Addr) {
	for _, key := range t.claimants[addr] {
		if t.all[key].Node == node {
			t.left[podClaim{key, addr}] = true
		}
	}
}
