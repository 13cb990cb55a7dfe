package dns

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// replicas are owners with a name of their own, both families, and every tenth of a service.
func replicas(count int) map[string][]Entry {
	owners := make(map[string][]Entry, count)
	for i := range count {
		both := []netip.Addr{
			netip.AddrFrom4([4]byte{10, byte(64 + i>>16), byte(i >> 8), byte(i)}),
			netip.AddrFrom16([16]byte{0: 0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}),
		}
		owners[fmt.Sprintf("prod/web-%d", i)] = []Entry{
			{Name: fmt.Sprintf("web-%d.web%d.prod.svc", i, i/10), Addrs: both, TTL: 5 * time.Second, Reverse: true},
		}
	}
	return owners
}

func filled(b *testing.B, count int) (*Zone, map[string][]Entry) {
	b.Helper()
	z, owners := newZone(b), replicas(count)
	if err := z.SetSource("pods", owners); err != nil {
		b.Fatal(err)
	}
	return z, owners
}

func wires(count int) [][]byte {
	list := make([][]byte, count)
	for i := range list {
		list[i], _ = appendName(nil, fmt.Sprintf("web-%d.web%d.prod.svc", i, i/10), "\x07overlay\x05local\x00")
	}
	return list
}

func BenchmarkLookup(b *testing.B) {
	for _, count := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			z, _ := filled(b, count)
			names := wires(count)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				into := make([]netip.Addr, 0, 8)
				for i := 0; pb.Next(); i++ {
					if _, _, found := z.Lookup(names[i*7919%count], i&1 == 0, into); !found {
						b.Fail()
					}
				}
			})
		})
	}
}

// BenchmarkLookupSeveral asks for one name with ten addresses, on all cores.
func BenchmarkLookupSeveral(b *testing.B) {
	z := newZone(b)
	for i := range 10 {
		set(b, z, "s", fmt.Sprint(i), entry("web", fmt.Sprintf("10.64.1.%d", i)))
	}
	name := []byte("\x03web\x07overlay\x05local\x00")
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		into := make([]netip.Addr, 0, 16)
		for pb.Next() {
			z.Lookup(name, false, into)
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	z, _ := filled(b, 10_000)
	z.SetReverse([]netip.Prefix{netip.MustParsePrefix("10.64.0.0/12")})
	for _, question := range []dns.Question{
		{Name: "web-77.web7.prod.svc.overlay.local.", Qtype: dns.TypeA},
		{Name: "nobody.overlay.local.", Qtype: dns.TypeA},
		{Name: "1.1.64.10.in-addr.arpa.", Qtype: dns.TypePTR},
	} {
		b.Run(question.Name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				z.Answer(question)
			}
		})
	}
}

// BenchmarkSet changes one of many owners.
func BenchmarkSet(b *testing.B) {
	for _, count := range []int{100, 100_000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			z, _ := filled(b, count)
			entries := [][]Entry{{entry("web-7.web0.prod.svc", "10.64.0.7")}, {entry("web-7.web0.prod.svc", "10.64.0.8")}}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				set(b, z, "pods", "prod/web-7", entries[i&1]...)
			}
		})
	}
}

// BenchmarkSetSourceUnchanged tells the zone what it knows.
func BenchmarkSetSourceUnchanged(b *testing.B) {
	for _, count := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			z, owners := filled(b, count)
			b.ReportAllocs()
			for b.Loop() {
				if err := z.SetSource("pods", owners); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFill fills an empty zone, and says what it takes to keep.
func BenchmarkFill(b *testing.B) {
	for _, count := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			owners := replicas(count)
			var before, after runtime.MemStats
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				z := newZone(b)
				if err := z.SetSource("pods", owners); err != nil {
					b.Fatal(err)
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				runtime.KeepAlive(z)
			}
			b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/float64(count), "B/name")
			runtime.KeepAlive(owners)
		})
	}
}

// BenchmarkAsked looks through 10,000 services of which ten were asked for.
func BenchmarkAsked(b *testing.B) {
	z := newZone(b)
	for i := range 10_000 {
		set(b, z, "s", fmt.Sprint(i), entry(fmt.Sprintf("web%d", i), fmt.Sprintf("10.64.%d.%d", i>>8, i&0xff), "10.65.1.1"))
	}
	for i := range 10 {
		z.Answer(dns.Question{Name: fmt.Sprintf("web%d.overlay.local.", i), Qtype: dns.TypeA})
	}
	since := time.Now().Add(-time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		if len(z.Asked(since)) != 11 {
			b.Fatal("not the eleven")
		}
	}
}

// BenchmarkService has one replica of a service of 1,000 come and go.
func BenchmarkService(b *testing.B) {
	z := newZone(b)
	for i := range 1000 {
		set(b, z, "s", fmt.Sprint(i), entry("web", fmt.Sprintf("10.64.%d.%d", i>>8, i&0xff)))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		set(b, z, "s", "x", []Entry{entry("web", "10.65.1.1")}[:i&1]...)
	}
}

// BenchmarkList lists one service with all pods, and each pod's own name.
func BenchmarkList(b *testing.B) {
	z, owners := newZone(b), replicas(10_000)
	for key, entries := range owners {
		service := entries[0]
		service.Name = "web.prod.svc"
		owners[key] = append(entries, service)
	}
	if err := z.SetSource("pods", owners); err != nil {
		b.Fatal(err)
	}
	for name, down := range map[string][]netip.Prefix{"all": nil, "some down": {netip.MustParsePrefix("10.64.1.0/24")}} {
		z.SetDown(down)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				z.List()
			}
		})
	}
}
