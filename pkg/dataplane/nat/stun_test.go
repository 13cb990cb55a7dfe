package nat

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pion/stun/v4"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// The test vectors of RFC 5769, sections 2.1 to 2.3.
const (
	rfcID      = "\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae"
	rfcRequest = "\x00\x01\x00\x58\x21\x12\xa4\x42" + rfcID +
		"\x80\x22\x00\x10STUN test client" +
		"\x00\x24\x00\x04\x6e\x00\x01\xff" +
		"\x80\x29\x00\x08\x93\x2f\xf9\xb1\x51\x26\x3b\x36" +
		"\x00\x06\x00\x09evtj:h6vY\x20\x20\x20" +
		"\x00\x08\x00\x14\x9a\xea\xa7\x0c\xbf\xd8\xcb\x56\x78\x1e\xf2\xb5\xb2\xd3\xf2\x49\xc1\xb5\x71\xa2" +
		"\x80\x28\x00\x04\xe5\x7a\x3b\xcf"
	rfcAnswer4 = "\x01\x01\x00\x3c\x21\x12\xa4\x42" + rfcID +
		"\x80\x22\x00\x0btest vector\x20" +
		"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43" +
		"\x00\x08\x00\x14\x2b\x91\xf5\x99\xfd\x9e\x90\xc3\x8c\x74\x89\xf9\x2a\xf9\xba\x53\xf0\x6b\xe7\xd7" +
		"\x80\x28\x00\x04\xc0\x7d\x4c\x96"
	rfcAnswer6 = "\x01\x01\x00\x48\x21\x12\xa4\x42" + rfcID +
		"\x80\x22\x00\x0btest vector\x20" +
		"\x00\x20\x00\x14\x00\x02\xa1\x47\x01\x13\xa9\xfa\xa5\xd3\xf1\x79\xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9" +
		"\x00\x08\x00\x14\xa3\x82\x95\x4e\x4b\xe6\x7b\xf1\x17\x84\xc9\x7c\x82\x92\xc2\x75\xbf\xe3\xed\x41" +
		"\x80\x28\x00\x04\xc8\xfb\x0b\x4c"
)

// rfcPair is the pair whose password the test vectors have.
func rfcPair() Pair {
	return Pair{key: func() stun.MessageIntegrity { return stun.NewShortTermIntegrity("VOkJxbRl1RmTxUk/WvJxBt") }, peer: "evtj:h6vY"}
}

var messageFields = cmp.Options{cmpopts.IgnoreUnexported(Message{}), byValue}

func TestParseTestVectors(t *testing.T) {
	id := TransactionID([]byte(rfcID))
	tests := map[string]struct {
		packet string
		want   Message
	}{
		"request":       {rfcRequest, Message{Class: ClassRequest, ID: id, Username: "evtj:h6vY"}},
		"IPv4 response": {rfcAnswer4, Message{Class: ClassSuccess, ID: id, Mapped: addrPort("192.0.2.1:32853")}},
		"IPv6 response": {rfcAnswer6, Message{Class: ClassSuccess, ID: id, Mapped: addrPort("[2001:db8:1234:5678:11:2233:4455:6677]:32853")}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			packet := []byte(test.packet)
			got, err := Parse(packet)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, messageFields); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			clear(packet) // it was ours only during the call
			if err := got.Verify(rfcPair()); err != nil {
				t.Error(err)
			}
			if err := got.Verify(rfcPair()); err != nil {
				t.Error("second time:", err)
			}
		})
	}
}

// TestNoBitMayChange flips every bit of a check and of its answer.
func TestNoBitMayChange(t *testing.T) {
	for _, packet := range []string{rfcRequest, rfcAnswer4, rfcAnswer6} {
		for bit := range 8 * len(packet) {
			changed := []byte(packet)
			changed[bit/8] ^= 1 << (bit % 8)
			m, err := Parse(changed)
			if err == nil {
				err = m.Verify(rfcPair())
			}
			if err == nil {
				t.Fatalf("bit %d of %x changed unseen", bit, packet)
			}
		}
	}
}

// attr returns an attribute with padding.
func attr(kind stun.AttrType, value string) string {
	text := string(binary.BigEndian.AppendUint16(nil, uint16(kind))) + string(binary.BigEndian.AppendUint16(nil, uint16(len(value)))) + value
	return text + strings.Repeat("\x00", -len(value)&3)
}

// message returns a message with an honest length.
func message(kind uint16, attrs ...string) string {
	body := strings.Join(attrs, "")
	return string(binary.BigEndian.AppendUint16(nil, kind)) + string(binary.BigEndian.AppendUint16(nil, uint16(len(body)))) + "\x21\x12\xa4\x42" + rfcID + body
}

const (
	// 192.0.2.1:32853 and 198.51.100.1:1
	hiddenAddr = "\x00\x01\xa1\x47\xe1\x12\xa6\x43"
	plainAddr  = "\x00\x01\x00\x01\xc6\x33\x64\x01"
)

func TestParse(t *testing.T) {
	id := TransactionID([]byte(rfcID))
	tests := map[string]struct {
		packet string
		want   Message
	}{
		"bare request":       {message(1), Message{Class: ClassRequest, ID: id}},
		"plain address":      {message(0x101, attr(stun.AttrMappedAddress, plainAddr)), Message{Class: ClassSuccess, ID: id, Mapped: addrPort("198.51.100.1:1")}},
		"hidden one is true": {message(0x101, attr(stun.AttrMappedAddress, plainAddr), attr(stun.AttrXORMappedAddress, hiddenAddr)), Message{Class: ClassSuccess, ID: id, Mapped: addrPort("192.0.2.1:32853")}},
		"hidden one's old number": {
			message(0x101, attr(0x8020, hiddenAddr)), Message{Class: ClassSuccess, ID: id, Mapped: addrPort("192.0.2.1:32853")},
		},
		"attributes of RFC 3489": {
			message(0x101, attr(stun.AttrMappedAddress, plainAddr), attr(4, plainAddr), attr(5, plainAddr)),
			Message{Class: ClassSuccess, ID: id, Mapped: addrPort("198.51.100.1:1")},
		},
		"IPv4 in IPv6's clothes": {
			message(0x101, attr(stun.AttrMappedAddress, "\x00\x02\x00\x01"+strings.Repeat("\x00", 10)+"\xff\xff\xc6\x33\x64\x01")),
			Message{Class: ClassSuccess, ID: id, Mapped: addrPort("198.51.100.1:1")},
		},
		"error": {message(0x111, attr(stun.AttrErrorCode, "\x00\x00\x04\x14Unknown")), Message{Class: ClassError, ID: id, Code: 420}},
		"username behind the integrity": {
			message(1, attr(stun.AttrMessageIntegrity, strings.Repeat("x", 20)), attr(stun.AttrUsername, "evtj:h6vY")), Message{Class: ClassRequest, ID: id},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Parse([]byte(test.packet))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, messageFields); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if err := got.Verify(rfcPair()); err == nil {
				t.Error("it verifies without integrity")
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	tests := map[string]struct{ packet, want string }{
		"nothing":                     {"", "not one whole message"},
		"half a header":               {rfcRequest[:19], "not one whole message"},
		"WireGuard handshake":         {"\x01\x00\x00\x00" + strings.Repeat("\x00", 144), "not one whole message"},
		"first bits":                  {"\x80" + rfcRequest[1:], "not one whole message"},
		"other cookie":                {rfcRequest[:4] + "\x21\x12\xa4\x43" + rfcRequest[8:], "not one whole message"},
		"cut off":                     {rfcRequest[:len(rfcRequest)-4], "not one whole message"},
		"something behind":            {rfcRequest + "\x00\x00\x00\x00", "not one whole message"},
		"length without padding":      {"\x00\x01\x00\x05\x21\x12\xa4\x42" + rfcID + "\x80\x22\x00\x01x", "not one whole message"},
		"half an attribute header":    {message(1, "\x80\x22\x00\x04"), "attribute"},
		"attribute beyond the end":    {message(1, "\x80\x22\x00\x08test"), "attribute"},
		"indication":                  {message(0x11), "no binding request"},
		"allocate request":            {message(3), "no binding request"},
		"success without address":     {message(0x101), "without an address"},
		"address behind integrity":    {message(0x101, attr(stun.AttrMessageIntegrity, strings.Repeat("x", 20)), attr(stun.AttrXORMappedAddress, hiddenAddr)), "without an address"},
		"short address":               {message(0x101, attr(stun.AttrXORMappedAddress, hiddenAddr[:7])), "no mapped address"},
		"long address":                {message(0x101, attr(stun.AttrXORMappedAddress, hiddenAddr+"\x00")), "no mapped address"},
		"other family":                {message(0x101, attr(stun.AttrXORMappedAddress, "\x00\x02"+hiddenAddr[2:])), "no mapped address"},
		"empty address":               {message(0x101, attr(stun.AttrMappedAddress, "")), "no mapped address"},
		"bad one, though one is good": {message(0x101, attr(stun.AttrXORMappedAddress, ""), attr(stun.AttrMappedAddress, plainAddr)), "no mapped address"},
		"error without code":          {message(0x111), "attribute not found"},
		"short error code":            {message(0x111, attr(stun.AttrErrorCode, "\x00")), "EOF"},
		"wrong fingerprint":           {message(1, attr(stun.AttrFingerprint, "\x00\x00\x00\x00")), "fingerprint"},
		"short fingerprint":           {message(1, attr(stun.AttrFingerprint, "\x00")), "attribute size"},
		"fingerprint not last":        {message(1, rfcRequest[len(rfcRequest)-8:], attr(stun.AttrSoftware, "x")), "not the last"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Parse([]byte(test.packet))
			if err == nil {
				t.Fatalf("got %+v, want an error", got)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q, want %q in it", err, test.want)
			}
		})
	}
}

// ends returns the two ends of a pair.
func ends(t *testing.T, secret string) (here, there Pair) {
	t.Helper()
	a, b := wgtypes.Key{1}, wgtypes.Key{2}
	return NewPair([]byte(secret), a, b), NewPair([]byte(secret), b, a)
}

func mustParse(t *testing.T, packet []byte) Message {
	t.Helper()
	m, err := Parse(packet)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestPair(t *testing.T) {
	here, there := ends(t, "secret")
	for _, seen := range []netip.AddrPort{addrPort("203.0.113.7:40001"), addrPort("[2001:db8::7]:40001"), addrPort("[::ffff:203.0.113.7]:40001")} {
		id := NewTransactionID()
		request := mustParse(t, here.Request(id))
		if err := request.Verify(there); err != nil {
			t.Fatal(err)
		}
		if request.Username != there.PeerUsername() || len(request.Username) != 16 {
			t.Errorf("username %q, the peer expects %q", request.Username, there.PeerUsername())
		}
		answer := mustParse(t, there.Answer(request, seen))
		if err := answer.Verify(here); err != nil {
			t.Fatal(err)
		}
		want := Message{Class: ClassSuccess, ID: id, Mapped: netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port())}
		if diff := cmp.Diff(want, answer, messageFields); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	here, there := ends(t, "secret")
	otherHere, otherThere := ends(t, "other secret")
	request := mustParse(t, here.Request(NewTransactionID()))
	tests := map[string]struct {
		message Message
		pair    Pair
	}{
		"our own request, sent back":      {request, here},
		"request of another pair":         {request, otherThere},
		"another's, under our username":   {mustParse(t, Pair{key: otherHere.key, own: here.own}.Request(NewTransactionID())), there},
		"ours, under another's username":  {mustParse(t, Pair{key: here.key, own: otherHere.own}.Request(NewTransactionID())), there},
		"answer of another pair":          {mustParse(t, otherThere.Answer(request, addrPort("192.0.2.1:1"))), here},
		"server's request":                {mustParse(t, ServerRequest(NewTransactionID())), there},
		"never parsed":                    {Message{Class: ClassSuccess}, here},
		"integrity without a fingerprint": {mustParse(t, build(TransactionID{}, stun.BindingRequest, stun.NewUsername(here.own), here.key())), there},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := test.message.Verify(test.pair); err == nil {
				t.Error("it verifies")
			}
		})
	}
}

func TestServerRequest(t *testing.T) {
	id := NewTransactionID()
	packet := ServerRequest(id)
	if want := slices.Concat([]byte("\x00\x01\x00\x00\x21\x12\xa4\x42"), id[:]); !slices.Equal(packet, want) {
		t.Errorf("got %x, want %x", packet, want)
	}
	if NewTransactionID() == id {
		t.Error("two transactions have one ID")
	}
}

func TestPairIsNotPrinted(t *testing.T) {
	pair := NewPair([]byte("secret"), wgtypes.Key{1}, wgtypes.Key{2})
	hidden := string(pair.key())
	holder := struct{ pair Pair }{pair}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		text := fmt.Sprintf(format, holder) + fmt.Sprintf(format, pair)
		for _, form := range []string{hidden, fmt.Sprintf("%x", hidden), fmt.Sprintf("%d", []byte(hidden)), fmt.Sprintf("%#v", []byte(hidden))} {
			if strings.Contains(text, form) {
				t.Errorf("%s prints the key: %s", format, text)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		rfcRequest, rfcAnswer4, rfcAnswer6, message(1), message(0x101, attr(stun.AttrMappedAddress, plainAddr)),
		message(0x101, attr(stun.AttrXORMappedAddress, hiddenAddr), attr(stun.AttrFingerprint, "1234")),
		message(0x111, attr(stun.AttrErrorCode, "\x00\x00\x04\x14Unknown")), message(1, "\x80\x22\xff\xff"), "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		before := slices.Clone(packet)
		m, err := Parse(packet)
		if !slices.Equal(before, packet) {
			t.Fatal("the packet was written to")
		}
		if err != nil {
			return
		}
		if (m.Class == ClassSuccess) != m.Mapped.Addr().IsValid() || m.Mapped.Addr().Is4In6() {
			t.Errorf("class %v has the address %v", m.Class, m.Mapped)
		}
		if err := m.Verify(rfcPair()); err == nil && !slices.Contains([]string{rfcRequest, rfcAnswer4, rfcAnswer6}, string(packet)) {
			t.Errorf("forged: %x", packet)
		}
		answer, err := Parse(rfcPair().Answer(m, addrPort("192.0.2.1:1")))
		if err != nil || answer.ID != m.ID {
			t.Errorf("answer %+v: %v", answer, err)
		}
	})
}
