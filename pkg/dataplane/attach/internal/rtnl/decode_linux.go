package rtnl

import (
	"bytes"
	"encoding/binary"
	"iter"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// nlaTypeMask takes the flags off an attribute's type.
const nlaTypeMask = 0x3fff

// Attrs walks over attributes and ends at the first that is malformed.
func Attrs(data []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(data) >= unix.SizeofNlAttr {
			length := int(binary.NativeEndian.Uint16(data))
			attr := binary.NativeEndian.Uint16(data[2:]) & nlaTypeMask
			if length < unix.SizeofNlAttr || length > len(data) || !yield(attr, data[unix.SizeofNlAttr:length]) {
				return
			}
			data = data[min(align(length), len(data)):]
		}
	}
}

// Link is a network interface as the kernel describes it.
type Link struct {
	Family uint8
	Index  int
	Flags  uint32
	Name   string
	MAC    net.HardwareAddr
	MTU    int
	Group  uint32
	Alias  string
	// Master is the index of the bridge it is a port of, 0 for none.
	Master int
	// Peer is the index of a veth's other half, in that half's namespace.
	Peer int
	// PeerNS is the number of that namespace, -1 if it is this one.
	PeerNS int
	// Kind is "veth", "bridge" and so on, empty for hardware.
	Kind string
	// Bridge is set for bridges.
	Bridge BridgeFlags
	// Port is set for ports of bridges.
	Port PortFlags
	// Forwarding tells whether a bridge passes packets to and from its port.
	Forwarding bool
}

// BridgeFlags are settings of a bridge.
type BridgeFlags struct {
	STP      bool
	Snooping bool
}

// PortFlags are settings of a bridge's port.
type PortFlags struct {
	Isolated       bool
	Learning       bool
	UnicastFlood   bool
	MulticastFlood bool
	BroadcastFlood bool
}

// Up tells whether the link is up by will, carrier or not.
func (l Link) Up() bool { return l.Flags&unix.IFF_UP != 0 }

// ParseLink reads a message about a link.
func ParseLink(m Message) (Link, bool) {
	if (m.Type != unix.RTM_NEWLINK && m.Type != unix.RTM_DELLINK) || len(m.Data) < unix.SizeofIfInfomsg {
		return Link{}, false
	}
	l := Link{
		Family: m.Data[0],
		Index:  int(int32(binary.NativeEndian.Uint32(m.Data[4:]))),
		Flags:  binary.NativeEndian.Uint32(m.Data[8:]),
		PeerNS: -1,
	}
	for attr, v := range Attrs(m.Data[unix.SizeofIfInfomsg:]) {
		switch attr {
		case unix.IFLA_IFNAME:
			l.Name = text(v)
		case unix.IFLA_ADDRESS:
			l.MAC = bytes.Clone(v)
		case unix.IFLA_MTU:
			l.MTU = number(v)
		case unix.IFLA_GROUP:
			l.Group = uint32(number(v))
		case unix.IFLA_IFALIAS:
			l.Alias = text(v)
		case unix.IFLA_MASTER:
			l.Master = number(v)
		case unix.IFLA_LINK:
			l.Peer = number(v)
		case unix.IFLA_LINK_NETNSID:
			l.PeerNS = signed(v)
		case unix.IFLA_LINKINFO:
			l.parseInfo(v)
		}
	}
	return l, true
}

func (l *Link) parseInfo(data []byte) {
	var info, portInfo []byte
	var portKind string
	for attr, v := range Attrs(data) {
		switch attr {
		case unix.IFLA_INFO_KIND:
			l.Kind = text(v)
		case unix.IFLA_INFO_DATA:
			info = v
		case unix.IFLA_INFO_SLAVE_KIND:
			portKind = text(v)
		case unix.IFLA_INFO_SLAVE_DATA:
			portInfo = v
		}
	}
	if l.Kind == "bridge" {
		for attr, v := range Attrs(info) {
			switch attr {
			case unix.IFLA_BR_STP_STATE:
				l.Bridge.STP = number(v) != 0
			case unix.IFLA_BR_MCAST_SNOOPING:
				l.Bridge.Snooping = number(v) != 0
			}
		}
	}
	if portKind == "bridge" {
		l.Port, l.Forwarding = parsePort(portInfo), forwarding(portInfo)
	}
}

func forwarding(data []byte) bool {
	const stateForwarding = 3 // BR_STATE_FORWARDING of linux/if_bridge.h
	for attr, v := range Attrs(data) {
		if attr == unix.IFLA_BRPORT_STATE {
			return number(v) == stateForwarding
		}
	}
	return false
}

func parsePort(data []byte) PortFlags {
	var p PortFlags
	for attr, v := range Attrs(data) {
		on := number(v) != 0
		switch attr {
		case unix.IFLA_BRPORT_ISOLATED:
			p.Isolated = on
		case unix.IFLA_BRPORT_LEARNING:
			p.Learning = on
		case unix.IFLA_BRPORT_UNICAST_FLOOD:
			p.UnicastFlood = on
		case unix.IFLA_BRPORT_MCAST_FLOOD:
			p.MulticastFlood = on
		case unix.IFLA_BRPORT_BCAST_FLOOD:
			p.BroadcastFlood = on
		}
	}
	return p
}

// Addr is an address of a link.
type Addr struct {
	Link   int
	Prefix netip.Prefix
	Scope  uint8
	// Flags are unix.IFA_F_*.
	Flags uint32
}

// ParseAddr reads a message about an address.
func ParseAddr(m Message) (Addr, bool) {
	if (m.Type != unix.RTM_NEWADDR && m.Type != unix.RTM_DELADDR) || len(m.Data) < unix.SizeofIfAddrmsg {
		return Addr{}, false
	}
	a := Addr{Link: int(binary.NativeEndian.Uint32(m.Data[4:])), Scope: m.Data[3], Flags: uint32(m.Data[2])}
	var addr netip.Addr
	for attr, v := range Attrs(m.Data[unix.SizeofIfAddrmsg:]) {
		switch attr {
		case unix.IFA_LOCAL: // the own address of IPv4, and of IPv6 with a peer
			addr, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS:
			if !addr.IsValid() {
				addr, _ = netip.AddrFromSlice(v)
			}
		case unix.IFA_FLAGS:
			a.Flags = uint32(number(v))
		}
	}
	a.Prefix = netip.PrefixFrom(addr, int(m.Data[1]))
	return a, addr.IsValid()
}

// Route is a route with one next hop.
type Route struct {
	Dst      netip.Prefix
	Gateway  netip.Addr
	Source   netip.Addr
	Link     int
	Table    int
	Protocol uint8
	Type     uint8
	// Flags are unix.RTNH_F_*.
	Flags uint32
	// MTU is the route's own, 0 for its link's.
	MTU int
	// Metric is the route's priority.
	Metric int
}

// ParseRoute reads a message about a route.
func ParseRoute(m Message) (Route, bool) {
	if (m.Type != unix.RTM_NEWROUTE && m.Type != unix.RTM_DELROUTE) || len(m.Data) < unix.SizeofRtMsg {
		return Route{}, false
	}
	r := Route{
		Table: int(m.Data[4]), Protocol: m.Data[5], Type: m.Data[7],
		Flags: binary.NativeEndian.Uint32(m.Data[8:]),
	}
	dst := netip.IPv4Unspecified()
	if m.Data[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for attr, v := range Attrs(m.Data[unix.SizeofRtMsg:]) {
		switch attr {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(v)
		case unix.RTA_GATEWAY:
			r.Gateway, _ = netip.AddrFromSlice(v)
		case unix.RTA_PREFSRC:
			r.Source, _ = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			r.Link = number(v)
		case unix.RTA_TABLE:
			r.Table = number(v)
		case unix.RTA_PRIORITY:
			r.Metric = number(v)
		case unix.RTA_METRICS:
			for metric, v := range Attrs(v) {
				if metric == unix.RTAX_MTU {
					r.MTU = number(v)
				}
			}
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(m.Data[1]))
	return r, r.Dst.IsValid()
}

// Rule is a routing policy rule that selects a table by the link a packet came
// in by.
type Rule struct {
	Family   uint8
	Link     string
	Table    int
	Priority int
	Protocol uint8
}

// ParseRule reads a message about a rule. Conditions other than the link are
// left out.
func ParseRule(m Message) (Rule, bool) {
	if (m.Type != unix.RTM_NEWRULE && m.Type != unix.RTM_DELRULE) || len(m.Data) < unix.SizeofRtMsg {
		return Rule{}, false
	}
	r := Rule{Family: m.Data[0], Table: int(m.Data[4])}
	for attr, v := range Attrs(m.Data[unix.SizeofRtMsg:]) {
		switch attr {
		case unix.FRA_IIFNAME:
			r.Link = text(v)
		case unix.FRA_TABLE:
			r.Table = number(v)
		case unix.FRA_PRIORITY:
			r.Priority = number(v)
		case unix.FRA_PROTOCOL:
			r.Protocol = uint8(number(v))
		}
	}
	return r, true
}

// Neigh is a neighbour, or, of the family AF_BRIDGE, a forwarding entry.
type Neigh struct {
	Family   uint8
	Link     int
	Dst      netip.Addr
	MAC      net.HardwareAddr
	State    uint16
	Protocol uint8
	// Master is the bridge of a forwarding entry, 0 for the device's own list.
	Master int
	// VLAN is set for entries of one VLAN.
	VLAN int
}

// ParseNeigh reads a message about a neighbour.
func ParseNeigh(m Message) (Neigh, bool) {
	if (m.Type != unix.RTM_NEWNEIGH && m.Type != unix.RTM_DELNEIGH) || len(m.Data) < unix.SizeofNdMsg {
		return Neigh{}, false
	}
	n := Neigh{
		Family: m.Data[0],
		Link:   int(int32(binary.NativeEndian.Uint32(m.Data[4:]))),
		State:  binary.NativeEndian.Uint16(m.Data[8:]),
	}
	for attr, v := range Attrs(m.Data[unix.SizeofNdMsg:]) {
		switch attr {
		case unix.NDA_DST:
			n.Dst, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			n.MAC = bytes.Clone(v)
		case NeighProtocol:
			n.Protocol = uint8(number(v))
		case unix.NDA_MASTER:
			n.Master = number(v)
		case unix.NDA_VLAN:
			n.VLAN = number(v)
		}
	}
	return n, true
}

// ParseNetNS reads the number of a namespace, false if it has none here.
func ParseNetNS(m Message) (number int, ok bool) {
	if m.Type != unix.RTM_NEWNSID || len(m.Data) < 4 {
		return 0, false
	}
	for attr, v := range Attrs(m.Data[4:]) {
		if attr == unix.NETNSA_NSID {
			number = signed(v)
			return number, number != unix.NETNSA_NSID_NOT_ASSIGNED
		}
	}
	return 0, false
}

// text is a zero-terminated string.
func text(v []byte) string {
	if end := bytes.IndexByte(v, 0); end >= 0 {
		v = v[:end]
	}
	return string(v)
}

// number is an unsigned integer of one, two or four bytes.
func number(v []byte) int {
	switch len(v) {
	case 1:
		return int(v[0])
	case 2:
		return int(binary.NativeEndian.Uint16(v))
	case 4:
		return int(binary.NativeEndian.Uint32(v))
	default:
		return 0
	}
}

// signed is a signed integer of four bytes.
func signed(v []byte) int { return int(int32(uint32(number(v)))) }
