package nat

import (
	"encoding/binary"
	"testing"

	"github.com/pion/stun/v4"
)

// ofType returns a packet whose first four bytes are those.
func ofType(head uint32, size int) []byte {
	return append(binary.BigEndian.AppendUint32(nil, head), make([]byte, size-4)...)
}

func TestRelayPasses(t *testing.T) {
	request := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint).Raw
	for _, test := range []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"initiation", ofType(0x01000000, 148), true},
		{"response", ofType(0x02000000, 92), true},
		{"cookie", ofType(0x03000000, 64), true},
		{"keepalive", ofType(0x04000000, 32), true},
		{"data", ofType(0x04000000, 48), true},
		{"data of the least MTU", ofType(0x04000000, 32+1280), true},
		{"data of MTU 1436, which is not filled up", ofType(0x04000000, 32+1436), true},
		{"long initiation", ofType(0x01000000, 149), false},
		{"short initiation", ofType(0x01000000, 147), false},
		{"response of another length", ofType(0x02000000, 148), false},
		{"cookie of another length", ofType(0x03000000, 80), false},
		{"short data", ofType(0x04000000, 16), false},
		{"data that is not filled up, as on a route of a small MTU", ofType(0x04000000, 1032-4), true},
		{"type 0", ofType(0, 32), false},
		{"type 5", ofType(0x05000000, 32), false},
		{"reserved bytes in use", ofType(0x04000001, 32), false},
		{"reserved byte behind the type", ofType(0x04010000, 32), false},
		{"type at the other end", ofType(0x00000004, 32), false},
		{"nothing", nil, false},
		{"one byte", []byte{4}, false},
		{"binding request", request, true},
		{"binding success", stun.MustBuild(stun.TransactionID, stun.BindingSuccess).Raw, true},
		{"binding error", stun.MustBuild(stun.TransactionID, stun.BindingError, stun.CodeUnauthorized).Raw, true},
		{"binding request with more behind", append(request[:len(request):len(request)], 0, 0, 0, 0), false},
		{"binding request cut off", request[:len(request)-4], false},
		{"allocate", stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest)).Raw, false},
		{"TURN data", stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodData, stun.ClassIndication)).Raw, false},
		{"DNS query", dnsQuery(0x1234, 40), false},
		{"DNS query with recursion", append([]byte{4, 0, 1}, dnsQuery(0x0400, 40)[3:]...), false},
		{"DNS answer in disguise", dnsAnswer(dnsQuery(0x0400, 48)), false},
		{"SNMP", []byte("\x30\x26\x02\x01\x01\x04\x06public\xa0\x19\x02\x04\x00\x00\x00\x01\x02\x01\x00\x02\x01\x00\x30\x0b\x30\x09\x06\x05\x2b\x06\x01\x02\x01\x05\x00"), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := relayPasses(test.packet); got != test.want {
				t.Errorf("passed on is %v", got)
			}
		})
	}
}

// FuzzRelayPasses holds what is passed on to what services could read or say.
func FuzzRelayPasses(f *testing.F) {
	f.Add(ofType(0x01000000, 148))
	f.Add(ofType(0x04000000, 1468))
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingSuccess, stun.Fingerprint).Raw)
	f.Add(dnsQuery(0x0400, 48))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		passes, data := relayPasses(p), isWireGuard(p)
		if len(p) < 20 && passes {
			t.Error("shorter than any message")
		}
		if !passes {
			return
		}
		m := &stun.Message{Raw: p}
		switch {
		case p[0] > 4:
			t.Errorf("first byte is %d", p[0])
		case data && (isSTUNPacket(p) || p[0] == 0 || p[1] != 0 || p[2] != 0 || p[3] != 0):
			t.Errorf("% x is WireGuard's", p[:4])
		case !data && len(p) < relayFrame && p[2] >= 0x80:
			t.Error("an answer of a resolver")
		case !data && m.Decode() == nil && m.Type.Method != stun.MethodBinding:
			t.Errorf("a message of method %s", m.Type.Method)
		}
	})
}

// dnsQuery asks for one name, in so many bytes.
func dnsQuery(id uint16, size int) []byte {
	const head, tail = 12, 5
	p := binary.BigEndian.AppendUint16(nil, id)
	p = append(p, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) // one question
	label := size - head - tail - 1
	p = append(p, byte(label))
	for range label {
		p = append(p, 'x')
	}
	return append(p, 0, 0, 1, 0, 1)
}

// dnsAnswer is the same with the bit that makes it an answer, and longer.
func dnsAnswer(query []byte) []byte {
	p := append([]byte(nil), query...)
	p[2] |= 0x80
	return append(p, make([]byte, 1024)...)
}
