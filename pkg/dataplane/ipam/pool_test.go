package ipam

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func pool(t testing.TB, prefix string, reserved ...string) *Pool {
	t.Helper()
	p, err := NewPool(netip.MustParsePrefix(prefix), addrs(reserved...)...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func addrs(texts ...string) []netip.Addr {
	var result []netip.Addr
	for _, text := range texts {
		result = append(result, netip.MustParseAddr(text))
	}
	return result
}

func allocate(t testing.TB, p *Pool, owner string) netip.Addr {
	t.Helper()
	addr, err := p.Allocate(owner)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestPoolHandsOutEveryHostAddress(t *testing.T) {
	for _, test := range []struct {
		name, prefix string
		reserved     []string
		want         []string
		capacity     uint64
	}{
		{"v4 without network and broadcast", "10.0.0.8/29", nil, []string{"10.0.0.9", "10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"}, 6},
		{"v4 reserved", "10.0.0.8/29", []string{"10.0.0.9", "10.0.0.14", "10.0.0.9"}, []string{"10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13"}, 4},
		{"reserved elsewhere is ignored", "10.0.0.0/30", []string{"10.0.0.0", "10.0.0.3", "10.0.1.1", "fd00::1"}, []string{"10.0.0.1", "10.0.0.2"}, 2},
		{"v4 point to point", "10.0.0.0/31", nil, []string{"10.0.0.0", "10.0.0.1"}, 2},
		{"v4 single", "10.0.0.7/32", nil, []string{"10.0.0.7"}, 1},
		{"v4 single reserved", "10.0.0.7/32", []string{"10.0.0.7"}, nil, 0},
		{"v4 top of the address space", "255.255.255.252/30", nil, []string{"255.255.255.253", "255.255.255.254"}, 2},
		{"v6 without anycast", "fd00::/126", nil, []string{"fd00::1", "fd00::2", "fd00::3"}, 3},
		{"v6 point to point", "fd00::/127", nil, []string{"fd00::", "fd00::1"}, 2},
		{"v6 single", "fd00::5/128", nil, []string{"fd00::5"}, 1},
		{"v6 top of the address space", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127", nil, []string{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := pool(t, test.prefix, test.reserved...)
			var got []netip.Addr
			for i := range test.capacity {
				got = append(got, allocate(t, p, fmt.Sprint(i)))
			}
			if diff := cmp.Diff(addrs(test.want...), got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
			if _, err := p.Allocate("one more"); !errors.Is(err, ErrExhausted) {
				t.Errorf("one more: %v, want ErrExhausted", err)
			}
			want := Stats{Prefix: netip.MustParsePrefix(test.prefix), Capacity: test.capacity, Used: int(test.capacity)}
			if diff := cmp.Diff(want, p.Stats(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNewPoolRefuses(t *testing.T) {
	for name, prefix := range map[string]netip.Prefix{
		"nothing":      {},
		"host bits":    netip.MustParsePrefix("10.0.0.1/24"),
		"mapped":       netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.0"), 120),
		"v6 host bits": netip.MustParsePrefix("fd00::1/64"),
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := NewPool(prefix); err == nil {
				t.Errorf("made %v, want an error", p.Stats())
			}
		})
	}
}

func TestCapacitySaturates(t *testing.T) {
	for prefix, want := range map[string]uint64{
		"::/0":      math.MaxUint64,
		"fd00::/63": math.MaxUint64,
		"fd00::/64": math.MaxUint64,
		"fd00::/65": 1<<63 - 1,
		"0.0.0.0/0": 1<<32 - 2,
	} {
		if got := pool(t, prefix).Stats().Capacity; got != want {
			t.Errorf("%s holds %d, want %d", prefix, got, want)
		}
	}
	if got := pool(t, "fd00::/64", "fd00::1").Stats().Capacity; got != math.MaxUint64-1 {
		t.Errorf("a /64 less one holds %d", got)
	}
}

func TestAllocateIsIdempotentPerOwner(t *testing.T) {
	p := pool(t, "10.0.0.0/24")
	first := allocate(t, p, "a")
	allocate(t, p, "b")
	if again := allocate(t, p, "a"); again != first {
		t.Errorf("again %s, want %s", again, first)
	}
	if _, err := p.Allocate(""); err == nil {
		t.Error("an address without an owner")
	}
}

func TestExhaustionNamesThePoolAndRecovers(t *testing.T) {
	p := pool(t, "10.0.0.0/30")
	first := allocate(t, p, "a")
	allocate(t, p, "b")
	_, err := p.Allocate("c")
	if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "10.0.0.0/30") || !strings.Contains(err.Error(), "2 of 2") {
		t.Fatalf("got %v, want ErrExhausted with the prefix and its counts", err)
	}
	p.Release(first, "a")
	if got := allocate(t, p, "c"); got != first {
		t.Errorf("got %s, want the freed %s", got, first)
	}
}

func TestFreedAddressesRest(t *testing.T) {
	p := pool(t, "10.0.0.0/29")
	for _, owner := range []string{"a", "b", "c", "d"} {
		allocate(t, p, owner)
	}
	for _, owner := range []string{"c", "a"} {
		p.Release(allocate(t, p, owner), owner)
	}
	var got []netip.Addr
	for _, owner := range []string{"e", "f", "g", "h"} {
		got = append(got, allocate(t, p, owner))
	}
	want := addrs("10.0.0.5", "10.0.0.6", "10.0.0.3", "10.0.0.1") // never used, then in the order freed
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestClaim(t *testing.T) {
	p := pool(t, "10.0.0.0/29", "10.0.0.1")
	if err := p.Claim(netip.MustParseAddr("10.0.0.2"), "a"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, addr, owner string
		want              error
	}{
		{"again", "10.0.0.2", "a", nil},
		{"another's", "10.0.0.2", "b", ErrTaken},
		{"reserved", "10.0.0.1", "b", ErrTaken},
		{"second of one owner", "10.0.0.3", "a", nil},
		{"network", "10.0.0.0", "b", ErrOutside},
		{"broadcast", "10.0.0.7", "b", ErrOutside},
		{"outside", "10.0.0.8", "b", ErrOutside},
		{"other family", "fd00::1", "b", ErrOutside},
		{"mapped", "::ffff:10.0.0.4", "b", ErrOutside},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := p.Claim(netip.MustParseAddr(test.addr), test.owner); !errors.Is(err, test.want) {
				t.Errorf("claim %s for %s: %v, want %v", test.addr, test.owner, err, test.want)
			}
		})
	}
	if err := p.Claim(netip.Addr{}, "a"); !errors.Is(err, ErrOutside) {
		t.Errorf("claim of no address: %v, want ErrOutside", err)
	}
	if err := p.Claim(netip.MustParseAddr("10.0.0.4"), ""); err == nil {
		t.Error("a claim without an owner")
	}
	if got := allocate(t, p, "a"); got != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("owner with claims got %s, want its first", got)
	}
}

func TestReleaseOnlyByItsOwner(t *testing.T) {
	p := pool(t, "10.0.0.0/29")
	addr := allocate(t, p, "a")
	if p.Release(addr, "b") || p.Release(netip.MustParseAddr("10.0.0.5"), "b") || p.Release(netip.MustParseAddr("fd00::1"), "a") || p.Release(netip.Addr{}, "") {
		t.Error("released what it does not hold")
	}
	if !p.Release(addr, "a") || p.Release(addr, "a") {
		t.Error("its owner releases once")
	}
	if got := p.Stats(); got.Used != 0 || got.Resting != 1 {
		t.Errorf("stats %+v", got)
	}
}

func TestRestartDoesNotReuseWhatWasJustFreed(t *testing.T) {
	p := pool(t, "10.0.0.0/29")
	for _, text := range []string{"10.0.0.4", "10.0.0.2"} { // found in the kernel; .1 and .3 may be fresh corpses
		if err := p.Claim(netip.MustParseAddr(text), text); err != nil {
			t.Fatal(err)
		}
	}
	var got []netip.Addr
	for i := range 4 {
		got = append(got, allocate(t, p, fmt.Sprint(i)))
	}
	if diff := cmp.Diff(addrs("10.0.0.5", "10.0.0.6", "10.0.0.1", "10.0.0.3"), got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if _, err := p.Allocate("more"); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v, want ErrExhausted", err)
	}
}

func TestMemoryOfAHugePoolIsBounded(t *testing.T) {
	p := pool(t, "fd00::/64")
	for i := range 4 * restLimit {
		owner := fmt.Sprint(i)
		p.Release(allocate(t, p, owner), owner)
	}
	if got := p.Stats().Resting; got > restLimit {
		t.Errorf("%d rest after churn, want at most %d", got, restLimit)
	}
	addr := netip.MustParseAddr("fd00::1:0:0")
	for range 2 * restLimit { // claims far ahead of the cursor
		addr = addr.Next()
		if err := p.Claim(addr, "a"); err != nil {
			t.Fatal(err)
		}
		p.Release(addr, "a")
	}
	if got := p.Stats().Resting; got > restLimit+1 {
		t.Errorf("%d rest after claims, want at most %d", got, restLimit+1)
	}
}

func TestPoolIsSafeForConcurrentUse(t *testing.T) {
	p := pool(t, "10.0.0.0/24")
	var seen sync.Map
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 500 {
				owner := fmt.Sprint(i, j)
				addr, err := p.Allocate(owner)
				if err != nil {
					t.Error(err)
					return
				}
				if other, dup := seen.LoadOrStore(addr, owner); dup {
					t.Errorf("%s given to %s and %s", addr, other, owner)
				}
				seen.Delete(addr)
				p.Release(addr, owner)
			}
		})
	}
	wg.Wait()
	if got := p.Stats().Used; got != 0 {
		t.Errorf("%d used at the end", got)
	}
}

// FuzzPool compares a pool with the plainest model of it: each byte is one
// operation of one of a few owners.
func FuzzPool(f *testing.F) {
	f.Add(uint8(29), uint8(0), []byte{0, 1, 2, 3, 64, 65, 0, 1})
	f.Add(uint8(30), uint8(1), []byte{0, 0, 1, 2, 3, 64, 4, 128, 130, 67})
	f.Add(uint8(27), uint8(2), []byte{140, 141, 142, 0, 1, 2, 77, 78, 3, 4, 5})
	f.Add(uint8(32), uint8(0), []byte{0, 1, 64, 1})
	f.Fuzz(func(t *testing.T, bits, reserved uint8, ops []byte) {
		prefix := netip.PrefixFrom(netip.MustParseAddr("10.1.2.0"), 26+int(bits)%7)
		if reserved%2 == 1 {
			prefix = netip.PrefixFrom(netip.MustParseAddr("fd00::"), 122+int(bits)%7)
		}
		var kept []netip.Addr
		for addr := prefix.Addr(); prefix.Contains(addr) && len(kept) < int(reserved)%4; addr = addr.Next() {
			kept = append(kept, addr)
		}
		m := newModel(t, prefix, kept)
		for _, op := range ops {
			m.run(op)
		}
		m.drain()
	})
}

// model is what a pool should be: every address that may be handed out, and
// who holds it.
type model struct {
	t       *testing.T
	p       *Pool
	holders map[netip.Addr]string // "" is free
	order   []netip.Addr          // ascending
}

func newModel(t *testing.T, prefix netip.Prefix, reserved []netip.Addr) *model {
	p, err := NewPool(prefix, reserved...)
	if err != nil {
		t.Fatal(err)
	}
	m := &model{t: t, p: p, holders: make(map[netip.Addr]string)}
	last := lastOf(prefix)
	for addr := prefix.Addr(); prefix.Contains(addr); addr = addr.Next() {
		edge := addr == prefix.Addr() || addr == last && addr.Is4()
		if !(edge && hostBits(prefix) > 1) && !contains(reserved, addr) {
			m.holders[addr] = ""
			m.order = append(m.order, addr)
		}
	}
	if got := p.Stats().Capacity; got != uint64(len(m.order)) {
		t.Fatalf("capacity of %s is %d, want %d", prefix, got, len(m.order))
	}
	return m
}

func contains(list []netip.Addr, addr netip.Addr) bool {
	for _, a := range list {
		if a == addr {
			return true
		}
	}
	return false
}

func (m *model) used() int {
	n := 0
	for _, holder := range m.holders {
		if holder != "" {
			n++
		}
	}
	return n
}

// run does one operation: allocate (0-63), release (64-127), claim (128-255).
func (m *model) run(op byte) {
	if len(m.order) == 0 {
		return
	}
	owner := fmt.Sprint("o", op%64%40)
	addr := m.order[int(op)%len(m.order)]
	switch {
	case op < 64:
		m.allocate(owner)
	case op < 128:
		if got, want := m.p.Release(addr, owner), m.holders[addr] == owner; got != want {
			m.t.Fatalf("release %s by %s: %v, want %v", addr, owner, got, want)
		} else if got {
			m.holders[addr] = ""
		}
	default:
		free := m.holders[addr] == "" || m.holders[addr] == owner
		if err := m.p.Claim(addr, owner); (err == nil) != free {
			m.t.Fatalf("claim %s by %s: %v, held by %q", addr, owner, err, m.holders[addr])
		} else if free {
			m.holders[addr] = owner
		}
	}
	if got := m.p.Stats(); got.Used != m.used() || uint64(got.Used+got.Resting) > got.Capacity {
		m.t.Fatalf("stats %+v, want %d used", got, m.used())
	}
}

func (m *model) allocate(owner string) {
	held := 0
	for _, holder := range m.holders {
		if holder == owner {
			held++
		}
	}
	addr, err := m.p.Allocate(owner)
	switch holder, known := m.holders[addr]; {
	case err != nil:
		if held > 0 || m.used() < len(m.order) {
			m.t.Fatalf("allocate for %s: %v with %d of %d used", owner, err, m.used(), len(m.order))
		}
	case !known:
		m.t.Fatalf("%s handed out: no host address of the pool", addr)
	case held > 0 && holder != owner, held == 0 && holder != "":
		m.t.Fatalf("%s given to %s, held by %q", addr, owner, holder)
	default:
		m.holders[addr] = owner
	}
}

// drain takes all that is left, frees all, and takes all again.
func (m *model) drain() {
	for i := range m.order {
		m.allocate(fmt.Sprint("drain", i))
	}
	if m.used() != len(m.order) {
		m.t.Fatalf("%d of %d used in the end", m.used(), len(m.order))
	}
	for addr, holder := range m.holders {
		if !m.p.Release(addr, holder) {
			m.t.Fatalf("%s does not release %s", holder, addr)
		}
		m.holders[addr] = ""
	}
	for i := range m.order {
		m.allocate(fmt.Sprint("again", i))
	}
}

func BenchmarkAllocateRelease(b *testing.B) {
	for _, prefix := range []string{"10.0.0.0/24", "fd00::/64"} {
		b.Run(strings.ReplaceAll(prefix, "/", "_"), func(b *testing.B) {
			p := pool(b, prefix)
			for i := range 110 {
				allocate(b, p, fmt.Sprint("pod", i))
			}
			b.ReportAllocs()
			for b.Loop() {
				p.Release(allocate(b, p, "owner"), "owner")
			}
		})
	}
}
