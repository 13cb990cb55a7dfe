package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func newZone(t testing.TB, sources ...string) *Zone {
	t.Helper()
	z, err := NewZone(ZoneConfig{Name: "overlay.local", NegativeTTL: 5 * time.Second, Sources: sources})
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func addrs(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// entry is a name with a TTL of 5 s and addresses.
func entry(name string, texts ...string) Entry {
	return Entry{Name: name, Addrs: addrs(texts...), TTL: 5 * time.Second}
}

func reverse(e Entry) Entry {
	e.Reverse = true
	return e
}

func set(t testing.TB, z *Zone, source, owner string, entries ...Entry) {
	t.Helper()
	if err := z.Set(source, owner, entries...); err != nil {
		t.Fatal(err)
	}
}

// askZone renders the reply to a question as "web. A" in one line: the rcode, the
// answer in order of text, and the authority after a slash, without serials.
func askZone(t testing.TB, z *Zone, question string) string {
	t.Helper()
	name, kind, _ := strings.Cut(question, " ")
	reply, ours := z.Answer(dns.Question{Name: name, Qtype: dns.StringToType[kind], Qclass: dns.ClassINET})
	if !ours {
		if !cmp.Equal(reply, Reply{}) {
			t.Errorf("%s: an answer that is not ours: %v", question, reply)
		}
		return "not ours"
	}
	words := []string{dns.RcodeToString[reply.Rcode]}
	if reply.Authoritative != (reply.Rcode != dns.RcodeServerFailure) {
		words = append(words, fmt.Sprintf("authoritative=%t", reply.Authoritative))
	}
	var records []string
	for _, rr := range reply.Answer {
		records = append(records, record(rr))
	}
	slices.Sort(records)
	words = append(words, records...)
	for _, rr := range reply.Ns {
		words = append(words, "/", record(rr))
	}
	return strings.Join(words, " ")
}

func record(rr dns.RR) string {
	h := rr.Header()
	data := strings.TrimPrefix(rr.String(), h.String())
	if soa, ok := rr.(*dns.SOA); ok {
		data = fmt.Sprintf("%s %s min=%d", soa.Ns, soa.Mbox, soa.Minttl)
	}
	return fmt.Sprintf("[%s %d %s %s]", h.Name, h.Ttl, dns.TypeToString[h.Rrtype], data)
}

const (
	soa      = " / [overlay.local. 5 SOA ns.overlay.local. hostmaster.overlay.local. min=5]"
	nodata   = "NOERROR" + soa
	nxdomain = "NXDOMAIN" + soa
)

// asks checks replies by question.
func asks(t *testing.T, z *Zone, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for question := range want {
		got[question] = askZone(t, z, question)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("replies (-want +got):\n%s", diff)
	}
}

func TestAnswer(t *testing.T) {
	z := newZone(t)
	set(t, z, "pods", "prod/web-1", entry("web.prod.svc", "10.64.1.2", "fd00:1::2"), entry("web-1.web.prod.svc", "10.64.1.2", "fd00:1::2"))
	set(t, z, "pods", "prod/web-2", entry("web.prod.svc", "10.64.2.2", "fd00:2::2"))
	set(t, z, "nodes", "alpha", Entry{Name: "Alpha.example.node", Addrs: addrs("10.64.1.1"), TTL: 30 * time.Second})
	set(t, z, "registered", "1", entry("db.service.local.", "10.64.1.7"), entry("cache.overlay.local.", "fd00:1::8"))
	set(t, z, "registered", "2", Entry{Name: "slow", Addrs: addrs("10.64.1.9", "10.64.1.9"), TTL: 1500 * time.Millisecond})
	z.SetServers(addrs("10.64.1.1", "fd00:1::1"))
	asks(t, z, map[string]string{
		"web.prod.svc.overlay.local. A":         "NOERROR [web.prod.svc.overlay.local. 5 A 10.64.1.2] [web.prod.svc.overlay.local. 5 A 10.64.2.2]",
		"web.prod.svc.overlay.local. AAAA":      "NOERROR [web.prod.svc.overlay.local. 5 AAAA fd00:1::2] [web.prod.svc.overlay.local. 5 AAAA fd00:2::2]",
		"web-1.web.prod.svc.overlay.local. A":   "NOERROR [web-1.web.prod.svc.overlay.local. 5 A 10.64.1.2]",
		"ALPHA.Example.node.OVERLAY.local. A":   "NOERROR [ALPHA.Example.node.OVERLAY.local. 30 A 10.64.1.1]",
		"cache.overlay.local. AAAA":             "NOERROR [cache.overlay.local. 5 AAAA fd00:1::8]",
		"slow.overlay.local. A":                 "NOERROR [slow.overlay.local. 1 A 10.64.1.9]",
		"cache.overlay.local. A":                nodata,
		"alpha.example.node.overlay.local. TXT": nodata,
		"alpha.example.node.overlay.local. SOA": nodata,
		"web.prod.svc.overlay.local. ANY":       nodata,
		"example.node.overlay.local. A":         nodata,
		"prod.svc.overlay.local. A":             nodata,
		"svc.overlay.local. AAAA":               nodata,
		"none.svc.overlay.local. A":             nxdomain,
		"eb.prod.svc.overlay.local. A":          nxdomain,
		"x.web-1.web.prod.svc.overlay.local. A": nxdomain,
		"overlay.local. A":                      nodata,
		"overlay.local. SOA":                    "NOERROR [overlay.local. 30 SOA ns.overlay.local. hostmaster.overlay.local. min=5]",
		"overlay.local. NS":                     "NOERROR [overlay.local. 30 NS ns.overlay.local.]",
		"ns.overlay.local. A":                   "NOERROR [ns.overlay.local. 30 A 10.64.1.1]",
		"ns.overlay.local. AAAA":                "NOERROR [ns.overlay.local. 30 AAAA fd00:1::1]",
		"ns.overlay.local. NS":                  nodata,
		"db.service.local. A":                   "NOERROR [db.service.local. 5 A 10.64.1.7]",
		"db.service.local. AAAA":                "NOERROR / [db.service.local. 5 SOA ns.overlay.local. hostmaster.overlay.local. min=5]",
		"db.service.local. SOA":                 "NOERROR [db.service.local. 30 SOA ns.overlay.local. hostmaster.overlay.local. min=5]",
		"db.service.local. NS":                  "NOERROR [db.service.local. 30 NS ns.overlay.local.]",
		"service.local. A":                      "not ours",
		"x.db.service.local. A":                 "not ours",
		"db.service.local.overlay.local. A":     nxdomain,
		"local. SOA":                            "not ours",
		". NS":                                  "not ours",
		"xoverlay.local. A":                     "not ours",
		"2.1.64.10.in-addr.arpa. PTR":           "not ours",
	})
}

// TestQuestionNames asks for the same names in all the ways there are to write them.
func TestQuestionNames(t *testing.T) {
	z := newZone(t)
	set(t, z, "s", "o", entry("k", "10.64.1.1"), entry("_web-1.a", "10.64.1.2"))
	asks(t, z, map[string]string{
		`\107.overlay.local. A`:                           `NOERROR [\107.overlay.local. 5 A 10.64.1.1]`,
		`\K.over\108ay.local. A`:                          `NOERROR [\K.over\108ay.local. 5 A 10.64.1.1]`,
		`_WEB\-1.A.overlay.local. A`:                      `NOERROR [_WEB\-1.A.overlay.local. 5 A 10.64.1.2]`,
		`_web-1\.a.overlay.local. A`:                      nxdomain,
		`k.overlay\.local. A`:                             "not ours",
		"\u212a.overlay.local. A":                         nxdomain, // the Kelvin sign is no K
		`\226\132\170.overlay.local. A`:                   nxdomain,
		`\000\255\003.overlay.local. A`:                   nxdomain,
		`x\007overlay\005local. A`:                        "not ours",
		`x\007overlay\005local\000. A`:                    "not ours",
		`\001k\007overlay.overlay.local. A`:               nxdomain,
		`+.overlay.local. A`:                              nxdomain,
		"overlay.local":                                   "not ours",
		"..overlay.local. A":                              "not ours",
		" A":                                              "not ours",
		strings.Repeat("a", 63) + ".overlay.local. A":     nxdomain,
		strings.Repeat("a", 64) + ".overlay.local. A":     "not ours",
		strings.Repeat("a.", 120) + "overlay.local. A":    nxdomain,
		strings.Repeat("abc.", 120) + "overlay.local. AA": "not ours",
	})
}

// TestReplicas is for the original's faults: names went with any one replica, or stayed
// with addresses of replicas that had gone, and left tombstones behind.
func TestReplicas(t *testing.T) {
	z := newZone(t)
	const question = "web.overlay.local. A"
	one, two := "[web.overlay.local. 5 A 10.64.1.1]", "[web.overlay.local. 5 A 10.64.1.2]"
	want := func(reply string) {
		t.Helper()
		if got := askZone(t, z, question); got != reply {
			t.Errorf("got %s, want %s", got, reply)
		}
	}
	set(t, z, "attachments", "1", entry("web", "10.64.1.1"))
	set(t, z, "attachments", "2", entry("web", "10.64.1.2"))
	set(t, z, "pods", "2", entry("web", "10.64.1.2"))
	want("NOERROR " + one + " " + two)
	set(t, z, "attachments", "2")
	want("NOERROR " + one + " " + two)
	set(t, z, "pods", "2")
	want("NOERROR " + one)
	set(t, z, "pods", "2")
	want("NOERROR " + one)
	set(t, z, "attachments", "1", entry("web", "10.64.1.2"))
	want("NOERROR " + two)
	set(t, z, "attachments", "1")
	want(nxdomain)
	if got := askZone(t, z, "web.overlay.local. AAAA"); got != nxdomain {
		t.Errorf("AAAA: %s", got)
	}
	if list := z.List(); len(list) > 0 || z.Len() > 0 {
		t.Errorf("names %v remain, %d of them", list, z.Len())
	}
}

// TestRemovalCoversBothFamilies is the original's test_dns_handle_remove_record_covers_both_types,
// for relative and for absolute names.
func TestRemovalCoversBothFamilies(t *testing.T) {
	z := newZone(t)
	for _, name := range []string{"web", "web.overlay.local."} {
		set(t, z, "registered", "1", entry(name, "10.64.1.1", "fd00:1::1"))
		asks(t, z, map[string]string{
			"web.overlay.local. A":    "NOERROR [web.overlay.local. 5 A 10.64.1.1]",
			"web.overlay.local. AAAA": "NOERROR [web.overlay.local. 5 AAAA fd00:1::1]",
		})
		set(t, z, "registered", "1", entry(name, "10.64.1.1"))
		asks(t, z, map[string]string{"web.overlay.local. A": "NOERROR [web.overlay.local. 5 A 10.64.1.1]", "web.overlay.local. AAAA": nodata})
		set(t, z, "registered", "1")
		asks(t, z, map[string]string{"web.overlay.local. A": nxdomain, "web.overlay.local. AAAA": nxdomain})
	}
}

func TestPlacesAboveGoWithTheLastName(t *testing.T) {
	z := newZone(t)
	set(t, z, "s", "1", entry("a.b.c", "10.64.1.1"))
	set(t, z, "s", "2", entry("b.c", "10.64.1.2"), entry("d.c", "10.64.1.2"))
	set(t, z, "s", "1")
	asks(t, z, map[string]string{
		"a.b.c.overlay.local. A": nxdomain,
		"b.c.overlay.local. A":   "NOERROR [b.c.overlay.local. 5 A 10.64.1.2]",
		"c.overlay.local. A":     nodata,
	})
	set(t, z, "s", "2")
	asks(t, z, map[string]string{
		"b.c.overlay.local. A": nxdomain,
		"d.c.overlay.local. A": nxdomain,
		"c.overlay.local. A":   nxdomain,
		"overlay.local. A":     nodata,
		"ns.overlay.local. A":  nodata,
	})
	if z.names.live != 2 {
		t.Errorf("the table has %d names, want 2", z.names.live)
	}
}

func TestLowestTTL(t *testing.T) {
	z := newZone(t)
	ttl := func() uint32 {
		t.Helper()
		reply, _ := z.Answer(dns.Question{Name: "a.overlay.local.", Qtype: dns.TypeA})
		if len(reply.Answer) == 0 {
			t.Fatal("no answer")
		}
		return reply.Answer[0].Header().Ttl
	}
	for _, step := range []struct {
		owner string
		ttl   time.Duration
		want  uint32
	}{
		{"1", 30 * time.Second, 30}, {"2", 5 * time.Second, 5}, {"3", 9 * time.Second, 5}, {"2", 10 * time.Second, 9}, {"3", 40 * time.Second, 10},
		{"1", -time.Second, 0}, {"1", 1 << 62, 10}, {"2", 1 << 62, 40}, {"3", 1 << 62, 1<<31 - 1},
	} {
		set(t, z, "s", step.owner, Entry{Name: "a", Addrs: addrs("10.64.1.1"), TTL: step.ttl})
		if got := ttl(); got != step.want {
			t.Errorf("after %s has %s: %d, want %d", step.owner, step.ttl, got, step.want)
		}
	}
}

func TestBadEntriesCostOnlyThemselves(t *testing.T) {
	long := strings.Repeat(strings.Repeat("a", 63)+".", 4)
	for name, test := range map[string]struct {
		entry Entry
		want  error
	}{
		"empty":                {entry("", "10.64.1.1"), ErrName},
		"root":                 {entry(".", "10.64.1.1"), ErrName},
		"empty label":          {entry("a..b", "10.64.1.1"), ErrName},
		"dot first":            {entry(".a", "10.64.1.1"), ErrName},
		"two dots last":        {entry("a..", "10.64.1.1"), ErrName},
		"label of 64":          {entry(strings.Repeat("a", 64), "10.64.1.1"), ErrName},
		"name of 254":          {entry(long[:254]+".", "10.64.1.1"), ErrName},
		"254 with the zone":    {entry(long[:240], "10.64.1.1"), ErrName},
		"much too long":        {entry(strings.Repeat("a.", 1<<16), "10.64.1.1"), ErrName},
		"space":                {entry("a b", "10.64.1.1"), ErrName},
		"escape":               {entry(`a\.b`, "10.64.1.1"), ErrName},
		"wildcard":             {entry("*", "10.64.1.1"), ErrName},
		"beyond ASCII":         {entry("café", "10.64.1.1"), ErrName},
		"zero byte":            {entry("a\x00", "10.64.1.1"), ErrName},
		"line":                 {entry("a\n", "10.64.1.1"), ErrName},
		"the server's":         {entry("NS", "10.64.1.1"), ErrReserved},
		"absolute server's":    {entry("ns.overlay.local.", "10.64.1.1"), ErrReserved},
		"no address":           {entry("none"), nil},
		"no valid address":     {Entry{Name: "none", Addrs: []netip.Addr{{}}}, nil},
		"address of a link":    {entry("none", "fe80::1%eth0"), nil},
		"name of 253":          {entry(long[:253]+".", "10.64.1.1"), nil},
		"253 with the zone":    {entry(long[:239], "10.64.1.1"), nil},
		"mapped address is v4": {entry("mapped", "::ffff:10.64.1.1"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			z := newZone(t)
			err := z.Set("s", "o", entry("a", "10.64.1.1"), test.entry, entry("b", "10.64.1.2"))
			if !errors.Is(err, test.want) {
				t.Errorf("Set: %v, want %v", err, test.want)
			}
			asks(t, z, map[string]string{
				"a.overlay.local. A":    "NOERROR [a.overlay.local. 5 A 10.64.1.1]",
				"b.overlay.local. A":    "NOERROR [b.overlay.local. 5 A 10.64.1.2]",
				"none.overlay.local. A": nxdomain,
				"ns.overlay.local. A":   nodata,
			})
			again := z.SetSource("s", map[string][]Entry{"o": {entry("a", "10.64.1.1"), test.entry, entry("b", "10.64.1.2")}})
			if fmt.Sprint(again) != fmt.Sprint(err) {
				t.Errorf("SetSource: %v, Set: %v", again, err)
			}
		})
	}
}

func TestManyFaultsAreOneLine(t *testing.T) {
	z := newZone(t)
	err := z.Set("s", "o", slices.Repeat([]Entry{entry("no name", "10.64.1.1")}, 10_000)...)
	if !errors.Is(err, ErrName) || len(err.Error()) > 1000 || !strings.Contains(err.Error(), "9990 more") {
		t.Errorf("error of %d bytes: %.1000s", len(err.Error()), err)
	}
}

// TestOddZones is the original's test_dns_server_invalid_zone, which it accepted.
func TestOddZones(t *testing.T) {
	for name, want := range map[string]string{
		"overlay.local": "overlay.local.", "overlay.local.": "overlay.local.", "Overlay.LOCAL": "overlay.local.", "local": "local.",
		"": "", ".": "", "a..b": "", ".a": "", "invalid zone": "", "*.a": "", "a/b": "", "ünder": "", `a\046b`: "", "a.b..": "",
		strings.Repeat("a", 64): "", strings.Repeat("a.", 125): "", strings.Repeat("a.", 200): "",
	} {
		z, err := NewZone(ZoneConfig{Name: name})
		switch {
		case want == "" && !errors.Is(err, ErrName):
			t.Errorf("%q: error %v, want ErrName", name, err)
		case want != "" && err != nil:
			t.Errorf("%q: %v", name, err)
		case want != "" && z.Name() != want:
			t.Errorf("%q is %q, want %q", name, z.Name(), want)
		}
	}
}

func TestUnfinishedSources(t *testing.T) {
	z := newZone(t, "pods", "nodes")
	z.SetReverse([]netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")})
	set(t, z, "pods", "a", reverse(entry("a.b", "10.64.1.1")))
	set(t, z, "nodes", "x", entry("x.node", "10.64.1.2"))
	known := map[string]string{
		"a.b.overlay.local. A":        "NOERROR [a.b.overlay.local. 5 A 10.64.1.1]",
		"a.b.overlay.local. AAAA":     nodata,
		"overlay.local. A":            nodata,
		"ns.overlay.local. A":         nodata,
		"1.1.64.10.in-addr.arpa. PTR": "NOERROR [1.1.64.10.in-addr.arpa. 5 PTR a.b.overlay.local.]",
		"a.example. A":                "not ours",
	}
	for _, step := range []struct {
		source  string
		waiting []string
		unknown string
	}{
		{"", []string{"pods", "nodes"}, "SERVFAIL"},
		{"guests", []string{"pods", "nodes"}, "SERVFAIL"},
		{"nodes", []string{"pods"}, "SERVFAIL"},
		{"nodes", []string{"pods"}, "SERVFAIL"},
		{"pods", nil, nxdomain},
	} {
		if step.source != "" {
			if err := z.SetSource(step.source, map[string][]Entry{"a": {reverse(entry("a.b", "10.64.1.1"))}}); err != nil {
				t.Fatal(err)
			}
		}
		asks(t, z, known)
		asks(t, z, map[string]string{"c.overlay.local. A": step.unknown, "c.b.overlay.local. AAAA": step.unknown})
		above, nobody := "SERVFAIL", "SERVFAIL"
		if step.unknown != above {
			above, nobody = nodata, "NXDOMAIN / [64.10.in-addr.arpa. 5 SOA ns.overlay.local. hostmaster.overlay.local. min=5]"
		}
		asks(t, z, map[string]string{"b.overlay.local. A": above, "9.1.64.10.in-addr.arpa. PTR": nobody})
		if diff := cmp.Diff(step.waiting, slices.Clip(z.Waiting()), cmp.Transformer("nil", func(s []string) string { return fmt.Sprint(s) })); diff != "" {
			t.Errorf("waiting (-want +got):\n%s", diff)
		}
	}
}

func TestSetSourceReplacesOnlyItsOwn(t *testing.T) {
	z := newZone(t)
	set(t, z, "a", "1", entry("one", "10.64.1.1"))
	set(t, z, "b", "1", entry("one", "10.64.1.1"), entry("two", "10.64.1.2"))
	if err := z.SetSource("a", map[string][]Entry{"2": {entry("three", "10.64.1.3")}}); err != nil {
		t.Fatal(err)
	}
	want := []Listed{
		{Name: "one.overlay.local.", Addrs: addrs("10.64.1.1"), TTL: 5 * time.Second, Sources: []string{"b"}},
		{Name: "three.overlay.local.", Addrs: addrs("10.64.1.3"), TTL: 5 * time.Second, Sources: []string{"a"}},
		{Name: "two.overlay.local.", Addrs: addrs("10.64.1.2"), TTL: 5 * time.Second, Sources: []string{"b"}},
	}
	if diff := cmp.Diff(want, z.List(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if z.Len() != 3 {
		t.Errorf("%d names, want 3", z.Len())
	}
}

func TestRotation(t *testing.T) {
	z := newZone(t)
	set(t, z, "s", "o", entry("a", "10.64.1.1", "10.64.1.2", "10.64.1.3", "fd00::1", "fd00::2"))
	first := map[string]int{}
	for range 30 {
		// As the C library does: both families for each connection.
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			reply, _ := z.Answer(dns.Question{Name: "a.overlay.local.", Qtype: kind})
			first[record(reply.Answer[0])]++
		}
	}
	want := map[string]int{
		"[a.overlay.local. 5 A 10.64.1.1]": 10, "[a.overlay.local. 5 A 10.64.1.2]": 10, "[a.overlay.local. 5 A 10.64.1.3]": 10,
		"[a.overlay.local. 5 AAAA fd00::1]": 15, "[a.overlay.local. 5 AAAA fd00::2]": 15,
	}
	if diff := cmp.Diff(want, first); diff != "" {
		t.Errorf("how often each was first (-want +got):\n%s", diff)
	}
}

func TestDown(t *testing.T) {
	z := newZone(t)
	set(t, z, "s", "1", entry("a", "10.64.1.1", "fd00:1::1"), entry("one", "10.64.1.1"))
	set(t, z, "s", "2", entry("a", "10.64.2.1", "fd00:2::1"))
	down := func(texts ...string) {
		var prefixes []netip.Prefix
		for _, text := range texts {
			prefixes = append(prefixes, netip.MustParsePrefix(text))
		}
		z.SetDown(prefixes)
	}
	want := func(replies map[string]string) {
		t.Helper()
		got := map[string]string{}
		for question := range replies {
			name, kind, _ := strings.Cut(question, " ")
			reply, _ := z.Answer(dns.Question{Name: name + ".overlay.local.", Qtype: dns.StringToType[kind]})
			var texts []string
			for _, rr := range reply.Answer {
				texts = append(texts, strings.TrimPrefix(rr.String(), rr.Header().String()))
			}
			slices.Sort(texts)
			got[question] = strings.Join(texts, " ")
		}
		if diff := cmp.Diff(replies, got); diff != "" {
			t.Errorf("replies (-want +got):\n%s", diff)
		}
	}
	down("10.64.1.0/24", "fd00:1::/64")
	want(map[string]string{"a A": "10.64.2.1", "a AAAA": "fd00:2::1", "one A": "10.64.1.1"})
	if got := z.List()[0].Down; !slices.Equal(got, addrs("10.64.1.1", "fd00:1::1")) {
		t.Errorf("listed as down: %v", got)
	}
	set(t, z, "s", "3", entry("a", "10.64.1.9", "10.64.3.1"))
	want(map[string]string{"a A": "10.64.2.1 10.64.3.1"})
	if got := z.Asked(time.Now().Add(-time.Hour)); !slices.Equal(got, addrs("10.64.1.1", "10.64.1.9", "10.64.2.1", "10.64.3.1", "fd00:1::1", "fd00:2::1")) {
		t.Errorf("asked for %v: what is down has to be among them, or it would stay so", got)
	}
	down("10.64.1.0/24", "10.64.2.0/24", "10.64.3.0/24", "fd00:2::/64")
	want(map[string]string{"a A": "10.64.1.1 10.64.1.9 10.64.2.1 10.64.3.1", "a AAAA": "fd00:1::1"})
	down()
	want(map[string]string{"a A": "10.64.1.1 10.64.1.9 10.64.2.1 10.64.3.1", "a AAAA": "fd00:1::1 fd00:2::1"})
}

func TestAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(t)
		set(t, z, "s", "1", entry("a", "10.64.1.1", "10.64.1.2"), entry("b", "10.64.1.1", "10.64.1.3"), entry("dual", "10.64.1.4", "fd00::4"))
		start := time.Now()
		check := func(since time.Time, want ...netip.Addr) {
			t.Helper()
			if got := z.Asked(since); !slices.Equal(got, want) {
				t.Errorf("asked for since %s: %v, want %v", since.Sub(start), got, want)
			}
		}
		check(start)
		time.Sleep(time.Second)
		askZone(t, z, "a.overlay.local. A")
		askZone(t, z, "dual.overlay.local. A")
		askZone(t, z, "a.overlay.local. TXT")
		check(start, addrs("10.64.1.1", "10.64.1.2")...)
		check(time.Now().Add(1))
		time.Sleep(time.Second)
		if _, _, found := z.Lookup([]byte("\x01b\x07overlay\x05local\x00"), false, make([]netip.Addr, 0, 2)); !found {
			t.Error("b not found")
		}
		check(time.Now(), addrs("10.64.1.1", "10.64.1.3")...)
		check(start, addrs("10.64.1.1", "10.64.1.2", "10.64.1.3")...)
		set(t, z, "s", "1", entry("a", "10.64.1.1", "10.64.1.5"), entry("b", "10.64.1.1"))
		check(start, addrs("10.64.1.1", "10.64.1.5")...)
	})
}

func TestLookup(t *testing.T) {
	z := newZone(t)
	set(t, z, "s", "o", entry("web", "10.64.1.1", "10.64.1.2", "fd00::1"), entry("b.a", "10.64.1.1"), entry("x.example.", "10.64.1.1"))
	for name, test := range map[string]struct {
		wire  string
		ipv6  bool
		room  int
		want  []netip.Addr
		found bool
	}{
		"v4":         {"\x03web\x07overlay\x05local\x00", false, 2, addrs("10.64.1.1", "10.64.1.2"), true},
		"v6":         {"\x03web\x07overlay\x05local\x00", true, 1, addrs("fd00::1"), true},
		"no room":    {"\x03web\x07overlay\x05local\x00", false, 1, nil, false},
		"no v6":      {"\x01b\x01a\x07overlay\x05local\x00", true, 8, nil, false},
		"nothing":    {"\x01a\x07overlay\x05local\x00", false, 8, nil, false},
		"nobody":     {"\x01c\x07overlay\x05local\x00", false, 8, nil, false},
		"outside":    {"\x01x\x07example\x00", false, 8, addrs("10.64.1.1"), true},
		"not a name": {"", false, 8, nil, false},
		"upper case": {"\x03WEB\x07overlay\x05local\x00", false, 8, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			before := netip.MustParseAddr("192.0.2.1")
			into := append(make([]netip.Addr, 0, test.room+1), before)
			got, ttl, found := z.Lookup([]byte(test.wire), test.ipv6, into)
			if got[0] != before || found != test.found || found && ttl != 5 {
				t.Fatalf("found %t, TTL %d, %v", found, ttl, got)
			}
			got = slices.SortedFunc(slices.Values(got[1:]), netip.Addr.Compare)
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	z := newZone(t)
	set(t, z, "s", "o", entry("web", "10.64.1.1", "10.64.1.2", "fd00::1", "fd00::2"))
	wire := []byte("\x03web\x07overlay\x05local\x00")
	into := make([]netip.Addr, 0, 8)
	if allocs := testing.AllocsPerRun(1000, func() { z.Lookup(wire, true, into) }); allocs > 0 {
		t.Errorf("%v allocations", allocs)
	}
}
