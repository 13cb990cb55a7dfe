package dns

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// cached is what a cache tells about a question, nil if nothing.
func cached(c *cache, question *dns.Msg) []string {
	known, ok := c.get(keyOf(question, true))
	if !ok {
		return nil
	}
	return told(known.reply(question))
}

// upstreamSays is what an upstream says to it.
func upstreamSays(question *dns.Msg, change func(*dns.Msg)) *dns.Msg {
	answer := new(dns.Msg).SetReply(question)
	change(answer)
	return answer
}

// keeps is what a cache tells of an answer at that time after it came.
type keeps struct {
	after time.Duration
	want  []string
}

func TestCacheKeepsFor(t *testing.T) {
	answer := func(records ...string) func(*dns.Msg) {
		return func(m *dns.Msg) { m.Answer = rrs(records...) }
	}
	denial := func(rcode int, soa string) func(*dns.Msg) {
		return func(m *dns.Msg) { m.Rcode, m.Ns = rcode, rrs(soa) }
	}
	const day = 24 * time.Hour
	tests := []struct {
		name   string
		answer func(*dns.Msg)
		keeps  []keeps
	}{
		{"answer", answer(webA), []keeps{
			{0, []string{"NOERROR", webA}},
			{999 * time.Millisecond, []string{"NOERROR", webA}},
			{time.Second, []string{"NOERROR", "web.example. 59 IN A 192.0.2.1"}},
			{59 * time.Second, []string{"NOERROR", "web.example. 1 IN A 192.0.2.1"}},
			{60 * time.Second, nil},
		}},
		{"shortest of several", answer("web.example. 60 IN CNAME a.example.", "a.example. 5 IN A 192.0.2.1"), []keeps{
			{4 * time.Second, []string{"NOERROR", "web.example. 56 IN CNAME a.example.", "a.example. 1 IN A 192.0.2.1"}},
			{5 * time.Second, nil},
		}},
		{"TTL 0", answer("web.example. 0 IN A 192.0.2.1"), []keeps{{0, nil}}},
		{"TTL 0 among others", answer(webA, "web.example. 0 IN A 192.0.2.2"), []keeps{{0, nil}}},
		{"TTL with the highest bit", answer("web.example. 2147483648 IN A 192.0.2.1"), []keeps{{0, nil}}},
		{"a week is a day", answer("web.example. 604800 IN A 192.0.2.1"), []keeps{
			{0, []string{"NOERROR", "web.example. 86400 IN A 192.0.2.1"}},
			{day - time.Second, []string{"NOERROR", "web.example. 1 IN A 192.0.2.1"}},
			{day, nil},
		}},
		{"no such name, as long as the SOA's minimum", denial(dns.RcodeNameError, soaText), []keeps{
			{0, []string{"NXDOMAIN", "example. 300 IN SOA ns.example. admin.example. 1 2 3 4 300"}},
			{299 * time.Second, []string{"NXDOMAIN", "example. 1 IN SOA ns.example. admin.example. 1 2 3 4 300"}},
			{300 * time.Second, nil},
		}},
		{"nothing of this type, as long as the SOA's TTL", denial(dns.RcodeSuccess, "example. 20 IN SOA ns.example. admin.example. 1 2 3 4 300"), []keeps{
			{19 * time.Second, []string{"NOERROR", "example. 1 IN SOA ns.example. admin.example. 1 2 3 4 300"}},
			{20 * time.Second, nil},
		}},
		{"a denial for a day is one for an hour", denial(dns.RcodeNameError, "example. 86400 IN SOA ns.example. admin.example. 1 2 3 4 86400"), []keeps{
			{0, []string{"NXDOMAIN", "example. 3600 IN SOA ns.example. admin.example. 1 2 3 4 86400"}},
			{time.Hour - time.Second, []string{"NXDOMAIN", "example. 1 IN SOA ns.example. admin.example. 1 2 3 4 86400"}},
			{time.Hour, nil},
		}},
		{"denial without SOA", func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, []keeps{{0, nil}}},
		{"nothing without SOA", func(*dns.Msg) {}, []keeps{{0, nil}}},
		{"a referral", func(m *dns.Msg) { m.Ns = rrs("example. 60 IN NS ns.example.") }, []keeps{{0, nil}}},
		{"aliases that lead nowhere", func(m *dns.Msg) {
			m.Rcode, m.Answer, m.Ns = dns.RcodeNameError, rrs("web.example. 10 IN CNAME a.example."), rrs(soaText)
		}, []keeps{
			{9 * time.Second, []string{"NXDOMAIN", "web.example. 1 IN CNAME a.example.", "example. 291 IN SOA ns.example. admin.example. 1 2 3 4 300"}},
			{10 * time.Second, nil},
		}},
		{"aliases that lead nowhere, without SOA", answer("web.example. 10 IN CNAME a.example."), []keeps{{0, nil}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, question, start := newCache(), question("web.example.", dns.TypeA), time.Now()
				c.put(keyOf(question, true), upstreamSays(question, test.answer))
				for _, keeps := range test.keeps {
					wait(t, time.Until(start.Add(keeps.after)))
					if diff := cmp.Diff(keeps.want, cached(c, question)); diff != "" {
						t.Errorf("after %v (-want +got):\n%s", keeps.after, diff)
					}
				}
			})
		})
	}
}

// wait lets time pass in a bubble.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	<-time.After(d)
}

func TestCacheFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, question := newCache(), question("web.example.", dns.TypeA, withEDNS)
		why := dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNetworkError}
		wantTold(t, c.fail(keyOf(question, true), why).reply(question), "SERVFAIL")
		wait(t, failureFor-time.Millisecond)
		if diff := cmp.Diff([]string{"SERVFAIL"}, cached(c, question)); diff != "" {
			t.Errorf("before its end (-want +got):\n%s", diff)
		}
		wait(t, time.Millisecond)
		if got := cached(c, question); got != nil {
			t.Errorf("after its end: %v", got)
		}
		if c.len() != 0 || c.bytes != 0 {
			t.Errorf("%d entries, %d bytes", c.len(), c.bytes)
		}
	})
}

// Those that ask by UDP for what takes TCP do not have upstreams asked each time.
func TestCacheCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, question := newCache(), question("web.example.", dns.TypeA)
		key := keyOf(question, false)
		c.put(key, upstreamSays(question, func(m *dns.Msg) { m.Truncated = true }))
		wait(t, cutFor-time.Millisecond)
		known, ok := c.get(key)
		if !ok || !known.reply(question).Truncated {
			t.Errorf("before its end: %v, %v", known, ok)
		}
		if cached(c, question) != nil {
			t.Error("it is told to those who want the whole")
		}
		wait(t, time.Millisecond)
		if _, ok := c.get(key); ok || c.len() != 0 {
			t.Error("it is known after its end")
		}
	})
}

// When no upstream answers, what was known before is told for an hour more.
func TestCacheStale(t *testing.T) {
	const stale = "web.example. 30 IN A 192.0.2.1"
	synctest.Test(t, func(t *testing.T) {
		c, question := newCache(), question("web.example.", dns.TypeA, withEDNS)
		key := keyOf(question, true)
		c.put(key, upstreamSays(question, func(m *dns.Msg) { m.Answer = rrs(webA) }))
		wait(t, time.Minute)
		if got := cached(c, question); got != nil {
			t.Errorf("is told before upstreams were asked: %v", got)
		}
		answer := c.fail(key, dns.EDNS0_EDE{}).reply(question)
		wantTold(t, answer, "NOERROR", stale)
		if diff := cmp.Diff([]uint16{dns.ExtendedErrorCodeStaleAnswer}, extendedErrors(answer)); diff != "" {
			t.Errorf("extended errors (-want +got):\n%s", diff)
		}
		wait(t, failureFor-time.Millisecond)
		if diff := cmp.Diff([]string{"NOERROR", stale}, cached(c, question)); diff != "" {
			t.Errorf("until they are asked again (-want +got):\n%s", diff)
		}
		wait(t, time.Millisecond)
		if got := cached(c, question); got != nil {
			t.Errorf("they are not asked again: %v", got)
		}
		wait(t, staleFor-failureFor)
		wantTold(t, c.fail(key, dns.EDNS0_EDE{}).reply(question), "SERVFAIL")
	})
	synctest.Test(t, func(t *testing.T) {
		c, question := newCache(), question("web.example.", dns.TypeA, withEDNS)
		c.put(keyOf(question, true), upstreamSays(question, func(m *dns.Msg) { m.Rcode, m.Ns = dns.RcodeNameError, rrs(soaText) }))
		wait(t, time.Hour)
		answer := c.fail(keyOf(question, true), dns.EDNS0_EDE{}).reply(question)
		wantTold(t, answer, "NXDOMAIN", "example. 30 IN SOA ns.example. admin.example. 1 2 3 4 300")
		if diff := cmp.Diff([]uint16{dns.ExtendedErrorCodeStaleNXDOMAINAnswer}, extendedErrors(answer)); diff != "" {
			t.Errorf("extended errors (-want +got):\n%s", diff)
		}
	})
}

// Questions that differ in what the answer depends on are different ones.
func TestCacheKey(t *testing.T) {
	tests := []struct {
		name string
		edit func(*dns.Msg)
		same bool
	}{
		{"case", func(m *dns.Msg) { m.Question[0].Name = "WEB.Example." }, true},
		{"identifier", func(m *dns.Msg) { m.Id++ }, true},
		{"EDNS", withEDNS, true},
		{"name", func(m *dns.Msg) { m.Question[0].Name = "b.example." }, false},
		{"type", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }, false},
		{"class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, false},
		{"DO", withDO, false},
		{"CD", func(m *dns.Msg) { m.CheckingDisabled = true }, false},
		{"RD", func(m *dns.Msg) { m.RecursionDesired = false }, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, question := newCache(), question("web.example.", dns.TypeA)
			c.put(keyOf(question, true), upstreamSays(question, func(m *dns.Msg) { m.Answer = rrs(webA) }))
			before := keyOf(question, true)
			test.edit(question)
			if _, known := c.get(keyOf(question, true)); known != test.same || (before.String() == keyOf(question, true).String()) != test.same {
				t.Errorf("known: %v", known)
			}
		})
	}
}

// Whoever gets an answer may change it.
func TestCacheCopies(t *testing.T) {
	c, question := newCache(), question("web.example.", dns.TypeTXT)
	said := c.put(keyOf(question, true), upstreamSays(question, func(m *dns.Msg) {
		m.Answer, m.Ns, m.Extra = rrs(`web.example. 60 IN TXT "a"`), rrs("example. 60 IN NS ns.example."), rrs("ns.example. 60 IN A 192.0.2.1")
	}))
	known, _ := c.get(keyOf(question, true))
	want := known.reply(question)
	for _, spoiled := range []*dns.Msg{said.reply(question), known.reply(question)} {
		spoiled.Answer[0].(*dns.TXT).Txt[0] = "b"
		spoiled.Answer[0].Header().Name = "b."
		spoiled.Ns[0], spoiled.Extra[0] = nil, nil
		spoiled.Question[0].Name = "b."
	}
	if diff := cmp.Diff(want, known.reply(question)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

func TestCacheBounds(t *testing.T) {
	small := func(i int) *dns.Msg { return question(fmt.Sprintf("n%d.example.", i), dns.TypeA) }
	put := func(c *cache, question *dns.Msg, records ...string) {
		c.put(keyOf(question, true), upstreamSays(question, func(m *dns.Msg) { m.Answer = rrs(records...) }))
	}
	t.Run("entries", func(t *testing.T) {
		c := newCache()
		for i := range cacheEntries + 10 {
			put(c, small(i), "a. 60 IN A 192.0.2.1")
			c.get(keyOf(small(0), true)) // is wanted, and so it stays
		}
		if got := c.len(); got != cacheEntries {
			t.Errorf("%d entries", got)
		}
		if cached(c, small(0)) == nil || cached(c, small(1)) != nil || cached(c, small(cacheEntries+9)) == nil {
			t.Error("others than the least wanted have left")
		}
	})
	t.Run("bytes", func(t *testing.T) {
		c, text := newCache(), `a. 60 IN TXT "`+strings.Repeat("x", 250)+`"`
		for i := range 1000 {
			put(c, question(small(i).Question[0].Name, dns.TypeTXT), slices.Repeat([]string{text}, 50)...)
		}
		if c.bytes > cacheBytes || c.bytes < cacheBytes-cacheBytes/100 {
			t.Errorf("%d bytes, %d entries", c.bytes, c.len())
		}
	})
	t.Run("the same one again and again", func(t *testing.T) {
		c := newCache()
		put(c, small(1), webA)
		size := c.bytes
		for range 100 {
			put(c, small(1), webA)
			c.fail(keyOf(small(1), true), dns.EDNS0_EDE{})
		}
		if c.len() != 1 || c.bytes != size {
			t.Errorf("%d entries, %d bytes, once %d", c.len(), c.bytes, size)
		}
		put(c, small(1), "a. 0 IN A 192.0.2.1")
		if c.len() != 0 || c.bytes != 0 {
			t.Errorf("%d entries, %d bytes", c.len(), c.bytes)
		}
	})
}

// What the cache accounts for is what it takes, whatever the records are.
func TestCacheWeighs(t *testing.T) {
	bitmap := make([]string, 0, 2048)
	for i := range cap(bitmap) {
		bitmap = append(bitmap, "TYPE"+strconv.Itoa(1024+i))
	}
	tests := []struct {
		name    string
		records []string // of an answer
	}{
		{"nothing", nil},
		{"an address", []string{webA}},
		{"addresses", slices.Repeat([]string{webA}, 50)},
		{"IPv6 addresses", slices.Repeat([]string{"web.example. 60 IN AAAA 2001:db8::1"}, 50)},
		{"long names", slices.Repeat([]string{strings.Repeat("a.", 127) + " 60 IN NS " + strings.Repeat("b.", 127)}, 50)},
		{"names with escapes", slices.Repeat([]string{strings.Repeat(strings.Repeat(`\001`, 60)+".", 4) + " 60 IN A 192.0.2.1"}, 50)},
		{"text", slices.Repeat([]string{`a. 60 IN TXT "` + strings.Repeat("x", 250) + `"`}, 50)},
		{"many short texts", slices.Repeat([]string{"a. 60 IN TXT" + strings.Repeat(" a", 100)}, 20)},
		{"a bitmap of types", slices.Repeat([]string{"a. 60 IN NSEC b. " + strings.Join(bitmap, " ")}, 20)},
		{"parameters", slices.Repeat([]string{"a. 60 IN HTTPS 1 . alpn=h2,h3 port=443 ipv4hint=192.0.2.1,192.0.2.2"}, 50)},
		{"unknown types", slices.Repeat([]string{`a. 60 IN TYPE65280 \# 100 ` + strings.Repeat("00", 100)}, 50)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			answer := question("web.example.", dns.TypeA)
			answer.Response, answer.Compress = true, true
			answer.Answer = rrs(test.records...)
			packed := wire(t, answer)
			c := newCache()
			before := heap()
			for i := 0; i < cacheEntries && c.bytes < cacheBytes/2; i++ {
				said := new(dns.Msg)
				if err := said.Unpack(packed); err != nil {
					t.Fatal(err)
				}
				key := keyOf(question(fmt.Sprintf("n%d.example.", i), dns.TypeANY), true)
				if test.records == nil {
					c.fail(key, dns.EDNS0_EDE{})
				} else if c.put(key, said); c.len() == 0 {
					t.Fatal("is not kept")
				}
			}
			took := heap() - before
			if took > c.bytes*3/2 || took < c.bytes/2 {
				t.Errorf("%d entries of %d bytes take %d", c.len(), c.bytes, took)
			}
			runtime.KeepAlive(c)
		})
	}
}

// heap is how many bytes are in use.
func heap() int {
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc) //nolint:gosec // far below
}

func BenchmarkCacheHit(b *testing.B) {
	for _, records := range []int{1, 10} {
		b.Run(fmt.Sprint(records), func(b *testing.B) {
			c, question := newCache(), question("web.example.", dns.TypeA)
			c.put(keyOf(question, true), upstreamSays(question, func(m *dns.Msg) {
				for range records {
					m.Answer = append(m.Answer, rrs(webA)...)
				}
			}))
			b.ReportAllocs()
			for b.Loop() {
				known, _ := c.get(keyOf(question, true))
				known.reply(question)
			}
		})
	}
}
