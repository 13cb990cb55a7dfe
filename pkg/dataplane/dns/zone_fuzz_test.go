package dns

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// model is a zone that keeps what it was told and looks through all of it for every answer.
type model struct {
	entries map[[2]string][]Entry
	down    []netip.Prefix
}

// world is all there is in the property test: small, so that things meet.
var world = struct {
	names, addrs, owners, sources []string
}{
	names:   []string{"a", "A", "b", "b.a", "c.b.a", "c.d.a", "a.overlay.local.", "x.example.", "b.x.example.", "example.", "bad name", "ns", "overlay.local.", "", "a..b"},
	addrs:   []string{"10.64.1.1", "10.64.1.2", "10.64.2.1", "10.64.2.2", "fd00:1::1", "fd00:1::2", "fd00:2::1", "fd00:9::1"},
	owners:  []string{"1", "2", "3"},
	sources: []string{"s", "t"},
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func randomEntries(r *rand.Rand) []Entry {
	var entries []Entry
	for range r.IntN(4) {
		e := Entry{Name: pick(r, world.names), TTL: time.Duration(1+r.IntN(3)) * time.Second, Reverse: r.IntN(2) == 0}
		for range r.IntN(4) {
			e.Addrs = append(e.Addrs, netip.MustParseAddr(pick(r, world.addrs)))
		}
		entries = append(entries, e)
	}
	return entries
}

// change makes the same change to both.
func (m *model) change(r *rand.Rand, z *Zone) string {
	source := pick(r, world.sources)
	switch r.IntN(8) {
	case 0:
		owners := map[string][]Entry{}
		for _, owner := range world.owners {
			delete(m.entries, [2]string{source, owner})
			if r.IntN(2) == 0 {
				owners[owner] = randomEntries(r)
				m.entries[[2]string{source, owner}] = owners[owner]
			}
		}
		_ = z.SetSource(source, owners)
		return fmt.Sprint("SetSource ", source, owners)
	case 1:
		m.down = nil
		for _, p := range []string{"10.64.1.0/24", "10.64.2.0/24", "fd00:1::/64", "fd00:2::/64"} {
			if r.IntN(3) == 0 {
				m.down = append(m.down, netip.MustParsePrefix(p))
			}
		}
		z.SetDown(m.down)
		return fmt.Sprint("SetDown ", m.down)
	}
	owner, entries := pick(r, world.owners), randomEntries(r)
	m.entries[[2]string{source, owner}] = entries
	_ = z.Set(source, owner, entries...)
	return fmt.Sprint("Set ", source, owner, entries)
}

// held is a name as the model knows it.
type held struct {
	ttl     time.Duration
	addrs   map[netip.Addr]bool
	reverse map[netip.Addr]bool
}

func (m *model) names() map[string]held {
	names := map[string]held{}
	for _, entries := range m.entries {
		// An owner's entries for a name are one.
		own := map[string]bool{}
		for _, e := range entries {
			if e.Reverse && len(e.Addrs) > 0 {
				own[modelName(e.Name)] = true
			}
		}
		for _, e := range entries {
			name := modelName(e.Name)
			if name == "" || name == "ns.overlay.local." || len(e.Addrs) == 0 {
				continue
			}
			h, there := names[name]
			if !there {
				h = held{e.TTL, map[netip.Addr]bool{}, map[netip.Addr]bool{}}
			}
			h.ttl = min(h.ttl, e.TTL)
			for _, a := range e.Addrs {
				h.addrs[a] = true
				if own[name] {
					h.reverse[a] = true
				}
			}
			names[name] = h
		}
	}
	return names
}

func modelName(name string) string {
	name = strings.ToLower(name)
	switch {
	case name == "", strings.Contains(name, " "), strings.Contains(name, ".."):
		return ""
	case strings.HasSuffix(name, "."):
		return name
	}
	return name + ".overlay.local."
}

// answer is the reply as askZone renders it.
func (m *model) answer(name string, kind uint16) string {
	names := m.names()
	h, there := names[name]
	var records []string
	var all, live []netip.Addr
	for a := range h.addrs {
		if a.Is4() != (kind == dns.TypeA) || kind == dns.TypeTXT {
			continue
		}
		all = append(all, a)
		if !slices.ContainsFunc(m.down, func(p netip.Prefix) bool { return p.Contains(a) }) {
			live = append(live, a)
		}
	}
	if len(live) == 0 {
		live = all
	}
	for _, a := range live {
		records = append(records, fmt.Sprintf("[%s %d %s %s]", name, h.ttl/time.Second, dns.TypeToString[kind], a))
	}
	slices.Sort(records)
	inZone := strings.HasSuffix("."+name, ".overlay.local.")
	above := name == "overlay.local." || name == "ns.overlay.local."
	for other := range names {
		above = above || strings.HasSuffix(other, "."+name)
	}
	switch {
	case len(records) > 0:
		return "NOERROR " + strings.Join(records, " ")
	case there && !inZone:
		return "NOERROR / [" + name + " 5 SOA ns.overlay.local. hostmaster.overlay.local. min=5]"
	case !inZone:
		return "not ours"
	case there || above:
		return nodata
	}
	return nxdomain
}

func (m *model) pointer(addr netip.Addr) string {
	var longest string
	var ttl time.Duration
	for name, h := range m.names() {
		if h.reverse[addr] && (len(name) > len(longest) || len(name) == len(longest) && name < longest) {
			longest, ttl = name, h.ttl
		}
	}
	if longest == "" {
		return "NXDOMAIN"
	}
	return fmt.Sprintf("NOERROR %d %s", ttl/time.Second, longest)
}

// check compares all answers there are.
func (m *model) check(t *testing.T, z *Zone) {
	t.Helper()
	questions := map[string]bool{"nobody.overlay.local.": true, "d.a.overlay.local.": true, "ns.overlay.local.": true, "x.b.a.overlay.local.": true}
	for _, name := range world.names {
		if name = modelName(name); name != "" {
			questions[name] = true
		}
	}
	for name := range questions {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT} {
			question := name + " " + dns.TypeToString[kind]
			if want, got := m.answer(name, kind), askZone(t, z, question); got != want {
				t.Errorf("%s\n got %s\nwant %s", question, got, want)
			}
		}
	}
	for _, text := range world.addrs {
		question, _ := dns.ReverseAddr(text)
		reply, _ := z.Answer(dns.Question{Name: question, Qtype: dns.TypePTR})
		got := dns.RcodeToString[reply.Rcode]
		for _, rr := range reply.Answer {
			got += fmt.Sprintf(" %d %s", rr.Header().Ttl, rr.(*dns.PTR).Ptr)
		}
		if want := m.pointer(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: got %s, want %s", question, got, want)
		}
	}
	var listed []string
	for _, l := range z.List() {
		listed = append(listed, l.Name)
	}
	if want := slices.Sorted(maps.Keys(m.names())); !slices.Equal(listed, want) || z.Len() != len(want) {
		t.Errorf("%d names are listed: %v, want %v", z.Len(), listed, want)
	}
}

// changeAndCheck makes changes by the seed and compares with the model after each.
func changeAndCheck(t *testing.T, seed uint64, changes int) {
	z := newZone(t)
	z.SetReverse([]netip.Prefix{netip.MustParsePrefix("10.64.0.0/16"), netip.MustParsePrefix("fd00::/16")})
	m := &model{entries: map[[2]string][]Entry{}}
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test that can be repeated
	var done []string
	for range changes {
		done = append(done, m.change(r, z))
		if m.check(t, z); t.Failed() {
			t.Fatalf("seed %d, after\n%s", seed, strings.Join(done, "\n"))
		}
	}
	for _, source := range world.sources {
		_ = z.SetSource(source, nil)
	}
	if z.names.live != 2 || z.pointers.live != 0 || len(z.several) > 0 || len(z.owners["s"])+len(z.owners["t"]) > 0 {
		t.Errorf("seed %d: an empty zone has %d names, %d addresses, %v, %v", seed, z.names.live, z.pointers.live, z.several, z.owners)
	}
}

func TestChangesAgainstModel(t *testing.T) {
	for seed := range uint64(60) {
		changeAndCheck(t, seed, 30)
	}
}

func FuzzZone(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { changeAndCheck(t, seed, 20) })
}

// FuzzAnswer asks for any name: no panic, and the answer packs.
func FuzzAnswer(f *testing.F) {
	z := newZone(f)
	z.SetReverse([]netip.Prefix{netip.MustParsePrefix("10.64.0.0/12"), netip.MustParsePrefix("fd00::/30")})
	set(f, z, "s", "o", reverse(entry("web.prod.svc", "10.64.1.1", "fd00::1")), entry("x.example.", "10.64.1.1", "10.64.1.2"))
	for _, seed := range []string{"\x03web\x04prod\x03svc\x07overlay\x05local\x00", "\x01x\x07example\x00", "\x011\x011\x0264\x0210\x07in-addr\x04arpa\x00",
		"\x01f\x03ip6\x04arpa\x00", "\x00", "\x05a.b\\c\x07overlay\x05local\x00", "\x03\x00\xff\\\x07OVERLAY\x05local\x00"} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeSOA, dns.TypeANY} {
			f.Add([]byte(seed), kind)
		}
	}
	f.Fuzz(func(t *testing.T, wire []byte, kind uint16) {
		name, end, err := dns.UnpackDomainName(wire, 0)
		if err != nil {
			return
		}
		question := dns.Question{Name: name, Qtype: kind, Qclass: dns.ClassINET}
		reply, ours := z.Answer(question)
		if !ours {
			return
		}
		message := new(dns.Msg)
		message.Question, message.Answer, message.Ns, message.Rcode = []dns.Question{question}, reply.Answer, reply.Ns, reply.Rcode
		if _, err := message.Pack(); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if (len(reply.Answer) == 0) != (len(reply.Ns) == 1) {
			t.Errorf("%q: answer %v, authority %v", name, reply.Answer, reply.Ns)
		}
		if kind != dns.TypeA && kind != dns.TypeAAAA || end != len(wire) {
			return
		}
		for i, c := range wire {
			wire[i] = lower(c)
		}
		addrs, ttl, found := z.Lookup(wire, kind == dns.TypeAAAA, make([]netip.Addr, 0, 8))
		if found != (len(reply.Answer) > 0) || len(addrs) != len(reply.Answer) || found && ttl != reply.Answer[0].Header().Ttl {
			t.Errorf("%q: Lookup says %v %d %t, Answer %v", name, addrs, ttl, found, reply)
		}
	})
}

// FuzzSetName sets any name: it is refused, or found again in any case of letters.
func FuzzSetName(f *testing.F) {
	for _, seed := range []string{"web", "Web.prod.svc", "a.", "a..b", ".", "", "*", "a\\.b", "ns", "overlay.local.", strings.Repeat("a.", 127), strings.Repeat("a", 64), "é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		z := newZone(t)
		err := z.Set("s", "o", entry(name, "10.64.1.1"), entry("other", "10.64.1.2"))
		if got := askZone(t, z, "other.overlay.local. A"); !strings.HasPrefix(got, "NOERROR [") {
			t.Errorf("the other entry: %s", got)
		}
		if err != nil {
			return
		}
		full := strings.ToUpper(name)
		if !strings.HasSuffix(full, ".") {
			full += ".overlay.local."
		}
		if _, valid := dns.IsDomainName(full); !valid {
			t.Errorf("%q was taken", name)
		}
		if got := askZone(t, z, full+" A"); !strings.HasPrefix(got, "NOERROR ["+full+" 5 A") {
			t.Errorf("%q: %s", name, got)
		}
		if err := z.Set("s", "o"); err != nil || z.Len() != 0 || z.names.live != 2 {
			t.Errorf("after it went: %v, %d names", err, z.Len())
		}
	})
}
