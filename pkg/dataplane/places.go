package dataplane

import (
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// places knows which node has which addresses. It is never written to.
type places struct {
	slices map[string][]netip.Prefix // of each node
	added  map[string][]netip.Prefix // of peers that are no nodes of the set
	sorted []place                   // of both; no two overlap
}

type place struct {
	slice netip.Prefix
	node  string
}

// placesOf are those of this node and of its peers.
func placesOf(self string, own []netip.Prefix, nodes []Node, peers []wireguard.Peer) places {
	p := places{slices: map[string][]netip.Prefix{}, added: map[string][]netip.Prefix{}}
	if len(own) > 0 {
		p.slices[self] = own
	}
	isNode := make(map[string]bool, len(nodes))
	for _, node := range nodes {
		isNode[node.Name] = true
	}
	for _, peer := range peers {
		if isNode[peer.Node] {
			p.slices[peer.Node] = peer.AllowedIPs
		} else {
			p.added[peer.Node] = peer.AllowedIPs
		}
	}
	for _, all := range []map[string][]netip.Prefix{p.slices, p.added} {
		for node, of := range all {
			for _, slice := range of {
				p.sorted = append(p.sorted, place{slice.Masked(), node})
			}
		}
	}
	slices.SortFunc(p.sorted, func(a, b place) int { return a.slice.Addr().Compare(b.slice.Addr()) })
	return p
}

// of is what a node or an added peer has.
func (p places) of(name string) []netip.Prefix {
	if slices := p.slices[name]; len(slices) > 0 {
		return slices
	}
	return p.added[name]
}

// nodeOf is the node, or the added peer, that has an address, empty for none.
func (p places) nodeOf(addr netip.Addr) string {
	after, _ := slices.BinarySearchFunc(p.sorted, addr, func(have place, addr netip.Addr) int {
		if have.slice.Addr().Compare(addr) <= 0 {
			return -1
		}
		return 1
	})
	if after > 0 && p.sorted[after-1].slice.Contains(addr) {
		return p.sorted[after-1].node
	}
	return ""
}

// has tells whether an address is a node's. What an added peer has it has not: who
// runs there is nobody's that could be named.
func (p places) has(node string, addr netip.Addr) bool {
	return slices.ContainsFunc(p.slices[node], func(slice netip.Prefix) bool { return slice.Contains(addr) })
}

// part parts addresses into those that a node has and all others.
func (p places) part(node string, addrs []netip.Addr) (in, outside []netip.Addr) {
	for _, addr := range addrs {
		if addr = addr.Unmap(); p.has(node, addr) {
			in = append(in, addr)
		} else {
			outside = append(outside, addr)
		}
	}
	return in, outside
}
