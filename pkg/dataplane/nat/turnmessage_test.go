package nat

import (
	"bufio"
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/pion/stun/v4"
)

func FuzzTURNMessages(f *testing.F) {
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.NewSoftware("x"), stun.Fingerprint).Raw)
	f.Add(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodData, stun.ClassIndication),
		turnPeer(netip.MustParseAddrPort("[2001:db8::1]:2")), stun.RawAttribute{Type: stun.AttrData, Value: []byte("data")}).Raw)
	f.Add(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse), stun.CodeUnauthorized).Raw)
	f.Add([]byte{0x40, 0, 0, 3, 1, 2, 3, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		if number, data, ok := channelData(p); ok {
			if number < channelFirst || number > channelLast || len(data) > len(p)-channelHeader || isSTUNPacket(p) {
				t.Errorf("channel %#x with %d bytes of %d", number, len(data), len(p))
			}
		}
		m := &stun.Message{Raw: p}
		whole := isSTUNPacket(p) && m.Decode() == nil
		for _, kind := range []uint16{attrIntegrity, attrErrorCode, attrPeerAddress, attrData} {
			value, ok := stunAttr(p, kind)
			if !whole {
				continue
			}
			want, err := m.Get(stun.AttrType(kind))
			if ok != (err == nil) || !bytes.Equal(value, want) {
				t.Errorf("attribute %#x is % x, %v; want % x, %v", kind, value, ok, want, err)
			}
		}
		if value, ok := stunAttr(p, attrPeerAddress); ok {
			addr, err := decodeAddr(value, p[4:stunHeader])
			var want stun.XORMappedAddress
			if whole && err == nil && (want.GetFromAs(m, stun.AttrXORPeerAddress) != nil || !addr.Addr().IsValid() || int(addr.Port()) != want.Port) {
				t.Errorf("address %s, want %s", addr, want)
			}
		}
		_ = stunErrorCode(p)
	})
}

func FuzzTURNStream(f *testing.F) {
	f.Add(append(stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw, 0x40, 0, 0, 3, 1, 2, 3, 0))
	f.Add([]byte{0x40, 0, 0xFF, 0xFF})
	f.Add([]byte{0, 3, 0, 1})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bufio.NewReader(bytes.NewReader(stream))
		buffer := make([]byte, relayFrame)
		total := 0
		for {
			n, err := readTURNFrame(r, buffer)
			if err != nil {
				return
			}
			if n < channelHeader || n >= relayFrame || n%4 != 0 || !bytes.Equal(buffer[:n], stream[total:total+n]) {
				t.Fatalf("frame of %d bytes at %d", n, total)
			}
			total += n
		}
	})
}

func TestTURNStreamErrors(t *testing.T) {
	buffer := make([]byte, relayFrame)
	for _, test := range []struct {
		name   string
		stream []byte
		want   error
	}{
		{"neither", []byte{0x80, 0, 0, 0}, errTURNFrame},
		{"STUN of odd length", []byte{0, 3, 0, 1}, errTURNFrame},
		{"channel of nobody", []byte{0x50, 0, 0, 0}, errTURNFrame},
		{"long STUN", []byte{0, 3, 0xFF, 0xFC}, errTURNLong},
		{"long data", []byte{0x40, 0, 0xFF, 0xFF}, errTURNLong},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := readTURNFrame(bytes.NewReader(test.stream), buffer); !errors.Is(err, test.want) {
				t.Errorf("%v, not %v", err, test.want)
			}
		})
	}
}
