package dataplane

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

// NodeGuest is a guest of any node.
type NodeGuest struct {
	// Node is the one whose guest it is, Name is what that node calls it.
	Node, Name string
	// Addrs are its addresses, of its node's slices.
	Addrs []netip.Addr
}

// LocalGuests are the guests of this node, as the others have to know them: those
// that DNS can name. Of the others this node alone tells.
func (d *Dataplane) LocalGuests() []NodeGuest {
	return slices.DeleteFunc(d.localGuests(), func(guest NodeGuest) bool {
		_, err := d.naming.under(guest.Name, "guest")
		return err != nil
	})
}

func (d *Dataplane) localGuests() []NodeGuest {
	var local []NodeGuest
	for _, record := range d.guests.list() {
		local = append(local, NodeGuest{Node: d.cfg.Node, Name: record.Name, Addrs: slices.Clone(record.Addresses)})
	}
	return local
}

// guestsChanged tells the names, and whoever passes LocalGuests on. The caller
// holds d.setNodes.
func (d *Dataplane) guestsChanged() {
	d.tellNames()
	if d.cfg.OnGuests != nil {
		d.cfg.OnGuests()
	}
}

// tellNames tells all that follows from nodes and guests. What this node alone
// knows of is told from when it was adopted. The caller holds d.setNodes, and so
// this alone changes naming.places and what the zone has of these sources; most
// changes of nodes change no name, and wait for nobody.
func (d *Dataplane) tellNames() {
	n := d.naming
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
	places := placesOf(d.cfg.Node, own, nodes, peers)
	n.zone.SetReverse(cluster)
	n.server.SetClients(cluster)
	if running != nil {
		n.tellIfOther(sourceGuests, n.guestNames(places, nodes, guests, d.localGuests()))
	}
	n.setPlaces(places) // before the nodes, who may be the last that the zone waits for
	n.tellIfOther(sourceNodes, n.nodeNames(places, nodes))
}

// setPlaces takes over which node has which addresses, for pods and lost nodes.
func (n *naming) setPlaces(places places) {
	if slices.Equal(n.places.sorted, places.sorted) {
		return
	}
	n.lost.keep(places)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.places = places
	n.tellPodsLocked()
}

// tellIfOther tells all that a source has, unless it was told so last.
func (n *naming) tellIfOther(source string, names sourceNames) {
	n.note(problemSource{source + " that are left out", ""}, names.problems)
	owners := names.owners
	same := func(a, b dns.Entry) bool {
		return a.Name == b.Name && a.TTL == b.TTL && a.Reverse == b.Reverse && slices.Equal(a.Addrs, b.Addrs)
	}
	last, told := n.told[source]
	if told && maps.EqualFunc(last, owners, func(a, b []dns.Entry) bool { return slices.EqualFunc(a, b, same) }) {
		return
	}
	n.told[source] = owners
	n.tell(source, owners)
}

// sourceNames are all names of a source, by owner, and what has none.
type sourceNames struct {
	owners   map[string][]dns.Entry
	problems problems
}

// nodeNames are those of the nodes that are not refused. Of two whose names DNS
// does not tell apart, the older keeps it.
func (n *naming) nodeNames(places places, nodes []Node) sourceNames {
	owners := map[string][]dns.Entry{}
	var problems problems
	taken := map[string]string{}
	for _, node := range nodes {
		if len(places.slices[node.Name]) == 0 || owners[node.Name] != nil {
			continue
		}
		name, err := n.under(node.Name, "node")
		if other, is := taken[name]; err == nil && is {
			err = fmt.Errorf("node %s has the name", other)
		}
		if err != nil {
			problems.add(node.Name, "node %s has no name: %v", shorten(node.Name), err)
			continue
		}
		taken[name] = node.Name
		entry := dns.Entry{Name: name, TTL: nodeTTL, Reverse: true}
		for _, slice := range places.slices[node.Name] {
			entry.Addrs = append(entry.Addrs, nodeAddress(slice))
		}
		owners[node.Name] = []dns.Entry{entry}
	}
	return sourceNames{owners, problems}
}

// guestNames are those of the guests of all nodes: a name belongs to that of the
// oldest node. What others say of this node's is not taken.
func (n *naming) guestNames(places places, nodes []Node, others, local []NodeGuest) sourceNames {
	byNode := map[string][]NodeGuest{n.self: local}
	for _, guest := range others {
		if guest.Node != n.self {
			byNode[guest.Node] = append(byNode[guest.Node], guest)
		}
	}
	owners := map[string][]dns.Entry{}
	var problems problems
	taken := map[string]string{}
	for _, node := range nodes {
		if len(places.slices[node.Name]) == 0 {
			continue // it was refused, as is told elsewhere
		}
		for _, guest := range byNode[node.Name] {
			name, err := n.under(guest.Name, "guest")
			if other, is := taken[name]; err == nil && is {
				err = fmt.Errorf("a guest of node %s has the name", other)
			}
			addrs, outside := places.part(guest.Node, guest.Addrs)
			if err == nil && len(outside) > 0 {
				problems.add(node.Name, "guest %s of node %s lacks addresses: %s not of the node's slices", shorten(guest.Name), shorten(node.Name), theseAre(outside))
			}
			if err != nil {
				problems.add(node.Name, "guest %s of node %s has no name: %v", shorten(guest.Name), shorten(node.Name), err)
				continue
			}
			if len(addrs) > 0 {
				taken[name] = node.Name
				owners[name] = []dns.Entry{{Name: name, Addrs: addrs, TTL: nodeTTL, Reverse: true}}
			}
		}
		delete(byNode, node.Name) // another of that name was refused
	}
	return sourceNames{owners, problems}
}

// theseAre begins a sentence about addresses, of which there may be many.
func theseAre(addrs []netip.Addr) string {
	if more := len(addrs) - maxAddrsOfProblem; more > 0 {
		return fmt.Sprintf("%v and %d more are", addrs[:maxAddrsOfProblem], more)
	}
	return fmt.Sprintf("%v are", addrs)
}
