package dataplane

// PresumePods gives names to the pods of an earlier run: they are answered, and no
// other name is denied, since they are not all that there are. SetPods takes its
// place, and after that it does nothing.
func (d *Dataplane) PresumePods(pods []ServicePod) {
	n := d.naming
	n.setPods.Lock()
	defer n.setPods.Unlock()
	if n.pods.known { // as only SetPods changes
		return
	}
	changed := n.pods.compare(pods)
	n.mu.Lock()
	keys := n.pods.change(changed, n.hasLeft)
	n.mu.Unlock()
	n.tellPods(keys)
}

// tellPresumedLocked tells of the pods that are presumed, each by itself: the zone
// goes on waiting for all of them.
func (n *naming) tellPresumedLocked() {
	for key := range n.pods.all {
		n.tellPodLocked(key)
	}
}
