package wireguard

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWantedRoutes(t *testing.T) {
	config := Config{Addresses: []netip.Addr{netip.MustParseAddr("10.200.1.1")}, Slices: prefixes("10.200.1.0/24", "fd00:200:0:1::/64")}
	got := wantedRoutes(config, []Peer{planned(2)})
	var want = map[netip.Prefix]route{}
	for _, r := range []route{
		{dst: netip.MustParsePrefix("10.200.1.0/24"), unreachable: true},
		{dst: netip.MustParsePrefix("fd00:200:0:1::/64"), unreachable: true},
		{dst: netip.MustParsePrefix("10.200.2.0/24"), src: netip.MustParseAddr("10.200.1.1")},
		{dst: netip.MustParsePrefix("fd00:200:0:2::/64")},
	} {
		want[r.dst] = r
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b route) bool { return a == b }), compare[0]); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}

func TestDiffRoutes(t *testing.T) {
	to := func(dst, src string) route {
		return route{dst: netip.MustParsePrefix(dst), src: netip.MustParseAddr(src)}
	}
	refuse := func(dst string) route { return route{dst: netip.MustParsePrefix(dst), unreachable: true} }
	a, b := to("10.1.0.0/24", "10.0.0.1"), to("10.2.0.0/24", "10.0.0.1")
	for _, c := range []struct {
		name                 string
		have, want, del, add []route
	}{
		{name: "nothing"},
		{name: "equal", have: []route{b, a}, want: []route{a, b}},
		{name: "new", have: []route{a}, want: []route{a, b}, add: []route{b}},
		{name: "gone", have: []route{a, b}, want: []route{b}, del: []route{a}},
		{name: "twice", have: []route{a, a}, want: []route{a}, del: []route{a}},
		{name: "other source", have: []route{a}, want: []route{to("10.1.0.0/24", "10.0.0.2")}, del: []route{a}, add: []route{to("10.1.0.0/24", "10.0.0.2")}},
		{name: "slice becomes ours", have: []route{a}, want: []route{refuse("10.1.0.0/24")}, del: []route{a}, add: []route{refuse("10.1.0.0/24")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := map[netip.Prefix]route{}
			for _, r := range c.want {
				want[r.dst] = r
			}
			del, add := diffRoutes(c.have, want)
			if !slices.Equal(del, c.del) || !slices.Equal(add, c.add) {
				t.Errorf("delete %v and add %v, want %v and %v", del, add, c.del, c.add)
			}
		})
	}
}
