package wireguard

import (
	"encoding/binary"
	"testing"
)

// stunMessage is a binding request whose transaction says n, with size bytes of
// attributes.
func stunMessage(n uint32, size int) []byte {
	message := make([]byte, stunHeader+size)
	message[1] = 1
	binary.BigEndian.PutUint16(message[2:], uint16(size))
	binary.BigEndian.PutUint32(message[stunCookieAt:], stunCookie)
	binary.BigEndian.PutUint32(message[8:], n)
	if size >= 4 {
		binary.BigEndian.PutUint16(message[stunHeader:], 0x8022) // SOFTWARE
		binary.BigEndian.PutUint16(message[stunHeader+2:], uint16(size-4))
	}
	return message
}

// with returns a copy of packet with one byte changed.
func with(packet []byte, at int, value byte) []byte {
	changed := append([]byte(nil), packet...)
	changed[at] = value
	return changed
}

// nearlySTUN are packets that resemble a STUN message.
func nearlySTUN() map[string][]byte {
	message := stunMessage(1, 8)
	return map[string][]byte{
		"empty":             {},
		"a byte":            {0},
		"no cookie":         with(message, stunCookieAt, 0),
		"RTP's first bits":  with(message, 0, 0x80),
		"TURN channel data": with(message, 0, 0x40),
		"length too short":  with(message, 3, 4),
		"length too long":   with(message, 3, 12),
		"length odd":        with(stunMessage(1, 9), 3, 9),
		"header cut off":    message[:stunHeader-1],
		"only the cookie":   message[:8],
		"cut off":           message[:stunHeader+4],
		"more behind":       append(stunMessage(1, 8), 0, 0, 0, 0),
		"too long":          stunMessage(1, maxSTUN-stunHeader+4),
	}
}

func TestIsSTUN(t *testing.T) {
	for _, size := range []int{0, 4, 8, 548, maxSTUN - stunHeader} {
		if !isSTUN(stunMessage(1, size)) {
			t.Errorf("a message with %d bytes of attributes is none", size)
		}
	}
	for name, packet := range nearlySTUN() {
		if isSTUN(packet) {
			t.Errorf("%s is STUN", name)
		}
	}
}

// wireGuardSizes are the least sizes of WireGuard's messages by type: handshake
// initiation, response, cookie, data.
var wireGuardSizes = [...]int{1: 148, 2: 92, 3: 64, 4: 32}

// Even if the sender of a WireGuard message chose all that is random in it, it
// would not be taken for STUN.
func TestWireGuardIsNoSTUN(t *testing.T) {
	for kind := 1; kind < len(wireGuardSizes); kind++ {
		for size := wireGuardSizes[kind]; size <= maxSTUN; size++ {
			packet := make([]byte, size)
			packet[0] = byte(kind)
			binary.BigEndian.PutUint32(packet[stunCookieAt:], stunCookie)
			if isSTUN(packet) {
				t.Fatalf("message of type %d with %d bytes is STUN", kind, size)
			}
		}
	}
}

func FuzzIsSTUN(f *testing.F) {
	for _, packet := range nearlySTUN() {
		f.Add(packet)
	}
	f.Add(stunMessage(7, 0))
	f.Add(stunMessage(7, 24))
	for kind := 1; kind < len(wireGuardSizes); kind++ {
		f.Add(with(make([]byte, wireGuardSizes[kind]), 0, byte(kind)))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		if !isSTUN(packet) {
			return
		}
		if len(packet) < stunHeader || len(packet)%4 != 0 || string(packet[4:8]) != "\x21\x12\xa4\x42" {
			t.Fatalf("%x is STUN", packet)
		}
		kind := binary.LittleEndian.Uint32(packet)
		if kind >= 1 && kind <= 4 && len(packet) >= wireGuardSizes[kind] {
			t.Fatalf("WireGuard's %x is STUN", packet)
		}
	})
}
