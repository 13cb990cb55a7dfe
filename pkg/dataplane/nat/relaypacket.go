package nat

import "encoding/binary"

// What of WireGuard's messages can be told without a key: the type, three zeros
// behind it, and the length.
const (
	wgInitiation, wgInitiationLen = 1, 148
	wgResponse, wgResponseLen     = 2, 92
	wgCookie, wgCookieLen         = 3, 64
	wgData, wgDataMin             = 4, 32

	stunBinding   = 0x0001
	stunMethodSet = 0x3EEF // the bits of a STUN type that are the method
)

// relayPasses says whether a packet is one that a relay passes on, in either
// direction: a message of WireGuard, or of a check. Whatever address a node
// publishes, no other service can be asked by way of a relay, nor answer.
func relayPasses(p []byte) bool { return isWireGuard(p) || isBinding(p) }

func isWireGuard(p []byte) bool {
	if len(p) < wgDataMin {
		return false
	}
	switch binary.LittleEndian.Uint32(p) {
	case wgInitiation:
		return len(p) == wgInitiationLen
	case wgResponse:
		return len(p) == wgResponseLen
	case wgCookie:
		return len(p) == wgCookieLen
	case wgData:
		return true // WireGuard pads, but not beyond what a route's MTU leaves
	}
	return false
}

// isBinding says whether a packet is a STUN binding request or its answer.
func isBinding(p []byte) bool { return isSTUNPacket(p) && stunType(p)&stunMethodSet == stunBinding }
