//go:build linux

package main

import "encoding/binary"

// Sizes of RFC 8489 and RFC 8656, in bytes, and numbers of theirs.
const (
	stunHeaderLen  = 20
	attributeLen   = 4 // of an attribute's head
	channelHeadLen = 4
	stunCookie     = 0x2112a442
	stunBinding    = 0x001
	stunData       = 0x0013 // the attribute that holds a packet which is relayed
)

// classifyMessage tells what a UDP packet carries by its content. It is length
// bytes long, of which the first are in message.
func classifyMessage(message []byte, length int) kind {
	switch {
	case len(message) < channelHeadLen:
		return other
	case isSTUN(message):
		if stunMethod(message) == stunBinding {
			return stunMessage
		}
		if inner, size := relayedByMessage(message); inner != nil {
			return classifyRelayed(inner, size)
		}
		return turnMessage
	case message[0] >= 0x40 && message[0] <= 0x4f: // a channel of TURN, RFC 8656
		return classifyRelayed(message[channelHeadLen:], int(binary.BigEndian.Uint16(message[2:])))
	}
	return classifyWireGuard(message, length)
}

// classifyRelayed tells what a relay passes on: nothing but what also goes
// without one.
func classifyRelayed(inner []byte, length int) kind {
	switch {
	case len(inner) < channelHeadLen:
		return other
	case isSTUN(inner) && stunMethod(inner) == stunBinding:
		return stunMessage
	case classifyWireGuard(inner, length) != other:
		return relayedWireGuard
	}
	return other
}

// classifyWireGuard knows WireGuard's messages by type and length.
func classifyWireGuard(message []byte, length int) kind {
	const initiation, response, cookie, emptyData, padding = 148, 92, 64, 32, 16
	if len(message) < 4 {
		return other
	}
	switch binary.LittleEndian.Uint32(message) { // one byte of type, three of zero
	case 1:
		if length == initiation {
			return wgHandshake
		}
	case 2:
		if length == response {
			return wgHandshake
		}
	case 3:
		if length == cookie {
			return wgHandshake
		}
	case 4:
		if length >= emptyData && length%padding == 0 {
			return wgData
		}
	}
	return other
}

func isSTUN(message []byte) bool {
	return len(message) >= stunHeaderLen && message[0] < 0x40 && binary.BigEndian.Uint32(message[4:]) == stunCookie
}

// stunMethod takes a message's method out of its type, whose bits of the class
// stand in between.
func stunMethod(message []byte) uint16 {
	kind := binary.BigEndian.Uint16(message)
	return kind&0x000f | kind>>1&0x0070 | kind>>2&0x0f80
}

// relayedByMessage returns the packet in a TURN message as far as it was
// captured, and its length; nil if there is none.
func relayedByMessage(message []byte) (inner []byte, length int) {
	rest := message[stunHeaderLen:]
	for len(rest) >= attributeLen {
		kind, size := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		rest = rest[attributeLen:]
		if kind == stunData {
			return rest[:min(size, len(rest))], size
		}
		rest = rest[min((size+3)&^3, len(rest)):]
	}
	return nil, 0
}
