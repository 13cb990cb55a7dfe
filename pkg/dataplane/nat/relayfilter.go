package nat

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// relayVerdict says whether a relay may send to an address.
type relayVerdict uint8

const (
	relayAllowed relayVerdict = iota
	relayForbiddenPeer
	relayForbiddenSelf
)

// relayFilter says to whom a relay passes packets on; relayPasses says which. It never changes: another
// node set makes another one.
type relayFilter struct {
	external      []netip.Addr
	wireguardPort uint16

	peers map[netip.AddrPort]bool // published, and allowed
	addrs map[netip.Addr]bool     // of the same
	own   map[netip.Addr]bool     // the node's, and broadcasts of its networks
}

type relayFilterInput struct {
	external      []netip.Addr
	wireguardPort uint16
	local         []netip.Prefix // this node's addresses
	forbidden     []netip.Prefix // pods and services
	peers         []RelayPeer
}

// equal compares what changes while a relay runs.
func (in relayFilterInput) equal(other relayFilterInput) bool {
	return slices.Equal(in.local, other.local) && slices.Equal(in.forbidden, other.forbidden) &&
		slices.EqualFunc(in.peers, other.peers, RelayPeer.equal)
}

func newRelayFilter(in relayFilterInput) *relayFilter {
	f := &relayFilter{
		external:      in.external,
		wireguardPort: in.wireguardPort,
		peers:         make(map[netip.AddrPort]bool),
		addrs:         make(map[netip.Addr]bool),
		own:           make(map[netip.Addr]bool),
	}
	for _, addr := range in.external {
		f.own[addr] = true
	}
	for _, p := range in.local {
		f.own[p.Addr().Unmap().WithZone("")] = true
		for _, addr := range relayBroadcasts(p) {
			f.own[addr] = true
		}
	}
	forbidden := newPrefixSet(in.forbidden)
	for _, peer := range in.peers {
		forbidden.add(peer.Prefixes)
	}
	for _, peer := range in.peers {
		for _, addr := range peer.Addrs {
			f.add(netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), forbidden)
		}
	}
	return f
}

// prefixSet finds the prefixes that an address lies in by their lengths, of
// which there are few, so that it costs the same for each address of a large cluster.
type prefixSet struct {
	prefixes map[netip.Prefix]bool
	lengths  []int // that occur
}

func newPrefixSet(prefixes []netip.Prefix) *prefixSet {
	s := &prefixSet{prefixes: make(map[netip.Prefix]bool, len(prefixes))}
	s.add(prefixes)
	return s
}

func (s *prefixSet) add(prefixes []netip.Prefix) {
	for _, p := range prefixes {
		s.prefixes[p.Masked()] = true
		if !slices.Contains(s.lengths, p.Bits()) {
			s.lengths = append(s.lengths, p.Bits())
		}
	}
}

func (s *prefixSet) contains(addr netip.Addr) bool {
	return slices.ContainsFunc(s.lengths, func(bits int) bool {
		p, err := addr.Prefix(bits)
		return err == nil && s.prefixes[p]
	})
}

func (f *relayFilter) add(peer netip.AddrPort, forbidden *prefixSet) {
	addr := peer.Addr()
	if unreachable(peer) != "" || f.own[addr] || forbidden.contains(addr) {
		return
	}
	f.peers[peer] = true
	f.addrs[addr] = true
}

// relayBroadcasts are the addresses that mean all of a network, or its router.
func relayBroadcasts(p netip.Prefix) []netip.Addr {
	first := p.Masked().Addr()
	switch {
	case p.Addr().Is6() && p.Bits() < 127:
		return []netip.Addr{first.WithZone("")}
	case p.Addr().Is4() && p.Bits() < 31:
		bytes := first.As4()
		last := binary.BigEndian.Uint32(bytes[:]) | 1<<(32-p.Bits()) - 1
		binary.BigEndian.PutUint32(bytes[:], last)
		return []netip.Addr{first, netip.AddrFrom4(bytes)}
	}
	return nil
}

// permits says whether a permission for an address may be given: it is known
// without a port. What is sent is looked at again.
func (f *relayFilter) permits(addr netip.Addr) relayVerdict {
	addr = addr.Unmap()
	switch {
	case f.isExternal(addr), f.addrs[addr]:
		return relayAllowed
	case f.own[addr] || addr.IsLoopback():
		return relayForbiddenSelf
	}
	return relayForbiddenPeer
}

// sends says whether a packet may leave for an address that is not relayed by
// this relay.
func (f *relayFilter) sends(to netip.AddrPort) relayVerdict {
	switch {
	case f.peers[to]:
		return relayAllowed
	case f.isExternal(to.Addr()) && f.wireguardPort != 0 && to.Port() == f.wireguardPort:
		return relayAllowed
	case f.own[to.Addr()] || to.Addr().IsLoopback():
		return relayForbiddenSelf
	}
	return relayForbiddenPeer
}

func (f *relayFilter) isExternal(addr netip.Addr) bool { return slices.Contains(f.external, addr) }

// localPrefixes returns this machine's addresses with their networks.
func localPrefixes() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list this machine's addresses: %w", err)
	}
	var prefixes []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			prefixes = append(prefixes, p)
		}
	}
	return prefixes, nil
}
