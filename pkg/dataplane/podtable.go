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

// toldPod is a pod of the last set.
type toldPod struct {
	pod   ServicePod
	addrs []netip.Addr // its own, each once
	round uint64       // of the last set that had it
}

// podTable knows which pod has an address, also while Kubernetes still tells of
// one that had it before. The zero value is ready.
type podTable struct {
	round uint64 // counts sets

	known     bool
	all       map[podKey]*toldPod
	claimants map[netip.Addr][]podKey
	holders   map[netip.Addr]podKey // of addresses that several claim
	left      map[podClaim]bool     // what sandboxes of this node gave back, as long as it is claimed
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
	if !t.known {
		*t = podTable{
			round: t.round, known: true, all: make(map[podKey]*toldPod, len(changed)), claimants: make(map[netip.Addr][]podKey, len(changed)),
			holders: map[netip.Addr]podKey{}, left: map[podClaim]bool{},
		}
	}
	keys := make(map[podKey]bool, len(changed))
	var touched []netip.Addr            // those that anybody claims since now, or no more
	latest := map[netip.Addr][]podKey{} // who claims one since now
	for key, pod := range changed {
		keys[key] = true
		now := &toldPod{round: t.round}
		if pod != nil {
			now.pod, now.addrs = *pod, eachOnce(pod.Addrs)
		}
		var before []netip.Addr
		if told := t.all[key]; told != nil {
			before = told.addrs
		}
		for _, addr := range before {
			if !slices.Contains(now.addrs, addr) {
				t.unclaim(key, addr)
				touched = append(touched, addr)
			}
		}
		for _, addr := range now.addrs {
			if !slices.Contains(before, addr) {
				t.claimants[addr] = append(t.claimants[addr], key)
				touched, latest[addr] = append(touched, addr), append(latest[addr], key)
				if hasLeft(now.pod, addr) {
					t.left[podClaim{key, addr}] = true
				}
			}
		}
		t.all[key] = now
		if pod == nil {
			delete(t.all, key)
		}
	}
	for _, addr := range touched {
		t.settle(addr, latest[addr])
		for _, key := range t.claimants[addr] {
			keys[key] = true
		}
	}
	return slices.Collect(maps.Keys(keys))
}

func (t *podTable) unclaim(key podKey, addr netip.Addr) {
	delete(t.left, podClaim{key, addr})
	t.claimants[addr] = slices.DeleteFunc(t.claimants[addr], func(other podKey) bool { return other == key })
	if len(t.claimants[addr]) == 0 {
		delete(t.claimants, addr)
	}
}

// settle finds who of several has an address: the one that claims it since now,
// else who had it before. Of several that came at once nobody knows.
func (t *podTable) settle(addr netip.Addr, latest []podKey) {
	switch {
	case len(t.claimants[addr]) < 2 || len(latest) > 1:
		delete(t.holders, addr)
	case len(latest) == 1:
		t.holders[addr] = latest[0]
	}
}

func eachOnce(addrs []netip.Addr) []netip.Addr {
	once := make([]netip.Addr, 0, len(addrs))
	for _, addr := range addrs {
		if addr = addr.Unmap(); !slices.Contains(once, addr) {
			once = append(once, addr)
		}
	}
	return once
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
		if t.all[key].pod.Node == node {
			t.left[podClaim{key, addr}] = true
		}
	}
}

// leaveAll notes of all claims which are of those that have left.
func (t *podTable) leaveAll(hasLeft func(ServicePod, netip.Addr) bool) {
	for key, told := range t.all {
		for _, addr := range told.addrs {
			if hasLeft(told.pod, addr) {
				t.left[podClaim{key, addr}] = true
			}
		}
	}
}
