package dataplane

import (
	"maps"
	"net/netip"
	"slices"
)

// podKey tells a pod from all others, those of its name included.
type podKey struct{ namespace, name, uid string }

func keyOf(pod ServicePod) podKey { return podKey{pod.Namespace, pod.Name, pod.UID} }

func (k podKey) owner() string { return k.namespace + "/" + k.name + "/" + k.uid }

// podClaim is a pod's on an address.
type podClaim struct {
	pod  podKey
	addr netip.Addr
}

// nodeAddr is an address as the pods of a node claim it. Those of other nodes may
// claim it as well, and change nothing: it is in the slices of one node alone.
type nodeAddr struct {
	node string
	addr netip.Addr
}

// toldPod is a pod of the last set.
type toldPod struct {
	pod    ServicePod
	claims []nodeAddr // its addresses, each once
	round  uint64     // of the last set that had it
}

// podTable knows which pod has an address, also while Kubernetes still tells of
// one that had it before. The zero value is ready.
type podTable struct {
	round uint64 // counts sets

	known     bool // there was a whole set
	all       map[podKey]*toldPod
	claimants map[nodeAddr][]podKey
	holders   map[nodeAddr]podKey // of addresses that several claim
	left      map[podClaim]bool   // what sandboxes of this node gave back, as long as it is claimed
}

// compare returns the pods that a set has otherwise than the last, nil for those
// that it has no more. It writes nothing that others read, so only the next change
// has to wait for it.
func (t *podTable) compare(pods []ServicePod) map[podKey]*ServicePod {
	t.round++
	changed := map[podKey]*ServicePod{}
	for _, pod := range pods {
		key := keyOf(pod)
		told := t.all[key]
		if told != nil {
			told.round = t.round
		}
		if told != nil && told.pod.equal(&pod) {
			delete(changed, key) // another of the key came before
			continue
		}
		other := pod // the set itself is not held on to
		changed[key] = &other
	}
	for key, told := range t.all {
		if told.round != t.round {
			changed[key] = nil
		}
	}
	return changed
}

func (p *ServicePod) equal(o *ServicePod) bool {
	return p.Namespace == o.Namespace && p.Name == o.Name && p.UID == o.UID && p.Service == o.Service && p.Node == o.Node &&
		p.Ready == o.Ready && slices.Equal(p.Addrs, o.Addrs)
}

// change takes over what compare returned, and returns the pods whose names may be
// others: those that changed, and all that claim an address of theirs. hasLeft
// tells who claims an address that his sandbox has left already.
func (t *podTable) change(changed map[podKey]*ServicePod, hasLeft func(ServicePod, netip.Addr) bool) []podKey {
	if t.all == nil {
		*t = podTable{
			round: t.round, known: t.known, all: make(map[podKey]*toldPod, len(changed)), claimants: make(map[nodeAddr][]podKey, len(changed)),
			holders: map[nodeAddr]podKey{}, left: map[podClaim]bool{},
		}
	}
	keys := make(map[podKey]bool, len(changed))
	var touched []nodeAddr            // those that anybody claims since now, or no more
	latest := map[nodeAddr][]podKey{} // who claims one since now
	for key, pod := range changed {
		keys[key] = true
		now := &toldPod{round: t.round}
		if pod != nil {
			now.pod, now.claims = *pod, claimsOf(pod)
		}
		var before []nodeAddr
		if told := t.all[key]; told != nil {
			before = told.claims
		}
		for _, at := range before {
			if !slices.Contains(now.claims, at) {
				t.unclaim(key, at)
				touched = append(touched, at)
			}
		}
		for _, at := range now.claims {
			if !slices.Contains(before, at) {
				t.claimants[at] = append(t.claimants[at], key)
				touched, latest[at] = append(touched, at), append(latest[at], key)
				if hasLeft(now.pod, at.addr) {
					t.left[podClaim{key, at.addr}] = true
				}
			}
		}
		t.all[key] = now
		if pod == nil {
			delete(t.all, key)
		}
	}
	for _, at := range touched {
		t.settle(at, latest[at])
		for _, key := range t.claimants[at] {
			keys[key] = true
		}
	}
	return slices.Collect(maps.Keys(keys))
}

func (t *podTable) unclaim(key podKey, at nodeAddr) {
	delete(t.left, podClaim{key, at.addr})
	t.claimants[at] = slices.DeleteFunc(t.claimants[at], func(other podKey) bool { return other == key })
	if len(t.claimants[at]) == 0 {
		delete(t.claimants, at)
	}
}

// settle finds who of several has an address: the one that claims it since now,
// else who had it before. Of several that came at once nobody knows.
func (t *podTable) settle(at nodeAddr, latest []podKey) {
	switch {
	case len(t.claimants[at]) < 2 || len(latest) > 1:
		delete(t.holders, at)
	case len(latest) == 1:
		t.holders[at] = latest[0]
	}
}

func claimsOf(pod *ServicePod) []nodeAddr {
	claims := make([]nodeAddr, 0, len(pod.Addrs))
	for _, addr := range pod.Addrs {
		if at := (nodeAddr{pod.Node, addr.Unmap()}); !slices.Contains(claims, at) {
			claims = append(claims, at)
		}
	}
	return claims
}

// holds tells whether an address is the pod's, of those who claim it.
func (t *podTable) holds(key podKey, addr netip.Addr) bool {
	if t.left[podClaim{key, addr}] {
		return false
	}
	at := nodeAddr{t.all[key].pod.Node, addr}
	return len(t.claimants[at]) == 1 || t.holders[at] == key
}

// leave notes that the sandbox that had an address is off its segment: whoever
// claims it has it no more.
func (t *podTable) leave(node string, addr netip.Addr) {
	for _, key := range t.claimants[nodeAddr{node, addr}] {
		t.left[podClaim{key, addr}] = true
	}
}

// leaveAll notes of all claims which are of those that have left.
func (t *podTable) leaveAll(hasLeft func(ServicePod, netip.Addr) bool) {
	for key, told := range t.all {
		for _, at := range told.claims {
			if hasLeft(told.pod, at.addr) {
				t.left[podClaim{key, at.addr}] = true
			}
		}
	}
}
