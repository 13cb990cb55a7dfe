//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// kind is what a frame on the underlay carries.
type kind int

const (
	// wgHandshake is a WireGuard initiation, response or cookie.
	wgHandshake kind = iota
	// wgData is an encrypted packet, or an empty one that keeps a session alive.
	wgData
	// serviceHandshake and serviceData are the same on a UDP port of the service's
	// own.
	serviceHandshake
	serviceData
	// wgRejected is a host's ICMP answer to WireGuard's UDP while nobody listens
	// for it; it quotes the encrypted packet.
	wgRejected
	// addressResolution is the underlay's own ARP.
	addressResolution
	// neighbourDiscovery is the underlay's own IPv6 ND, router solicitation and MLD.
	neighbourDiscovery
	// stunMessage is a question to a STUN server, a check between nodes, or an
	// answer, also where a relay passes it on.
	stunMessage
	// turnMessage is between a node and the relay that it uses.
	turnMessage
	// relayedWireGuard is WireGuard's between a node and the relay.
	relayedWireGuard
	// clearText is a frame in which the marker of a pod's ping is readable.
	clearText
	// other is everything else.
	other
)

// String names the kind in the report.
func (k kind) String() string {
	return [...]string{
		"WireGuard handshake", "WireGuard data", "WireGuard handshake of the service, by its own port", "WireGuard data of the service, by its own port",
		"ICMP that WireGuard's port is closed (overlayd away)", "ARP of the underlay", "ND and MLD of the underlay",
		"STUN: questions to servers, and checks between nodes", "TURN: requests to the relay, and its answers", "WireGuard to and from the relay, inside TURN",
		"readable pod traffic", "anything else",
	}[k]
}

// expected tells whether frames of the kind may cross the underlay.
func (k kind) expected() bool { return k != clearText && k != other }

// classifier knows what belongs on the underlay.
type classifier struct {
	port         uint16   // WireGuard's
	servicePorts []uint16 // WireGuard's, of the service
	marker       []byte   // stands in every ping of a pod
	// translated says that ports tell nothing, since there are NATs: what a packet
	// is has to be in it.
	translated bool
}

// kinds are those that may be on the underlay, and those that must not, in the
// order of the report.
func (c classifier) kinds() []kind {
	if c.translated {
		return []kind{stunMessage, wgHandshake, wgData, turnMessage, relayedWireGuard, addressResolution, neighbourDiscovery, clearText, other}
	}
	return []kind{wgHandshake, wgData, serviceHandshake, serviceData, wgRejected, addressResolution, neighbourDiscovery, clearText, other}
}

// Offsets and lengths of Ethernet, IPv4, IPv6 and UDP headers, in bytes.
const (
	ethernetLen = 14
	ipv4MinLen  = 20
	ipv6Len     = 40
	udpLen      = 8
)

// classify tells what an Ethernet frame carries. A frame whose beginning was
// cut off, or that makes no sense, is other.
func (c classifier) classify(frame []byte) kind {
	if bytes.Contains(frame, c.marker) {
		return clearText
	}
	if len(frame) < ethernetLen {
		return other
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_ARP:
		return addressResolution
	case unix.ETH_P_IP, unix.ETH_P_IPV6:
		protocol, payload := transport(frame)
		switch {
		case protocol == unix.IPPROTO_ICMP:
			return c.classifyICMP(payload)
		case protocol == unix.IPPROTO_UDP:
			return c.classifyUDP(payload)
		case protocol == unix.IPPROTO_ICMPV6 && isNeighbourDiscovery(payload):
			return neighbourDiscovery
		}
	}
	return other
}

// classifyUDP recognises WireGuard by its ports and its four message types.
func (c classifier) classifyUDP(packet []byte) kind {
	if len(packet) < udpLen+4 {
		return other
	}
	if c.translated {
		return classifyMessage(packet[udpLen:], int(binary.BigEndian.Uint16(packet[4:]))-udpLen)
	}
	port := binary.BigEndian.Uint16(packet[2:])
	handshake, data := wgHandshake, wgData
	if slices.Contains(c.servicePorts, port) {
		handshake, data = serviceHandshake, serviceData
	} else if port != c.port {
		return other
	}
	switch binary.LittleEndian.Uint32(packet[udpLen:]) { // one byte of type, three of zero
	case 1, 2, 3:
		return handshake
	case 4:
		return data
	}
	return other
}

// classifyICMP knows one message: "port unreachable" with a packet of
// WireGuard's behind it.
func (c classifier) classifyICMP(packet []byte) kind {
	const header, unreachable, port = 8, 3, 3 // RFC 792
	if len(packet) < header || packet[0] != unreachable || packet[1] != port {
		return other
	}
	protocol, quoted := ipv4Transport(packet[header:])
	if protocol != unix.IPPROTO_UDP || c.classifyUDP(quoted) == other {
		return other
	}
	return wgRejected
}

func isNeighbourDiscovery(packet []byte) bool {
	if len(packet) == 0 {
		return false
	}
	// RFC 4861: 133 to 137; MLD: 130 to 132 (RFC 2710) and 143 (RFC 3810).
	return packet[0] >= 130 && packet[0] <= 137 || packet[0] == 143
}

// transport returns the protocol above IP and its packet, nil if there is none.
func transport(frame []byte) (protocol byte, packet []byte) {
	ip := frame[ethernetLen:]
	if binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IP {
		return ipv4Transport(ip)
	}
	if len(ip) < ipv6Len {
		return 0, nil
	}
	next, rest := ip[6], ip[ipv6Len:]
	if next == unix.IPPROTO_HOPOPTS && len(rest) >= 8 { // MLD carries a router alert option
		length := (int(rest[1]) + 1) * 8
		if length > len(rest) {
			return 0, nil
		}
		return rest[0], rest[length:]
	}
	return next, rest
}

func ipv4Transport(ip []byte) (protocol byte, packet []byte) {
	if len(ip) < ipv4MinLen {
		return 0, nil
	}
	header := int(ip[0]&0xf) * 4
	if header < ipv4MinLen || header > len(ip) {
		return 0, nil
	}
	return ip[9], ip[header:]
}

// describe says in a few words what a frame is.
func describe(frame []byte) string {
	if len(frame) < ethernetLen {
		return fmt.Sprintf("a frame of %d bytes", len(frame))
	}
	etherType := binary.BigEndian.Uint16(frame[12:])
	ip := frame[ethernetLen:]
	protocol, packet := byte(0), []byte(nil)
	var from, to netip.Addr
	switch {
	case etherType == unix.ETH_P_IP && len(ip) >= ipv4MinLen:
		protocol, packet = transport(frame)
		from, to = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	case etherType == unix.ETH_P_IPV6 && len(ip) >= ipv6Len:
		protocol, packet = transport(frame)
		from, to = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	default:
		return fmt.Sprintf("a frame of EtherType %#04x", etherType)
	}
	if protocol == unix.IPPROTO_UDP && len(packet) >= udpLen {
		return fmt.Sprintf("UDP %v > %v port %d", from, to, binary.BigEndian.Uint16(packet[2:]))
	}
	return fmt.Sprintf("IP protocol %d %v > %v", protocol, from, to)
}
