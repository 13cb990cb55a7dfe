package dns

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func tellSerial(t *testing.T, z *Zone) uint32 {
	t.Helper()
	reply, _ := z.Answer(dns.Question{Name: "overlay.local.", Qtype: dns.TypeSOA})
	if len(reply.Answer) != 1 {
		t.Fatalf("SOA: %v", reply)
	}
	return reply.Answer[0].(*dns.SOA).Serial
}

func setSource(t testing.TB, z *Zone, owners map[string][]Entry) {
	t.Helper()
	if err := z.SetSource("s", owners); err != nil {
		t.Fatal(err)
	}
}

// later is RFC 1982, section 3.2.
func later(a, b uint32) bool { return int32(a-b) > 0 }

func TestSerial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(t)
		last := tellSerial(t, z)
		for i, change := range []struct {
			name   string
			change func()
			grows  bool
		}{
			{"nothing", func() {}, false},
			{"a name", func() { set(t, z, "s", "1", entry("a", "10.64.1.1", "10.64.2.1")) }, true},
			{"the same", func() { set(t, z, "s", "1", entry("A", "10.64.2.1", "10.64.1.1", "10.64.1.1")) }, false},
			{"the same twice", func() { set(t, z, "s", "1", entry("a", "10.64.2.1"), entry("A", "10.64.1.1")) }, false},
			{"a TTL", func() {
				set(t, z, "s", "1", Entry{Name: "a", Addrs: addrs("10.64.1.1", "10.64.2.1"), TTL: time.Second})
			}, true},
			{"a PTR", func() {
				set(t, z, "s", "1", reverse(Entry{Name: "a", Addrs: addrs("10.64.1.1", "10.64.2.1"), TTL: time.Second}))
			}, true},
			{"nobody goes", func() { set(t, z, "s", "2") }, false},
			{"no names", func() { set(t, z, "s", "2", entry("b")) }, false},
			{"servers", func() { z.SetServers(addrs("10.64.1.1")) }, true},
			{"the same servers", func() { z.SetServers(addrs("10.64.1.1")) }, false},
			{"reverse", func() { z.SetReverse([]netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")}) }, true},
			{"the same reverse", func() {
				z.SetReverse([]netip.Prefix{netip.MustParsePrefix("10.64.0.1/16"), netip.MustParsePrefix("10.64.1.0/24")})
			}, false},
			{"down", func() { z.SetDown([]netip.Prefix{netip.MustParsePrefix("10.64.1.0/24")}) }, true},
			{"the same down", func() { z.SetDown([]netip.Prefix{netip.MustParsePrefix("10.64.1.0/24")}) }, false},
			{"the name goes", func() { set(t, z, "s", "1") }, true},
			{"source", func() { setSource(t, z, map[string][]Entry{"1": {entry("a", "10.64.1.1")}}) }, true},
			{"the same source", func() { setSource(t, z, map[string][]Entry{"1": {entry("a", "10.64.1.1")}}) }, false},
			{"the source goes", func() { setSource(t, z, nil) }, true},
		} {
			change.change()
			serial := tellSerial(t, z)
			if grew := later(serial, last); grew != change.grows || !grew && serial != last {
				t.Errorf("%d, %s: from %d to %d", i, change.name, last, serial)
			}
			last = serial
		}
		time.Sleep(time.Minute)
		set(t, z, "s", "1", entry("a", "10.64.1.1"))
		if serial := tellSerial(t, z); !later(serial, last+500) {
			t.Errorf("a minute later %d is told after %d", serial, last)
		}
	})
}

// TestSerialAfterRestart makes many changes that nobody is told of, as a start does.
func TestSerialAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(t)
		for i := range 1000 {
			set(t, z, "s", "1", entry("a", fmt.Sprintf("10.64.1.%d", i%250)))
		}
		last := tellSerial(t, z)
		time.Sleep(time.Second)
		if serial := tellSerial(t, newZone(t)); !later(serial, last) {
			t.Errorf("%d was told before, %d after the restart", last, serial)
		}
	})
}

// TestSerialWrapsAround has the clock pass the largest number.
func TestSerialWrapsAround(t *testing.T) {
	var s serial
	s.now.Store(clockSerial() - 1<<20)
	for range 3 {
		before := s.tell()
		s.grow()
		if now := s.tell(); !later(now, before) {
			t.Errorf("from %d to %d", before, now)
		}
	}
	ahead := clockSerial() + 1<<20
	s.now.Store(ahead)
	s.tell()
	s.grow()
	if now := s.tell(); now != ahead+1 {
		t.Errorf("a clock that was set back: from %d to %d", ahead, now)
	}
}
