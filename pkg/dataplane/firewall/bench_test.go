//go:build linux

package firewall

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// benchFirewall returns an applied firewall with the given number of pods.
func benchFirewall(b *testing.B, pods int) *Firewall {
	b.Helper()
	f := testFirewall(b, netlab.TestNS(b, "bench"), "")
	mustApply(b, f, largeRules(pods, 1), true)
	return f
}

// BenchmarkPin is what an ADD waits for, BenchmarkUnpin what a DEL does.
func BenchmarkPin(b *testing.B) {
	for _, pods := range []int{0, 110, 1000} {
		b.Run(fmt.Sprintf("pods=%d", pods), func(b *testing.B) {
			f := benchFirewall(b, pods)
			ctx := testContext(b)
			for i := range b.N {
				if err := f.Pin(ctx, testPin(10_000+i%10_000)); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				mustUnpin(b, f, 10_000+i%10_000)
				b.StartTimer()
			}
		})
	}
}

func BenchmarkUnpin(b *testing.B) {
	f := benchFirewall(b, 110)
	ctx := testContext(b)
	for i := range b.N {
		b.StopTimer()
		mustPin(b, f, testPin(10_000+i%10_000))
		b.StartTimer()
		if err := f.Unpin(ctx, 10_000+i%10_000); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPinAndUnpinAtOnce shows what sharing transactions brings: the time of
// a pair while others do the same.
func BenchmarkPinAndUnpinAtOnce(b *testing.B) {
	for _, atOnce := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("at-once=%d", atOnce), func(b *testing.B) {
			f := benchFirewall(b, 110)
			ctx := testContext(b)
			var port atomic.Int32
			b.SetParallelism(atOnce) // times GOMAXPROCS
			b.RunParallel(func(pb *testing.PB) {
				p := testPin(10_000 + int(port.Add(1)))
				for pb.Next() {
					if err := f.Pin(ctx, p); err != nil {
						b.Error(err)
					}
					if err := f.Unpin(ctx, p.PortIndex); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkApply is a resync that finds nothing to do.
func BenchmarkApply(b *testing.B) {
	for _, size := range []struct{ pods, prefixes int }{{0, 1}, {110, 1}, {1000, 5000}} {
		b.Run(fmt.Sprintf("pods=%d,prefixes=%d", size.pods, size.prefixes), func(b *testing.B) {
			f := testFirewall(b, netlab.TestNS(b, "bench"), "")
			rules := largeRules(size.pods, size.prefixes)
			mustApply(b, f, rules, true)
			b.ResetTimer()
			for range b.N {
				mustApply(b, f, rules, false)
			}
		})
	}
}

// BenchmarkApplyFirst builds everything.
func BenchmarkApplyFirst(b *testing.B) {
	for _, size := range []struct{ pods, prefixes int }{{0, 1}, {1000, 5000}} {
		b.Run(fmt.Sprintf("pods=%d,prefixes=%d", size.pods, size.prefixes), func(b *testing.B) {
			f := testFirewall(b, netlab.TestNS(b, "bench"), "")
			rules := largeRules(size.pods, size.prefixes)
			for range b.N {
				mustApply(b, f, rules, true)
				b.StopTimer()
				if err := f.Teardown(testContext(b)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
