package nat

import (
	"encoding/binary"
	"errors"
)

// What of TURN (RFC 8656) and STUN (RFC 8489) is read from packets in place,
// where a decoded copy of each packet would cost too much.
const (
	channelHeader  = 4
	channelFirst   = 0x4000
	channelLast    = 0x4FFF
	channelPadding = 4

	turnAllocate         = 0x0003
	turnRefresh          = 0x0004
	turnCreatePermission = 0x0008
	turnDataReceived     = 0x0017 // an indication
	turnChannelBind      = 0x0009
	stunClassSuccess     = 0x0100

	codeMismatch = 437 // no such allocation, or one too many

	attrIntegrity   = 0x0008
	attrErrorCode   = 0x0009
	attrPeerAddress = 0x0012
	attrData        = 0x0013
)

var (
	errTURNFrame = errors.New("not a TURN frame")
	errTURNLong  = errors.New("TURN frame too long")
)

const (
	// RelayOverhead is what a relay's client and its relay add to each packet between
	// them: ChannelData's header.
	RelayOverhead = channelHeader
	// RelayPadding is what the result may be filled up to a multiple of.
	RelayPadding = channelPadding
)

// isSTUNPacket says whether a packet is a whole STUN message. No message of
// WireGuard is: its shortest has 32 bytes, and zeros where this has its length.
func isSTUNPacket(p []byte) bool {
	return len(p) >= stunHeader && p[0]&0xC0 == 0 &&
		binary.BigEndian.Uint32(p[4:]) == stunCookie &&
		int(binary.BigEndian.Uint16(p[2:]))+stunHeader == len(p) && len(p)%4 == 0
}

func stunType(p []byte) uint16 { return binary.BigEndian.Uint16(p) }

// stunAttr returns the value of the first attribute of a kind in a STUN message,
// which aliases the message.
func stunAttr(p []byte, kind uint16) ([]byte, bool) {
	if !isSTUNPacket(p) {
		return nil, false
	}
	for rest := p[stunHeader:]; len(rest) >= 4; {
		length := int(binary.BigEndian.Uint16(rest[2:]))
		padded := (length + 3) &^ 3
		if len(rest)-4 < length {
			return nil, false
		}
		if binary.BigEndian.Uint16(rest) == kind {
			return rest[4 : 4+length], true
		}
		if len(rest)-4 < padded {
			return nil, false
		}
		rest = rest[4+padded:]
	}
	return nil, false
}

// stunErrorCode returns the code of an error answer, or 0.
func stunErrorCode(p []byte) int {
	value, ok := stunAttr(p, attrErrorCode)
	if !ok || len(value) < 4 {
		return 0
	}
	return int(value[2]&7)*100 + int(value[3])
}

// channelData returns the number and the bytes of a ChannelData message, which
// alias it.
func channelData(p []byte) (number uint16, data []byte, ok bool) {
	if len(p) < channelHeader {
		return 0, nil, false
	}
	number, length := binary.BigEndian.Uint16(p), int(binary.BigEndian.Uint16(p[2:]))
	if number < channelFirst || number > channelLast || length > len(p)-channelHeader {
		return 0, nil, false
	}
	return number, p[channelHeader : channelHeader+length], true
}

// turnFrameLength returns how long the message is that begins with head, in a
// stream, where ChannelData is padded.
func turnFrameLength(head [channelHeader]byte) (int, error) {
	length := int(binary.BigEndian.Uint16(head[2:]))
	switch first := binary.BigEndian.Uint16(head[:]); {
	case first < channelFirst && length%4 == 0:
		return stunHeader + length, nil
	case first >= channelFirst && first <= channelLast:
		return channelHeader + (length+channelPadding-1)&^(channelPadding-1), nil
	}
	return 0, errTURNFrame
}

// turnMappingLost answers a refresh of an allocation that is not there: 437.
// It is shorter than any refresh, so it can be sent to anybody.
func turnMappingLost(request, buffer []byte) []byte {
	answer := append(buffer[:0], byte(0x0110>>8), byte(0x0110&0xFF|turnRefresh), 0, 8)
	answer = append(answer, request[4:stunHeader]...)
	return append(answer, 0, attrErrorCode, 0, 4, 0, 0, 4, 37)
}
