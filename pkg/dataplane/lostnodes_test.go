package dataplane

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// lookedNodes are so many nodes with a slice each.
func lookedNodes(n int) map[string][]netip.Prefix {
	nodes := map[string][]netip.Prefix{}
	for i := range n {
		nodes[fmt.Sprintf("n%04d", i)] = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}
	}
	return nodes
}

// from are the addresses that nodes are looked at from.
var from = []netip.Addr{netip.MustParseAddr("10.200.0.1")}

// answers are those of all targets but these nodes'.
func answers(targets map[string]netip.Addr, silent ...string) map[netip.Addr]time.Duration {
	got := map[netip.Addr]time.Duration{}
	for name, addr := range targets {
		if !slices.Contains(silent, name) {
			got[addr] = time.Millisecond
		}
	}
	return got
}

func TestLostNodes(t *testing.T) {
	nodes := lookedNodes(2)
	const a, b = "n0000", "n0001"
	for _, tc := range []struct {
		name string
		// rounds are seconds: "." all answer, "a" and "b" are silent, "-" nobody is asked for, "x" node a is forgotten.
		rounds, want string
	}{
		{"all answer", "....", ""},
		{"never answered", "aaaaaaaa", ""},
		{"answered once", ".aaa", a},
		{"missed two", ".aa.aa.aa", ""},
		{"comes back", ".aaaa.", ""},
		{"a pause is no row", ".aa-a", ""},
		{"a pause, and then a row", ".aa-aaa", a},
		{"lost while nobody asked", ".-----aaa", a},
		{"lost stays lost while nobody asks", ".aaa----", a},
		{"found after a pause", ".aaa----.", ""},
		{"both", ".BBB", a + " " + b},
		{"it left the set", ".aaax", ""},
		{"it came anew and never answered", ".aaaxaaaa", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var lost lostNodes
			for _, round := range tc.rounds {
				switch round {
				case '-':
					lost.next(nil, from)
					continue
				case 'x':
					lost.keep(places{slices: map[string][]netip.Prefix{b: nodes[b]}})
					continue
				}
				targets := lost.next(nodes, from)
				lost.observe(targets, answers(targets, map[rune][]string{'a': {a}, 'b': {b}, 'B': {a, b}}[round]...))
			}
			names, down := lost.down()
			if got := strings.Join(names, " "); got != tc.want || len(down) != len(names) {
				t.Errorf("lost: %q with %v, want %q", got, down, tc.want)
			}
		})
	}
}

// TestManyNodesTakeTurns has more nodes than are looked at in a second: every one
// gets its turn, and one that goes silent is not waited for so long.
func TestManyNodesTakeTurns(t *testing.T) {
	const many = 1000
	nodes := lookedNodes(many)
	var lost lostNodes
	seen := map[string]bool{}
	for range 4 {
		targets := lost.next(nodes, from)
		if len(targets) > lookMost {
			t.Fatalf("%d nodes at once", len(targets))
		}
		lost.observe(targets, answers(targets))
		for name := range targets {
			seen[name] = true
		}
	}
	if len(seen) != many {
		t.Errorf("after 4 s %d of %d nodes were looked at", len(seen), many)
	}
	gone := slices.Sorted(maps.Keys(nodes))[many/2:]
	for second := 1; ; second++ {
		targets := lost.next(nodes, from)
		lost.observe(targets, answers(targets, gone[:10]...))
		names, _ := lost.down()
		if len(names) == 10 {
			break
		}
		if second == 8 {
			t.Fatalf("after %d s %d of 10 nodes are lost", second, len(names))
		}
	}
}

// TestAnAddedPeerIsLost is about peers that an agent adds, which may have but one
// address: it is looked at itself.
func TestAnAddedPeerIsLost(t *testing.T) {
	nodes, peer := []Node{{Name: "one"}}, wireguard.Peer{Node: addedName("key"), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.200.3.7/32")}}
	places := placesOf("one", nil, nodes, []wireguard.Peer{peer})
	name := places.nodeOf(peer.AllowedIPs[0].Addr())
	var lost lostNodes
	for _, silent := range []bool{false, true, true, true} {
		targets := lost.next(map[string][]netip.Prefix{name: places.of(name)}, from)
		if targets[name] != peer.AllowedIPs[0].Addr() {
			t.Fatalf("looks at %v", targets)
		}
		got := answers(targets)
		if silent {
			clear(got)
		}
		lost.observe(targets, got)
	}
	lost.keep(places)
	if names, down := lost.down(); !slices.Equal(names, []string{peer.Node}) || !slices.Equal(down, peer.AllowedIPs) {
		t.Errorf("lost: %v, %v", names, down)
	}
	lost.keep(placesOf("one", nil, nodes, nil))
	if names, _ := lost.down(); len(names) > 0 {
		t.Errorf("still lost: %v", names)
	}
}
