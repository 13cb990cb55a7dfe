package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestReadersNeverWait asks while somebody changes the zone.
func TestReadersNeverWait(t *testing.T) {
	z := newZone(t)
	z.SetReverse([]netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")})
	set(t, z, "s", "o", reverse(entry("web", "10.64.1.1", "10.64.1.2")))
	done := make(chan struct{})
	z.mu.Lock()
	defer z.mu.Unlock()
	go func() {
		defer close(done)
		for _, question := range []string{"web.overlay.local. A", "web.overlay.local. TXT", "nobody.overlay.local. A", "overlay.local. SOA", "1.1.64.10.in-addr.arpa. PTR"} {
			askZone(t, z, question)
		}
		z.Lookup([]byte("\x03web\x07overlay\x05local\x00"), false, make([]netip.Addr, 0, 8))
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("questions wait for the lock of those who change the zone")
	}
}

// TestConcurrentChanges has names move between addresses: those who ask see one or
// the other, never nothing and never a mixture.
func TestConcurrentChanges(t *testing.T) {
	const rounds = 500
	z := newZone(t)
	z.SetReverse([]netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")})
	one := []Entry{reverse(entry("web.prod.svc", "10.64.1.1", "10.64.1.2")), reverse(entry("x", "10.64.9.9"))}
	two := []Entry{reverse(entry("web.prod.svc", "10.64.2.1", "10.64.2.2")), reverse(entry("much.longer", "10.64.9.9"))}
	set(t, z, "s", "o", one...)
	var writers, readers sync.WaitGroup
	writers.Go(func() {
		for i := range 20 * rounds {
			set(t, z, "s", "o", [][]Entry{two, one}[i&1]...)
		}
	})
	writers.Go(func() {
		for i := range rounds / 10 {
			owners := map[string][]Entry{}
			for j := range i * 7 % 100 {
				owners[fmt.Sprint(j)] = []Entry{reverse(entry(fmt.Sprintf("p%d-%d.prod.svc", i, j), fmt.Sprintf("10.64.3.%d", j)))}
			}
			if err := z.SetSource("t", owners); err != nil {
				t.Error(err)
			}
		}
	})
	writers.Go(func() {
		for i := range rounds {
			z.SetDown([]netip.Prefix{netip.MustParsePrefix("10.64.1.0/24"), netip.MustParsePrefix("10.64.2.0/24")}[:i%3])
			z.SetServers([]netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.64.7.%d", i%2))})
			z.Asked(time.Now().Add(-time.Minute))
			z.List()
		}
	})
	done := make(chan struct{})
	for range 4 {
		readers.Go(func() { readWhileChanging(t, z, done) })
	}
	writers.Wait()
	close(done)
	readers.Wait()
}

func readWhileChanging(t *testing.T, z *Zone, done <-chan struct{}) {
	wire := []byte("\x03web\x04prod\x03svc\x07overlay\x05local\x00")
	into := make([]netip.Addr, 0, 8)
	for {
		select {
		case <-done:
			return
		default:
		}
		got, _, _ := z.Lookup(wire, false, into)
		got = slices.SortedFunc(slices.Values(got), netip.Addr.Compare)
		if !slices.Equal(got, addrs("10.64.1.1", "10.64.1.2")) && !slices.Equal(got, addrs("10.64.2.1", "10.64.2.2")) {
			t.Errorf("got %v", got)
			return
		}
		reply, _ := z.Answer(dns.Question{Name: "9.9.64.10.in-addr.arpa.", Qtype: dns.TypePTR})
		if len(reply.Answer) != 1 {
			t.Errorf("PTR: %v", reply)
			return
		}
		if reply, _ = z.Answer(dns.Question{Name: "prod.svc.overlay.local.", Qtype: dns.TypeA}); reply.Rcode != dns.RcodeSuccess {
			t.Errorf("the name above: %v", reply)
			return
		}
	}
}

// TestConcurrentTurns counts the turns of all who ask at once.
func TestConcurrentTurns(t *testing.T) {
	z := newZone(t)
	set(t, z, "s", "o", entry("web", "10.64.1.1", "10.64.1.2", "10.64.1.3", "10.64.1.4"))
	var mu sync.Mutex
	first := map[netip.Addr]int{}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 100 {
				got, _, _ := z.Lookup([]byte("\x03web\x07overlay\x05local\x00"), false, make([]netip.Addr, 0, 4))
				mu.Lock()
				first[got[0]]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	for addr, times := range first {
		if times != 100 {
			t.Errorf("%s was first %d times, want 100", addr, times)
		}
	}
}

func TestUnchangedSourceWritesNothing(t *testing.T) {
	z, owners := newZone(t), replicas(10_000)
	if err := z.SetSource("pods", owners); err != nil {
		t.Fatal(err)
	}
	answers := map[*answer]bool{}
	z.names.all(func(n *name) { answers[n.answer.Load()] = true })
	serial := tellSerial(t, z)
	// Other goroutines may allocate meanwhile: what it does itself is in every run.
	if allocs := testing.AllocsPerRun(10, func() { setPods(t, z, owners) }); allocs > 0 {
		t.Errorf("%v allocations", allocs)
	}
	z.names.all(func(n *name) {
		if !answers[n.answer.Load()] {
			t.Errorf("%s was written", nameText(n.wire))
		}
	})
	if got := tellSerial(t, z); got != serial {
		t.Errorf("the serial went from %d to %d", serial, got)
	}
}

func setPods(t testing.TB, z *Zone, owners map[string][]Entry) {
	if err := z.SetSource("pods", owners); err != nil {
		t.Fatal(err)
	}
}

// TestTableStaysSmall has many names come and go: what they leave in the table goes too.
func TestTableStaysSmall(t *testing.T) {
	z := newZone(t)
	for i := range 20_000 {
		set(t, z, "s", "o", entry(fmt.Sprintf("web-%d", i), "10.64.1.1"))
	}
	if size := len(*z.names.slots.Load()); size > 4*smallestTable {
		t.Errorf("%d places for %d names", size, z.names.live)
	}
	setPods(t, z, replicas(10_000))
	setPods(t, z, nil)
	if size := len(*z.names.slots.Load()); size > 4*smallestTable {
		t.Errorf("%d places are left for %d names", size, z.names.live)
	}
}
