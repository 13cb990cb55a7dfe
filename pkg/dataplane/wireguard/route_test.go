package wireguard

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWantedRoutes(t *testing.T) {
	peers := []Peer{planned(2)}
	usual := []route{
		{dst: netip.MustParsePrefix("10.200.2.0/24"), src: netip.MustParseAddr("10.200.1.1")},
		{dst: netip.MustParsePrefix("fd00:200:0:2::/64"), metric: 1024},
	}
	for _, c := range []struct {
		name   string
		config Config
		want   []route
	}{
		{name: "main", config: Config{Refuse: prefixes("10.200.1.0/24", "fd00:200:0:1::/64")}, want: append([]route{
			{dst: netip.MustParsePrefix("10.200.1.0/24"), unreachable: true},
			{dst: netip.MustParsePrefix("fd00:200:0:1::/64"), metric: 1024, unreachable: true},
		}, usual...)},
		{name: "service", config: Config{Service: "web", Table: 256, Refuse: prefixes("0.0.0.0/0", "::/0")}, want: append([]route{
			{dst: netip.MustParsePrefix("0.0.0.0/0"), unreachable: true},
			{dst: netip.MustParsePrefix("::/0"), metric: 1024, unreachable: true},
			{dst: netip.MustParsePrefix("10.200.2.0/24"), metric: metricBehind, unreachable: true},
			{dst: netip.MustParsePrefix("fd00:200:0:2::/64"), metric: metricBehind, unreachable: true},
		}, usual...)},
		{name: "what is refused is no peer's", config: Config{Service: "web", Table: 256, Refuse: prefixes("10.200.2.0/24")}, want: []route{
			{dst: netip.MustParsePrefix("10.200.2.0/24"), unreachable: true},
			{dst: netip.MustParsePrefix("fd00:200:0:2::/64"), metric: metricBehind, unreachable: true},
			{dst: netip.MustParsePrefix("fd00:200:0:2::/64"), metric: 1024},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Addresses = []netip.Addr{netip.MustParseAddr("10.200.1.1")}
			want := map[route]bool{}
			for _, r := range c.want {
				want[r] = true
			}
			if diff := cmp.Diff(want, wantedRoutes(c.config, peers)); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDiffRoutes(t *testing.T) {
	to := func(dst, src string) route {
		return route{dst: netip.MustParsePrefix(dst), src: netip.MustParseAddr(src)}
	}
	refuse := func(dst string, metric uint32) route {
		return route{dst: netip.MustParsePrefix(dst), metric: metric, unreachable: true}
	}
	a, b := to("10.1.0.0/24", "10.0.0.1"), to("10.2.0.0/24", "10.0.0.1")
	behindA, behindB := refuse("10.1.0.0/24", metricBehind), refuse("10.2.0.0/24", metricBehind)
	far := a
	far.metric = 5
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
		{name: "other metric", have: []route{far}, want: []route{a}, del: []route{far}, add: []route{a}},
		{name: "slice becomes ours", have: []route{a}, want: []route{refuse("10.1.0.0/24", 0)}, del: []route{a}, add: []route{refuse("10.1.0.0/24", 0)}},
		{name: "refusals come first and go last", have: []route{behindA, a}, want: []route{b, behindB}, del: []route{a, behindA}, add: []route{behindB, b}},
		{name: "a lost device", have: []route{behindA}, want: []route{a, behindA}, add: []route{a}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := map[route]bool{}
			for _, r := range c.want {
				want[r] = true
			}
			del, add := diffRoutes(c.have, want)
			if !slices.Equal(del, c.del) || !slices.Equal(add, c.add) {
				t.Errorf("delete %v and add %v, want %v and %v", del, add, c.del, c.add)
			}
		})
	}
}
