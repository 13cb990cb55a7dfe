package ipam

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func prefixes(pairs map[string]string) map[string]netip.Prefix {
	result := make(map[string]netip.Prefix)
	for name, text := range pairs {
		result[name] = netip.MustParsePrefix(text)
	}
	return result
}

func TestCarve(t *testing.T) {
	for _, test := range []struct {
		name, cluster string
		bits          int
		fixed         map[string]string
		names         []string
		want          map[string]string
	}{
		// Slots counted apart from this code: FNV-1a 64 of "a" is
		// 0xaf63dc4c8601ec8c, of "b" ...f1a5, "c" ...eff2, "leader" ...eae4.
		{"v4 by hash", "10.200.0.0/16", 24, nil, []string{"a", "b"}, map[string]string{"a": "10.200.140.0/24", "b": "10.200.165.0/24"}},
		{"v6 by hash", "fd00:200::/48", 64, nil, []string{"a"}, map[string]string{"a": "fd00:200:0:ec8c::/64"}},
		{"probing", "10.0.0.0/30", 32, nil, []string{"a", "leader", "b", "c"}, map[string]string{"a": "10.0.0.0/32", "leader": "10.0.0.1/32", "b": "10.0.0.2/32", "c": "10.0.0.3/32"}},
		{"the order given decides", "10.0.0.0/30", 32, nil, []string{"leader", "a"}, map[string]string{"leader": "10.0.0.0/32", "a": "10.0.0.1/32"}},
		{"own fixed slice", "10.0.0.0/24", 26, map[string]string{"a": "10.0.0.64/26"}, []string{"a"}, map[string]string{"a": "10.0.0.64/26"}},
		{"another's fixed slice is kept free", "10.0.0.0/31", 32, map[string]string{"x": "10.0.0.0/32"}, []string{"a"}, map[string]string{"a": "10.0.0.1/32"}},
		{"a wider fixed slice", "10.0.0.0/24", 28, map[string]string{"x": "10.0.0.0/25", "y": "10.0.0.128/26", "z": "10.0.0.192/27", "u": "10.0.0.240/30"}, []string{"a"}, map[string]string{"a": "10.0.0.224/28"}},
		{"fixed outside the cluster", "10.0.0.0/31", 32, map[string]string{"x": "10.1.0.0/16", "y": "fd00::/64"}, []string{"a"}, map[string]string{"a": "10.0.0.0/32"}},
		{"twice the same name", "10.0.0.0/31", 32, nil, []string{"a", "a"}, map[string]string{"a": "10.0.0.0/32"}},
		{"the cluster as one slice", "10.0.0.0/24", 24, nil, []string{"a"}, map[string]string{"a": "10.0.0.0/24"}},
		{"no names", "10.0.0.0/24", 28, nil, nil, map[string]string{}},
		{"half of a huge space is fixed", "fd00::/16", 64, map[string]string{"x": "fd00:8000::/17"}, []string{"a"}, map[string]string{"a": "fd00::/64"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Carve(netip.MustParsePrefix(test.cluster), test.bits, prefixes(test.fixed), test.names)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(prefixes(test.want), got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("slices (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCarveRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		cluster netip.Prefix
		bits    int
		fixed   map[string]string
		names   []string
		want    error
	}{
		{"no cluster", netip.Prefix{}, 24, nil, []string{"a"}, nil},
		{"host bits", netip.MustParsePrefix("10.0.0.1/24"), 28, nil, []string{"a"}, nil},
		{"slices wider than the cluster", netip.MustParsePrefix("10.0.0.0/24"), 16, nil, []string{"a"}, nil},
		{"slices beyond the family", netip.MustParsePrefix("10.0.0.0/24"), 64, nil, []string{"a"}, nil},
		{"more names than slices", netip.MustParsePrefix("10.0.0.0/24"), 25, nil, []string{"a", "b", "c"}, ErrExhausted},
		{"all fixed", netip.MustParsePrefix("fd00::/16"), 64, map[string]string{"x": "fd00::/17", "y": "fd00:8000::/17"}, []string{"a"}, ErrExhausted},
		{"fixed around the cluster", netip.MustParsePrefix("10.0.0.0/24"), 28, map[string]string{"x": "10.0.0.0/8"}, []string{"a"}, ErrExhausted},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Carve(test.cluster, test.bits, prefixes(test.fixed), test.names)
			if err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %v, %v, want error %v", got, err, test.want)
			}
		})
	}
}

func TestFNV1a(t *testing.T) {
	for _, text := range []string{"", "a", "node-1", "größe", "\x00\xff"} {
		h := fnv.New64a()
		h.Write([]byte(text))
		if got := fnv1a(text); got != h.Sum64() {
			t.Errorf("%q: %#x, want %#x", text, got, h.Sum64())
		}
	}
}

func FuzzCarve(f *testing.F) {
	f.Add(uint8(16), uint8(24), false, uint16(20), uint8(24), uint32(7))
	f.Add(uint8(48), uint8(64), true, uint16(300), uint8(50), uint32(1<<20))
	f.Add(uint8(24), uint8(28), false, uint16(16), uint8(30), uint32(9))
	f.Add(uint8(0), uint8(128), true, uint16(4), uint8(1), uint32(1<<31))
	f.Fuzz(func(t *testing.T, clusterBits, bits uint8, v6 bool, count uint16, fixedBits uint8, fixedAt uint32) {
		base := netip.AddrFrom4([4]byte{byte(fixedAt >> 24), byte(fixedAt >> 16), byte(fixedAt >> 8), byte(fixedAt)})
		if v6 {
			base = netip.AddrFrom16([16]byte{0xfd, byte(fixedAt >> 24), byte(fixedAt >> 16), byte(fixedAt >> 8), byte(fixedAt)})
		}
		cluster, err := base.Prefix(int(clusterBits) % (base.BitLen() + 1))
		if err != nil {
			t.Fatal(err)
		}
		fixed := map[string]netip.Prefix{"fixed": netip.PrefixFrom(base, int(fixedBits)%(base.BitLen()+1))}
		var names []string
		for i := range count % 512 {
			names = append(names, fmt.Sprint("node-", i))
		}
		checkCarved(t, cluster, int(bits), fixed, names)
	})
}

// checkCarved asserts that slices are of the size asked for, inside the
// cluster and disjoint, and that Carve fails only when they cannot all fit.
func checkCarved(t *testing.T, cluster netip.Prefix, bits int, fixed map[string]netip.Prefix, names []string) {
	slices, err := Carve(cluster, bits, fixed, names)
	if err != nil {
		width := bits - cluster.Bits()
		if errors.Is(err, ErrExhausted) && !fixed["fixed"].Overlaps(cluster) && width < 63 && uint64(len(names)) <= 1<<width {
			t.Fatalf("%v with %d names and %d slots", err, len(names), uint64(1)<<width)
		}
		return
	}
	if len(slices) != len(names) {
		t.Fatalf("%d slices for %d names", len(slices), len(names))
	}
	owner := make(map[netip.Prefix]string)
	for name, slice := range slices {
		if slice.Bits() != bits || !cluster.Contains(slice.Addr()) || slice != slice.Masked() {
			t.Fatalf("%s got %s of %s", name, slice, cluster)
		}
		if other, dup := owner[slice]; dup || slice.Overlaps(fixed["fixed"]) {
			t.Fatalf("%s got %s, which is %s's or fixed", name, slice, other)
		}
		owner[slice] = name
	}
}

func BenchmarkCarve5000(b *testing.B) {
	var names []string
	fixed := make(map[string]netip.Prefix)
	cluster := netip.MustParsePrefix("fd00:200::/48")
	for i := range 5000 {
		names = append(names, fmt.Sprint("node-", i))
	}
	half, err := Carve(cluster, 64, nil, names[:2500])
	if err != nil {
		b.Fatal(err)
	}
	for name, slice := range half {
		fixed[name] = slice
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Carve(cluster, 64, fixed, names); err != nil {
			b.Fatal(err)
		}
	}
}
