package dns

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestRateOfAClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 100
		l := newLimiter(rate)
		a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
		took := func(client netip.Addr, tries int) int {
			n := 0
			for range tries {
				if l.take(client, time.Now()) {
					n++
				}
			}
			return n
		}
		if got := took(a, 3*rate); got != rate {
			t.Errorf("a burst of %d, want %d", got, rate)
		}
		if got := took(b, 10); got != 10 {
			t.Errorf("another client could ask %d of 10", got)
		}
		time.Sleep(time.Second / 2)
		if got := took(a, 3*rate); got != rate/2 {
			t.Errorf("%d after half a second, want %d", got, rate/2)
		}
		time.Sleep(time.Hour)
		if got := took(a, 3*rate); got != rate {
			t.Errorf("%d after an hour, want %d", got, rate)
		}
	})
}

func TestNoRate(t *testing.T) {
	l := newLimiter(0)
	for range 100000 {
		if !l.take(netip.MustParseAddr("10.0.0.1"), time.Time{}) {
			t.Fatal("limited")
		}
	}
}

// TestClientsAreBounded has more clients than there is room for, and one whose
// limit must not be forgotten as long as it is used and there is room.
func TestClientsAreBounded(t *testing.T) {
	l := newLimiter(1)
	start := time.Now()
	busy, took := netip.MustParseAddr("10.255.255.255"), 0
	for i := range 200_000 {
		now := start.Add(time.Duration(i) * time.Millisecond)
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], 10<<24|uint32(i))
		l.take(netip.AddrFrom4(ip), now)
		if i%100 == 0 && l.take(busy, now) {
			took++
		}
	}
	if took < 150 || took > 201 { // in 200 s
		t.Errorf("the busy client could ask %d times at one a second", took)
	}
	clients := 0
	for i := range l.shards {
		clients += len(l.shards[i].clients)
	}
	if clients > limiterShards*shardClients || clients < shardClients {
		t.Errorf("%d clients are remembered", clients)
	}
}

func TestShares(t *testing.T) {
	s := newShare(5, 3)
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	enter := func(client netip.Addr, tries int) (n int) {
		for range tries {
			if s.enter(client) {
				n++
			}
		}
		return n
	}
	if got := enter(a, 5); got != 3 {
		t.Errorf("one client has %d places, want 3", got)
	}
	if got := enter(b, 5); got != 2 {
		t.Errorf("the other has %d places, want 2", got)
	}
	s.leave(a)
	if got := enter(b, 5); got != 1 {
		t.Errorf("the other has %d places more, want 1", got)
	}
	for range 2 {
		s.leave(a)
	}
	for range 3 {
		s.leave(b)
	}
	if len(s.by) != 0 || s.taken != 0 {
		t.Errorf("left behind: %v, %d", s.by, s.taken)
	}
}

// TestAllForwardsAreBounded has many clients, none of whom has all that it may.
func TestAllForwardsAreBounded(t *testing.T) {
	s := newTestServer(ServerConfig{Forward: exchangerFunc(answerElsewhere)}, testZone())
	for i := range maxForwards {
		if !s.forwards.enter(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})) {
			t.Fatalf("no place for question %d", i)
		}
	}
	ask := func() (rcode int) {
		var work sync.WaitGroup
		a := arrival{packet: wire(t, question("example.com.", dns.TypeA)), client: netip.MustParseAddr("10.0.0.9"), at: time.Now(), count: &s.counters[0]}
		_, others := s.answer(a, new(scratch))
		s.forward(t.Context(), others, &work, func(reply []byte) {
			m := new(dns.Msg)
			if err := m.Unpack(reply); err != nil {
				t.Error(err)
			}
			rcode = m.Rcode
		})
		work.Wait()
		return rcode
	}
	if got := ask(); got != dns.RcodeServerFailure {
		t.Errorf("when all places are taken: code %d", got)
	}
	s.forwards.leave(netip.AddrFrom4([4]byte{10, 1, 0, 0}))
	if got := ask(); got != dns.RcodeSuccess {
		t.Errorf("when there is a place: code %d", got)
	}
}
