package wireguard

import (
	"encoding/binary"
	"errors"
	"testing"
)

func TestHelperStatus(t *testing.T) {
	const unreachable = 11003 // IP_DEST_HOST_UNREACHABLE
	reply := func(at int, status uint32) []byte {
		text := make([]byte, 64)
		for i := range text {
			text[i] = 0xff // what stands around is not read
		}
		binary.NativeEndian.PutUint32(text[at:], status)
		return text
	}
	for _, c := range []struct {
		name   string
		family int
		reply  []byte
		want   error
	}{
		{name: "IPv4 answer", reply: reply(4, 0)},
		{name: "IPv6 answer", family: 1, reply: reply(28, 0)},
		{name: "IPv4 unreachable", reply: reply(4, unreachable), want: errNoEcho},
		{name: "IPv6 unreachable", family: 1, reply: reply(28, unreachable), want: errNoEcho},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := helperStatus(c.family, c.reply); !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("status %v, want %v", err, c.want)
			}
		})
	}
	if err := helperStatus(1, make([]byte, 28)); err == nil || errors.Is(err, errNoEcho) {
		t.Errorf("a reply cut off: %v", err)
	}
}
