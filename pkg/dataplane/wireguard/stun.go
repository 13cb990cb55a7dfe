package wireguard

import (
	"encoding/binary"
	"net/netip"
)

const (
	// stunHeader is the length of a STUN message without attributes.
	stunHeader = 20
	// stunCookie is at stunCookieAt in every message of RFC 8489.
	stunCookie   = 0x2112A442
	stunCookieAt = 4
	// maxSTUN is the longest message that is sent or received, far more than any
	// needs.
	maxSTUN = 2048
)

// isSTUN reports whether packet has the form of a STUN message, as RFC 8489
// tells such from what else shares a port.
//
// No message of WireGuard has it. Those begin with their type, 1 to 4, and three
// zero bytes, so that the third and fourth byte, which are STUN's length without
// the header, say that nothing follows the header. But the shortest of them, an
// empty data message, has 32 bytes.
func isSTUN(packet []byte) bool {
	if len(packet) < stunHeader || len(packet) > maxSTUN || packet[0]&0xc0 != 0 {
		return false
	}
	length := int(binary.BigEndian.Uint16(packet[2:]))
	return length == len(packet)-stunHeader && length%4 == 0 &&
		binary.BigEndian.Uint32(packet[stunCookieAt:]) == stunCookie
}

// plainAddrPort is what to compare and to send to: IPv4 as such, and no zone,
// which only a link-local address has.
func plainAddrPort(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(addr.Addr().Unmap().WithZone(""), addr.Port())
}
