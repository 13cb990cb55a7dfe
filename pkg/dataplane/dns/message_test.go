package dns

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func TestMalformedPackets(t *testing.T) {
	ok := wire(t, question("web.overlay.local.", dns.TypeA))
	change := func(f func(packet []byte) []byte) []byte { return f(slices.Clone(ok)) }
	set := func(at int, values ...byte) []byte {
		return change(func(packet []byte) []byte { copy(packet[at:], values); return packet })
	}
	opt := wire(t, ednsQuestion(question("web.overlay.local.", dns.TypeA), 1232, false))
	// After the question: its name, type, class, TTL and length of data.
	record := func(packet []byte, name string, tail ...byte) []byte {
		packet[11]++
		return slices.Concat(packet, []byte(name), tail)
	}
	tests := []struct {
		name   string
		packet []byte
		want   int
	}{
		{"nothing", nil, noAnswer},
		{"half a header", ok[:11], noAnswer},
		{"an answer", set(2, 0x80), noAnswer},
		{"an answer of another kind", set(2, 0xa8), noAnswer},
		{"a header alone", ok[:12], dns.RcodeFormatError},
		{"a truncated question", set(2, 0x02), dns.RcodeFormatError},
		{"no end of the name", ok[:20], dns.RcodeFormatError},
		{"no class", ok[:len(ok)-1], dns.RcodeFormatError},
		{"more behind", append(slices.Clone(ok), 0), dns.RcodeFormatError},
		{"a pointer to itself", set(12, 0xc0, 12), dns.RcodeFormatError},
		{"a pointer into the header", set(12, 0xc0, 4), dns.RcodeFormatError},
		{"a label of 64 bytes", set(12, 64), dns.RcodeFormatError},
		{"a whole label of 64 bytes", slices.Concat(ok[:12], []byte{64}, bytes.Repeat([]byte("a"), 64), ok[12:]), dns.RcodeFormatError},
		{"a label kind of RFC 2673", set(12, 0x41), dns.RcodeFormatError},
		{"a name of 256 bytes", change(func(packet []byte) []byte {
			return slices.Concat(packet[:12], bytes.Repeat([]byte("\x01a"), 128), packet[12:])
		}), dns.RcodeFormatError},
		{"65535 questions", set(4, 0xff, 0xff), dns.RcodeFormatError},
		{"a record that is not there", set(11, 1), dns.RcodeFormatError},
		{"65535 records that are not there", set(10, 0xff, 0xff), dns.RcodeFormatError},
		{"half a record", record(slices.Clone(ok), "\x00", 0, 1), dns.RcodeFormatError},
		{"a record longer than the packet", record(slices.Clone(ok), "\x00", 0, 1, 0, 1, 0, 0, 0, 0, 0xff, 0xff), dns.RcodeFormatError},
		{"a record whose name points to itself", record(slices.Clone(ok), "\xc0\x24", 0, 1, 0, 1, 0, 0, 0, 0, 0, 0), dns.RcodeSuccess}, // nobody reads it
		{"an OPT with half an option", append(slices.Clone(opt[:len(opt)-2]), 0, 3, 0, 10, 0), dns.RcodeFormatError},
		{"an OPT with a longer option", append(slices.Clone(opt[:len(opt)-2]), 0, 4, 0, 10, 0, 9), dns.RcodeFormatError},
		{"an OPT with a whole option", append(slices.Clone(opt[:len(opt)-2]), 0, 5, 0, 10, 0, 1, 7), dns.RcodeSuccess},
		{"an OPT with a name", record(slices.Clone(ok), "\x01a\x00", 0, 41, 4, 0, 0, 0, 0, 0, 0, 0), dns.RcodeFormatError},
		{"an OPT as an answer", change(func([]byte) []byte { p := slices.Clone(opt); p[7], p[11] = 1, 0; return p }), dns.RcodeFormatError},
		{"type 0", set(len(ok)-4, 0, 0), dns.RcodeFormatError},
		{"type OPT", set(len(ok)-4, 0, 41), dns.RcodeFormatError},
		{"class ANY", set(len(ok)-2, 0, 255), dns.RcodeRefused},
		{"type MAILB", set(len(ok)-4, 0, 253), dns.RcodeRefused},
		{"nothing wrong", ok, dns.RcodeSuccess},
	}
	s := newTestServer(ServerConfig{}, testZone())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, got := readQuery(test.packet); got != test.want {
				t.Errorf("got code %d, want %d, for %x", got, test.want, test.packet)
			}
			checkAnswer(t, test.packet, udp, replyTo(s, udp, test.packet))
		})
	}
}

// checkAnswer checks what holds for all answers.
func checkAnswer(t *testing.T, packet []byte, proto protocol, got []byte) {
	t.Helper()
	if len(packet) < headerSize || packet[2]&0x80 != 0 {
		if got != nil {
			t.Fatalf("%x is no question and was answered %x", packet, got)
		}
		return
	}
	if got == nil {
		t.Fatal("no answer")
	}
	m := new(dns.Msg)
	if err := m.Unpack(got); err != nil {
		t.Fatalf("answer %x: %v", got, err)
	}
	if !bytes.Equal(got[:2], packet[:2]) || !m.Response || (got[2]^packet[2])&0x79 != 0 { // ID, opcode, RD
		t.Fatalf("header %x for %x", got[:4], packet[:4])
	}
	q, _ := readQuery(packet)
	if q.end > 0 && (len(m.Question) != 1 || !bytes.Equal(got[headerSize:q.end], packet[headerSize:q.end])) {
		t.Fatalf("question %x for %x", got, packet)
	}
	if len(got) > q.limit(proto) {
		t.Fatalf("%d bytes by %v, the limit is %d", len(got), proto, q.limit(proto))
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError && len(got) > len(packet) {
		t.Fatalf("an error of %d bytes for %d", len(got), len(packet))
	}
	if opt := m.IsEdns0(); (opt != nil) != q.opt || opt != nil && (opt.UDPSize() != ednsSize || opt.Do() != q.do) {
		t.Fatalf("OPT %v for %x", opt, packet)
	}
	count := len(m.Answer) + len(m.Ns) + len(m.Extra)
	if n := int(binary.BigEndian.Uint16(got[6:])) + int(binary.BigEndian.Uint16(got[8:])) + int(binary.BigEndian.Uint16(got[10:])); n != count {
		t.Fatalf("the header tells of %d records, there are %d", n, count)
	}
}

// FuzzPacket sends whole packets through all that a packet goes through.
func FuzzPacket(f *testing.F) {
	for _, name := range []string{"web.overlay.local.", "WEB.overlay.LOCAL.", "many.overlay.local.", "crowd.overlay.local.", "nobody.overlay.local.", "overlay.local.", "example.com.", ".",
		"1.0.1.10.in-addr.arpa.", `a\.b\000\255.overlay.local.`, strings.Repeat(strings.Repeat("x", 61)+".", 4)} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeANY, dns.TypeAXFR, dns.TypeSOA, dns.TypeOPT} {
			f.Add(wire(f, question(name, qtype)), false)
			f.Add(wire(f, ednsQuestion(question(name, qtype), 1232, true)), true)
		}
	}
	for _, packet := range []string{
		"", "000001000001000000000000", "00008180000100000000000000000100 01", "00000100000100000000000003777777c00c00010001",
		"0000010000010000000000010000010001000029ffff00008000000c000a0008aaaaaaaaaaaaaaaa", "ffff2800000100000000000000000600 01",
	} {
		raw, err := hex.DecodeString(strings.ReplaceAll(packet, " ", ""))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, false)
	}
	s := newTestServer(ServerConfig{Forward: exchangerFunc(answerElsewhere)}, testZone())
	f.Fuzz(func(t *testing.T, packet []byte, stream bool) {
		proto := udp
		if stream {
			proto = tcp
		}
		before := slices.Clone(packet)
		if name, _, err := dns.UnpackDomainName(packet, headerSize); err == nil && strings.HasPrefix(strings.ToLower(name), "panic.") {
			return // the zone of these tests does
		}
		checkAnswer(t, packet, proto, replyTo(s, proto, packet))
		if !bytes.Equal(before, packet) {
			t.Fatal("the question was changed")
		}
	})
}

// FuzzAddresses compares the fast way to answer with the general one.
func FuzzAddresses(f *testing.F) {
	for _, name := range []string{"web.overlay.local.", "wEb.overlay.LOCAL.", "turn.overlay.local.", "crowd.overlay.local.", "nobody.overlay.local.", "overlay.local.", "Web.example.", "example.com."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR} {
			f.Add(wire(f, question(name, qtype)), false, true)
			f.Add(wire(f, ednsQuestion(question(name, qtype), 1232, true)), false, false)
			f.Add(wire(f, ednsQuestion(question(name, qtype), 600, true)), true, false)
		}
	}
	zone := clientsZone(f)
	alone, with := ServerConfig{}, ServerConfig{Forward: exchangerFunc(answerElsewhere)}
	fast := map[bool]*Server{false: newTestServer(alone, zone), true: newTestServer(with, zone)}
	slow := map[bool]*Server{false: newTestServer(alone, withoutLookup{zone}), true: newTestServer(with, withoutLookup{zone})}
	f.Fuzz(func(t *testing.T, packet []byte, stream, forward bool) {
		proto := udp
		if stream {
			proto = tcp
		}
		compareAnswers(t, packet, replyTo(slow[forward], proto, packet), replyTo(fast[forward], proto, packet))
	})
}

// withoutLookup has a server take the general way.
type withoutLookup struct{ *Zone }

func (withoutLookup) Lookup(_ []byte, _ bool, into []netip.Addr) (addrs []netip.Addr, ttl uint32, found bool) {
	return into, 0, false
}

func compareAnswers(t *testing.T, packet, want, got []byte) {
	t.Helper()
	if (want == nil) != (got == nil) {
		t.Fatalf("for %x: want %x, got %x", packet, want, got)
	}
	if want == nil {
		return
	}
	var a, b dns.Msg
	if err := a.Unpack(want); err != nil {
		t.Fatal(err)
	}
	if err := b.Unpack(got); err != nil {
		t.Fatal(err)
	}
	if a.Truncated && b.Truncated { // which of the records is left to rotation
		a.Answer, b.Answer = a.Answer[:0], b.Answer[:0]
	} else if len(want) < len(got) {
		t.Errorf("%d bytes instead of %d", len(got), len(want))
	}
	content := func(m *dns.Msg) []any {
		return []any{m.MsgHdr, m.Question, sortedLower(m.Answer), sortedLower(m.Ns), sortedLower(m.Extra)}
	}
	if diff := cmp.Diff(content(&a), content(&b)); diff != "" {
		t.Errorf("for %x (-general +fast)\n%s", packet, diff)
	}
}

// sortedLower ignores case, which owners of records need not share.
func sortedLower(records []dns.RR) []string {
	all := sorted(records)
	for i := range all {
		all[i] = strings.ToLower(all[i])
	}
	return all
}
