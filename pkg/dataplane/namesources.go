package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

// NodeGuest is a guest of any node.
type NodeGuest struct {
	// Node is the one whose guest it is, Name is what that node calls it.
	Node, Name string
	// Addrs are its addresses, of its node's slices.
	Addrs []netip.Addr
}

// LocalGuests are the guests of this node, as the others have to know them.
func (d *Dataplane) LocalGuests() []NodeGuest {
	var local []NodeGuest
	for _, record := range d.guests.list() {
		local = append(local, NodeGuest{Node: d.cfg.Node, Name: record.Name, Addrs: slices.Clone(record.Addresses)})
	}
	return local
}

// guestsChanged tells the names, and whoever passes LocalGuests on.
func (d *Dataplane) guestsChanged() {
	d.tellNames()
	if d.cfg.OnGuests != nil {
		d.cfg.OnGuests()
	}
}

// tellNames tells all that follows from nodes and guests. What this node alone
// knows of is told from when it was adopted.
func (d *Dataplane) tellNames() {
	n := d.naming
	n.mu.Lock()
	defer n.mu.Unlock()
	d.mu.Lock()
	nodes, peers, cluster, guests, running := d.nodes, d.peers, d.cluster, d.nodeGuests, d.parts
	d.mu.Unlock()
	at := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == d.cfg.Node })
	var own []netip.Prefix
	switch {
	case running != nil:
		own = running.slices
	case at >= 0:
		own = nodes[at].Slices
	}
	if at < 0 {
		nodes = append(slices.Clip(nodes), Node{Name: d.cfg.Node}) // it runs on without the set's word
	}
	before := n.places
	n.places = placesOf(d.cfg.Node, own, nodes, peers)
	n.lost.keep(n.places)
	n.zone.SetReverse(cluster)
	n.server.SetClients(cluster)
	var problems []string
	if running != nil {
		problems = append(problems, n.tellGuestsLocked(nodes, guests, d.LocalGuests())...)
	}
	if !slices.Equal(before.sorted, n.places.sorted) {
		n.tellPodsLocked() // before the nodes, who may be the last that the zone waits for
	}
	problems = append(problems, n.tellNodesLocked(nodes)...)
	for _, problem := range problems {
		if !slices.Contains(n.problems, problem) {
			n.log.Warn("name left out", "op", "names", "reason", problem)
		}
	}
	n.problems = problems
}

// tellNodesLocked tells of the nodes that are not refused. Of two whose names DNS
// does not tell apart, the older keeps it.
func (n *naming) tellNodesLocked(nodes []Node) (problems []string) {
	owners, taken := map[string][]dns.Entry{}, map[string]string{}
	for _, node := range nodes {
		if len(n.places.slices[node.Name]) == 0 || owners[node.Name] != nil {
			continue
		}
		name, err := n.under(node.Name, "node")
		if other, is := taken[name]; err == nil && is {
			err = fmt.Errorf("node %s has the name", other)
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("node %s has no name: %v", shorten(node.Name), err))
			continue
		}
		taken[name] = node.Name
		entry := dns.Entry{Name: name, TTL: nodeTTL, Reverse: true}
		for _, slice := range n.places.slices[node.Name] {
			entry.Addrs = append(entry.Addrs, nodeAddress(slice))
		}
		owners[node.Name] = []dns.Entry{entry}
	}
	n.tellLocked(sourceNodes, owners)
	return problems
}

// tellGuestsLocked tells of the guests of all nodes: the name belongs to that of
// the oldest node. What others say of this node's is not taken.
func (n *naming) tellGuestsLocked(nodes []Node, others, local []NodeGuest) (problems []string) {
	byNode := map[string][]NodeGuest{n.self: local}
	for _, guest := range others {
		if guest.Node != n.self {
			byNode[guest.Node] = append(byNode[guest.Node], guest)
		}
	}
	owners, taken := map[string][]dns.Entry{}, map[string]string{}
	for _, node := range nodes {
		if len(n.places.slices[node.Name]) == 0 {
			continue // it was refused, as is told elsewhere
		}
		for _, guest := range byNode[node.Name] {
			name, err := n.under(guest.Name, "guest")
			if other, is := taken[name]; err == nil && is {
				err = fmt.Errorf("a guest of node %s has the name", other)
			}
			addrs, outside := n.addrsAt(guest.Node, guest.Addrs)
			if err == nil && len(outside) > 0 {
				problems = append(problems, fmt.Sprintf("guest %s of node %s lacks addresses: %v are not of the node's slices", shorten(guest.Name), guest.Node, outside))
			}
			if err != nil {
				problems = append(problems, fmt.Sprintf("guest %s of node %s has no name: %v", shorten(guest.Name), guest.Node, err))
				continue
			}
			if len(addrs) > 0 {
				taken[name] = node.Name
				owners[name] = []dns.Entry{{Name: name, Addrs: addrs, TTL: nodeTTL, Reverse: true}}
			}
		}
		delete(byNode, node.Name) // another of that name was refused
	}
	n.tellLocked(sourceGuests, owners)
	return problems
}

// addrsAt parts addresses into those that a node has and all others.
func (n *naming) addrsAt(node string, addrs []netip.Addr) (in, outside []netip.Addr) {
	for _, addr := range addrs {
		if addr = addr.Unmap(); n.places.has(node, addr) {
			in = append(in, addr)
		} else {
			outside = append(outside, addr)
		}
	}
	return in, outside
}

// sandbox is one of this node, as its names need it.
type sandbox struct {
	service string
	segment string // as attach tells of it: of a long name there may be the digest alone
	addrs   []netip.Addr
}

func (p *parts) sandboxOf(a attach.Attachment) sandbox {
	return sandbox{p.services.nameOf(a), a.Segment, a.Addrs}
}

// tellAttachments tells of all sandboxes of this node.
func (d *Dataplane) tellAttachments(parts *parts) {
	n := d.naming
	n.mu.Lock()
	defer n.mu.Unlock()
	owners, here := map[string][]dns.Entry{}, map[string]bool{}
	var moved []netip.Addr
	for _, attached := range parts.attacher.List() {
		id := attached.Key.ID()
		here[id] = true
		moved = append(moved, n.placeLocked(id, parts.sandboxOf(attached))...)
		if entries := n.entriesOf(n.sandboxes[id]); len(entries) > 0 {
			owners[id] = entries
		}
	}
	for id := range n.sandboxes {
		if !here[id] {
			moved = append(moved, n.placeLocked(id, sandbox{})...)
		}
	}
	n.tellLocked(sourceAttachments, owners)
	if !n.adopted {
		n.adopted = true
		n.pods.leaveAll(n.hasLeft)
	}
	n.tellPodsAtLocked(moved)
}

// tellAttachment tells what one sandbox of this node has now, nothing if it is
// not attached.
func (d *Dataplane) tellAttachment(parts *parts, key attach.Key) {
	n := d.naming
	n.mu.Lock()
	defer n.mu.Unlock()
	id := key.ID()
	var now sandbox
	if attached, found := parts.attacher.Lookup(key); found {
		now = parts.sandboxOf(attached)
	}
	moved := n.placeLocked(id, now)
	n.tellOneLocked(sourceAttachments, id, n.entriesOf(now))
	n.tellPodsAtLocked(moved)
}

// placeLocked notes where a sandbox is, and that whoever had an address that it
// left has it no more. It returns the addresses of which that is news.
func (n *naming) placeLocked(id string, now sandbox) (moved []netip.Addr) {
	before := n.sandboxes[id]
	for _, addr := range before.addrs {
		if n.at[addr] == id && !slices.Contains(now.addrs, addr) {
			delete(n.at, addr)
			n.pods.leave(n.self, addr)
			moved = append(moved, addr)
		}
	}
	for _, addr := range now.addrs {
		if n.at[addr] != id || before.segment != now.segment {
			moved = append(moved, addr)
		}
		n.at[addr] = id
	}
	n.sandboxes[id] = now
	if len(now.addrs) == 0 {
		delete(n.sandboxes, id)
	}
	return moved
}

// entriesOf are the names of a sandbox, without those of Kubernetes' pods, which
// alone know who is ready.
func (n *naming) entriesOf(s sandbox) []dns.Entry {
	if n.cfg.Pods || s.service == "" || s.service == DefaultSegment {
		return nil
	}
	name, err := serviceName(s.service)
	if err != nil {
		return nil
	}
	return []dns.Entry{{Name: name, Addrs: s.addrs, TTL: podTTL, Reverse: true}}
}

// serviceName is the name of a service: NAME.NAMESPACE.svc, or NAME if it has no
// namespace.
func serviceName(service string) (string, error) {
	namespace, name, namespaced := strings.Cut(service, "/")
	if !namespaced {
		return label(service)
	}
	return namespacedName(namespace, name)
}

func namespacedName(namespace, name string) (string, error) {
	namespace, err := label(namespace)
	if err != nil {
		return "", err
	}
	if name, err = label(name); err != nil {
		return "", err
	}
	return name + "." + namespace + ".svc", nil
}
