package ipam

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// history is how a pool came to be what it is.
type history struct {
	claims, freed []string // addresses in use, and used before
	blocks        []string
}

func poolWith(t *testing.T, prefix string, reserved []string, h history) *Pool {
	t.Helper()
	p := pool(t, prefix, reserved...)
	for _, text := range slices.Concat(h.claims, h.freed) {
		if err := p.Claim(netip.MustParseAddr(text), text); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range h.freed {
		p.Release(netip.MustParseAddr(text), text)
	}
	for _, text := range h.blocks {
		if err := p.ClaimBlock(netip.MustParsePrefix(text)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestAllocateBlockTakesTheHighestFree(t *testing.T) {
	for _, test := range []struct {
		name, prefix string
		reserved     []string
		before       history
		bits         int
		want         []string // until there are no more
	}{
		{"with the broadcast address, without the node's", "10.0.0.0/26", []string{"10.0.0.1"}, history{}, 28, []string{"10.0.0.48/28", "10.0.0.32/28", "10.0.0.16/28"}},
		{"the network address is in the way of none", "10.0.0.0/29", nil, history{}, 30, []string{"10.0.0.4/30", "10.0.0.0/30"}},
		{"nothing but the broadcast or network address is no block", "10.0.0.0/30", nil, history{}, 32, []string{"10.0.0.2/32", "10.0.0.1/32"}},
		{"addresses in use are in the way", "10.0.0.0/26", nil, history{claims: []string{"10.0.0.62", "10.0.0.16"}}, 28, []string{"10.0.0.32/28", "10.0.0.0/28"}},
		{"resting ones come last", "10.0.0.0/26", nil, history{freed: []string{"10.0.0.62", "10.0.0.33"}}, 28, []string{"10.0.0.16/28", "10.0.0.0/28", "10.0.0.48/28", "10.0.0.32/28"}},
		{"a larger block is in the way", "10.0.0.0/26", nil, history{blocks: []string{"10.0.0.32/27"}}, 28, []string{"10.0.0.16/28", "10.0.0.0/28"}},
		{"a smaller block is in the way", "10.0.0.0/26", nil, history{blocks: []string{"10.0.0.52/30", "10.0.0.16/32"}}, 28, []string{"10.0.0.32/28", "10.0.0.0/28"}},
		{"the whole pool", "10.0.0.0/28", nil, history{}, 28, []string{"10.0.0.0/28"}},
		{"the whole address space's end", "255.255.255.0/24", nil, history{}, 25, []string{"255.255.255.128/25", "255.255.255.0/25"}},
		{"v6", "fd00::/126", []string{"fd00::1"}, history{}, 127, []string{"fd00::2/127"}},
		{"v6 halves of a /64", "fd00::/64", nil, history{claims: []string{"fd00::8000:0:0:1"}}, 65, []string{"fd00::/65"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := poolWith(t, test.prefix, test.reserved, test.before)
			var got []string
			for {
				block, err := p.AllocateBlock(test.bits)
				if err != nil {
					if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), test.prefix) {
						t.Errorf("one more: %v, want ErrExhausted with the prefix", err)
					}
					break
				}
				got = append(got, block.String())
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("blocks (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBlocksOfAHugePool(t *testing.T) {
	p := pool(t, "fd00::/64", "fd00::1")
	var got []string
	for range 3 {
		block, err := p.AllocateBlock(120)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, block.String())
	}
	want := []string{"fd00::ffff:ffff:ffff:ff00/120", "fd00::ffff:ffff:ffff:fe00/120", "fd00::ffff:ffff:ffff:fd00/120"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("blocks (-want +got):\n%s", diff)
	}
	if block, err := p.AllocateBlock(66); err != nil || block.String() != "fd00::8000:0:0:0/66" {
		t.Errorf("a quarter is %s (%v)", block, err)
	}
	if got, want := p.Stats().Blocked, uint64(3*256+1<<62); got != want {
		t.Errorf("%d in blocks, want %d", got, want)
	}
}

func TestAllocateBlockRefusesSizes(t *testing.T) {
	p := pool(t, "10.0.0.0/24")
	for _, bits := range []int{-1, 23, 33, 128} {
		if block, err := p.AllocateBlock(bits); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("/%d ", bits)) {
			t.Errorf("/%d: %s, %v", bits, block, err)
		}
	}
}

func TestClaimBlock(t *testing.T) {
	for _, test := range []struct {
		name, prefix string
		want         error
	}{
		{"free", "10.0.0.128/25", nil},
		{"again", "10.0.0.32/28", nil},
		{"inside another", "10.0.0.40/29", ErrTaken},
		{"around another", "10.0.0.32/27", ErrTaken},
		{"a reserved address", "10.0.0.0/28", ErrTaken},
		{"an address in use", "10.0.0.16/28", ErrTaken},
		{"the pool", "10.0.0.0/24", ErrTaken},
		{"around the pool", "10.0.0.0/23", ErrOutside},
		{"beside the pool", "10.0.1.0/28", ErrOutside},
		{"other family", "fd00::/120", ErrOutside},
		{"mapped", "::ffff:10.0.0.64/124", ErrOutside},
		{"host bits", "10.0.0.65/28", ErrOutside},
		{"nothing but the broadcast address", "10.0.0.255/32", ErrOutside},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := poolWith(t, "10.0.0.0/24", []string{"10.0.0.1"}, history{claims: []string{"10.0.0.20"}, blocks: []string{"10.0.0.32/28"}})
			before := p.Stats()
			prefix := netip.MustParsePrefix(test.prefix)
			if err := p.ClaimBlock(prefix); !errors.Is(err, test.want) {
				t.Errorf("claim %s: %v, want %v", prefix, err, test.want)
			}
			if after := p.Stats(); test.want != nil && after != before {
				t.Errorf("refused, and stats are %+v, were %+v", after, before)
			}
		})
	}
	p := pool(t, "10.0.0.0/24")
	if err := p.ClaimBlock(netip.Prefix{}); !errors.Is(err, ErrOutside) {
		t.Errorf("claim of nothing: %v, want ErrOutside", err)
	}
	if err := p.ReleaseBlock(netip.Prefix{}); err != nil {
		t.Errorf("release of nothing: %v", err)
	}
	if _, err := p.AllocateIn(netip.Prefix{}, "a"); !errors.Is(err, ErrOutside) {
		t.Errorf("an address in nothing: %v, want ErrOutside", err)
	}
}

func TestAddressesOfABlock(t *testing.T) {
	p := poolWith(t, "10.0.0.0/28", nil, history{blocks: []string{"10.0.0.12/30", "10.0.0.4/30"}})
	block := netip.MustParsePrefix("10.0.0.12/30")
	var got []netip.Addr
	for _, owner := range []string{"a", "b", "a", "c"} {
		addr, err := p.AllocateIn(block, owner)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, addr)
	}
	want := addrs("10.0.0.12", "10.0.0.13", "10.0.0.12", "10.0.0.14")
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if addr, err := p.AllocateIn(block, "d"); !errors.Is(err, ErrExhausted) {
		t.Errorf("the broadcast address: %s, %v, want ErrExhausted", addr, err)
	}
	if addr, err := p.AllocateIn(netip.MustParsePrefix("10.0.0.8/30"), "d"); !errors.Is(err, ErrOutside) {
		t.Errorf("in no block: %s, %v, want ErrOutside", addr, err)
	}
	if _, err := p.AllocateIn(block, ""); err == nil {
		t.Error("an address without an owner")
	}
	if held, ok := p.Held("b"); !ok || held != netip.MustParseAddr("10.0.0.13") {
		t.Errorf("b holds %s, %v", held, ok)
	}
	if addr := allocate(t, p, "a"); addr != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("outside the blocks, a gets %s", addr)
	}
	wantStats := Stats{Prefix: netip.MustParsePrefix("10.0.0.0/28"), Capacity: 14, Blocked: 7, Used: 4, UsedInBlocks: 3}
	if diff := cmp.Diff(wantStats, p.Stats(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
}

func TestBlocksAndPoolKeepTheirAddresses(t *testing.T) {
	p := poolWith(t, "10.0.0.0/28", nil, history{blocks: []string{"10.0.0.4/30", "10.0.0.8/31"}})
	block := netip.MustParsePrefix("10.0.0.4/30")
	for _, test := range []struct {
		name string
		err  error
		want error
	}{
		{"of the block", p.ClaimIn(block, netip.MustParseAddr("10.0.0.5"), "a"), nil},
		{"again", p.ClaimIn(block, netip.MustParseAddr("10.0.0.5"), "a"), nil},
		{"another's", p.ClaimIn(block, netip.MustParseAddr("10.0.0.5"), "b"), ErrTaken},
		{"of another block", p.ClaimIn(block, netip.MustParseAddr("10.0.0.8"), "b"), ErrOutside},
		{"of no block", p.ClaimIn(block, netip.MustParseAddr("10.0.0.1"), "b"), ErrOutside},
		{"in a block that is none", p.ClaimIn(netip.MustParsePrefix("10.0.0.12/30"), netip.MustParseAddr("10.0.0.12"), "b"), ErrOutside},
		{"of a block, by Claim", p.Claim(netip.MustParseAddr("10.0.0.6"), "b"), ErrTaken},
		{"of a block, by its owner", p.Claim(netip.MustParseAddr("10.0.0.5"), "a"), ErrTaken},
	} {
		if !errors.Is(test.err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, test.err, test.want)
		}
	}
	var got []string
	for {
		addr, err := p.Allocate(fmt.Sprint(len(got)))
		if err != nil {
			break
		}
		got = append(got, addr.String())
	}
	want := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outside the blocks (-want +got):\n%s", diff)
	}
}

func TestReleaseBlock(t *testing.T) {
	p := poolWith(t, "10.0.0.0/29", nil, history{blocks: []string{"10.0.0.4/30"}})
	block := netip.MustParsePrefix("10.0.0.4/30")
	for _, owner := range []string{"a", "b"} {
		if _, err := p.AllocateIn(block, owner); err != nil {
			t.Fatal(err)
		}
	}
	p.Release(netip.MustParseAddr("10.0.0.4"), "a")
	if err := p.ReleaseBlock(block); !errors.Is(err, ErrTaken) {
		t.Errorf("with an address in use: %v, want ErrTaken", err)
	}
	if got := p.Stats(); got.Blocked != 3 || got.Used != 1 || got.Resting != 1 {
		t.Errorf("refused, and stats are %+v", got)
	}
	p.Release(netip.MustParseAddr("10.0.0.5"), "b")
	for _, what := range []string{"at last", "again"} {
		if err := p.ReleaseBlock(block); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := p.Stats(); got.Blocked != 0 || got.Used != 0 || got.Resting != 2 {
		t.Errorf("released, and stats are %+v", got)
	}
	var got []netip.Addr
	for i := range 6 {
		got = append(got, allocate(t, p, fmt.Sprint(i)))
	}
	want := addrs("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.6", "10.0.0.4", "10.0.0.5") // never used, then in the order freed
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

// Each block that comes and goes leaves addresses that rest. They must not pile
// up: those that rest the longest count as never used again.
func TestMemoryOfChangingBlocksIsBounded(t *testing.T) {
	p := pool(t, "fd00::/64")
	var first netip.Addr
	for i := range restLimit {
		owner := fmt.Sprint(i)
		addr := allocate(t, p, owner)
		if i == 0 {
			first = addr
		}
		p.Release(addr, owner)
	}
	for range 3 {
		block, err := p.AllocateBlock(120)
		if err != nil {
			t.Fatal(err)
		}
		addr, err := p.AllocateIn(block, "a")
		if err != nil {
			t.Fatal(err)
		}
		p.Release(addr, "a")
		if err := p.ReleaseBlock(block); err != nil {
			t.Fatal(err)
		}
		if _, rests := p.free.resting[addr]; !rests {
			t.Errorf("%s of the released %s does not rest", addr, block)
		}
	}
	if got := p.Stats().Resting; got != restLimit {
		t.Errorf("%d rest, want %d", got, restLimit)
	}
	if _, rests := p.free.resting[first]; rests || !p.free.fresh.contains(first) {
		t.Errorf("%s rests %v after all others were freed", first, rests)
	}
}

func TestCapacityOfBlocksSaturates(t *testing.T) {
	p := pool(t, "fd00::/62")
	for range 2 {
		if _, err := p.AllocateBlock(64); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.Stats().Blocked; got != math.MaxUint64 {
		t.Errorf("%d in blocks", got)
	}
}

// FuzzBlocks mixes operations on addresses and blocks, two bytes each, and
// compares with the plainest model of a pool.
func FuzzBlocks(f *testing.F) {
	f.Add(uint8(0), []byte{0, 3, 1, 1, 2, 2, 3, 5, 4, 4, 5, 6, 0, 2, 5, 5})
	f.Add(uint8(1), []byte{0, 4, 2, 9, 2, 10, 4, 9, 1, 0, 0, 5, 3, 40, 5, 1})
	f.Add(uint8(2), []byte{6, 20, 6, 200, 3, 3, 2, 1, 2, 2, 4, 1, 4, 2, 5, 0, 1, 1, 1, 2})
	f.Add(uint8(3), []byte{0, 6, 0, 6, 0, 6, 2, 1, 5, 0, 5, 1, 5, 2, 1, 7, 1, 8, 0, 1})
	f.Fuzz(func(t *testing.T, kind uint8, ops []byte) {
		prefix := netip.MustParsePrefix("10.1.2.64/26")
		if kind&1 == 1 {
			prefix = netip.MustParsePrefix("fd00::/122")
		}
		var reserved []netip.Addr
		if kind&2 == 2 {
			reserved = append(reserved, prefix.Addr().Next())
		}
		m := blockModel{model: newModel(t, prefix, reserved), reserved: reserved}
		for ; len(ops) > 1; ops = ops[2:] {
			m.step(ops[0]%7, ops[1])
			m.check()
		}
		for _, addr := range m.order {
			m.p.Release(addr, m.holders[addr])
			m.holders[addr] = ""
		}
		for len(m.blocks) > 0 {
			m.release(m.blocks[0])
		}
		m.drain()
	})
}

// blockModel is a model with blocks.
type blockModel struct {
	*model
	reserved []netip.Addr
	blocks   []netip.Prefix
}

func (m *blockModel) step(op, arg byte) {
	addr := m.order[int(arg)%len(m.order)]
	owner := fmt.Sprint("o", arg%16)
	switch op {
	case 0:
		m.allocateBlock(m.p.prefix.Bits() + int(arg)%7)
	case 1:
		m.allocateIn(netip.Prefix{}, owner)
	case 2:
		if len(m.blocks) > 0 {
			m.allocateIn(m.blocks[int(arg/16)%len(m.blocks)], owner)
		}
	case 3:
		block := m.blockOf(addr)
		claim := m.p.Claim
		if block.IsValid() {
			claim = func(addr netip.Addr, owner string) error { return m.p.ClaimIn(block, addr, owner) }
		}
		err := claim(addr, owner)
		if free := m.holders[addr] == "" || m.holders[addr] == owner; (err == nil) != free {
			m.t.Fatalf("claim %s in %s by %s: %v, held by %q", addr, block, owner, err, m.holders[addr])
		} else if free {
			m.holders[addr] = owner
		}
	case 4:
		if holder := m.holders[addr]; m.p.Release(addr, holder) != (holder != "") {
			m.t.Fatalf("release %s by %q", addr, holder)
		}
		m.holders[addr] = ""
	case 5:
		if len(m.blocks) > 0 {
			m.release(m.blocks[int(arg)%len(m.blocks)])
		}
	case 6:
		m.claimBlock(netip.PrefixFrom(addr, addr.BitLen()-int(arg/64)).Masked())
	}
}

// blockOf returns the block of addr, or the zero value.
func (m *blockModel) blockOf(addr netip.Addr) netip.Prefix {
	for _, block := range m.blocks {
		if block.Contains(addr) {
			return block
		}
	}
	return netip.Prefix{}
}

// free tells whether prefix may become a block.
func (m *blockModel) free(prefix netip.Prefix) bool {
	usable := false
	for _, addr := range m.order {
		if prefix.Contains(addr) && (m.holders[addr] != "" || m.blockOf(addr).IsValid()) {
			return false
		}
		usable = usable || prefix.Contains(addr)
	}
	overlaps := func(block netip.Prefix) bool { return block.Overlaps(prefix) }
	return usable && !slices.ContainsFunc(m.reserved, prefix.Contains) && !slices.ContainsFunc(m.blocks, overlaps)
}

func (m *blockModel) allocateBlock(bits int) {
	block, err := m.p.AllocateBlock(bits)
	if err == nil {
		if block.Bits() != bits || !m.free(block) {
			m.t.Fatalf("block /%d: %s, which is not free", bits, block)
		}
		m.blocks = append(m.blocks, block)
		return
	}
	for _, addr := range m.order {
		if prefix := netip.PrefixFrom(addr, bits).Masked(); m.free(prefix) {
			m.t.Fatalf("block /%d: %v, but %s is free", bits, err, prefix)
		}
	}
}

func (m *blockModel) claimBlock(prefix netip.Prefix) {
	want := m.free(prefix) || slices.Contains(m.blocks, prefix)
	if err := m.p.ClaimBlock(prefix); (err == nil) != want {
		m.t.Fatalf("claim block %s: %v, free: %v", prefix, err, want)
	} else if want && !slices.Contains(m.blocks, prefix) {
		m.blocks = append(m.blocks, prefix)
	}
}

func (m *blockModel) release(block netip.Prefix) {
	used := slices.ContainsFunc(m.order, func(addr netip.Addr) bool { return block.Contains(addr) && m.holders[addr] != "" })
	if err := m.p.ReleaseBlock(block); (err == nil) == used {
		m.t.Fatalf("release block %s: %v, used: %v", block, err, used)
	}
	if !used {
		m.blocks = slices.DeleteFunc(m.blocks, func(b netip.Prefix) bool { return b == block })
	}
}

// allocateIn allocates in block, or outside all of them if that is none.
func (m *blockModel) allocateIn(block netip.Prefix, owner string) {
	held, room := false, false
	for _, addr := range m.order {
		if m.blockOf(addr) == block {
			held = held || m.holders[addr] == owner
			room = room || m.holders[addr] == ""
		}
	}
	give := m.p.Allocate
	if block.IsValid() {
		give = func(owner string) (netip.Addr, error) { return m.p.AllocateIn(block, owner) }
	}
	addr, err := give(owner)
	holder, known := m.holders[addr]
	switch {
	case err != nil && (held || room):
		m.t.Fatalf("allocate in %s for %s: %v", block, owner, err)
	case err != nil:
	case !known || m.blockOf(addr) != block || held && holder != owner || !held && holder != "":
		m.t.Fatalf("in %s, %s got %s, held by %q in %s", block, owner, addr, holder, m.blockOf(addr))
	default:
		m.holders[addr] = owner
	}
}

// check compares the counts.
func (m *blockModel) check() {
	var blocked uint64
	for _, addr := range m.order {
		if m.blockOf(addr).IsValid() {
			blocked++
		}
	}
	if got := m.p.Stats(); got.Used != m.used() || got.Blocked != blocked || uint64(got.Used+got.Resting) > got.Capacity {
		m.t.Fatalf("stats %+v, want %d used and %d in blocks", got, m.used(), blocked)
	}
}

func BenchmarkAllocateBlock(b *testing.B) {
	p := pool(b, "fd00::/64")
	for i := range 250 {
		allocate(b, p, fmt.Sprint(i))
	}
	b.ReportAllocs()
	for b.Loop() {
		block, err := p.AllocateBlock(120)
		if err == nil {
			err = p.ReleaseBlock(block)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
