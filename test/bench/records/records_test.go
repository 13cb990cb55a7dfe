package records

import (
	"bytes"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// parsed is the zone as another program reads it.
func parsed(t *testing.T, pods []Pod) map[string][]netip.Addr {
	t.Helper()
	var file bytes.Buffer
	if err := WriteZone(&file, pods); err != nil {
		t.Fatal(err)
	}
	found := map[string][]netip.Addr{}
	parser := dns.NewZoneParser(&file, Zone, "")
	for record, ok := parser.Next(); ok; record, ok = parser.Next() {
		name := strings.TrimSuffix(record.Header().Name, "."+Zone)
		switch record := record.(type) {
		case *dns.A:
			addr, _ := netip.AddrFromSlice(record.A)
			found[name] = append(found[name], addr.Unmap())
		case *dns.AAAA:
			addr, _ := netip.AddrFromSlice(record.AAAA)
			found[name] = append(found[name], addr)
		}
	}
	if err := parser.Err(); err != nil {
		t.Fatal(err)
	}
	delete(found, "ns")
	return found
}

func TestTheZoneFileHasThePodsAndNothingElse(t *testing.T) {
	const names = 1000
	pods := Pods(names)
	want := map[string][]netip.Addr{}
	for _, pod := range pods {
		want[pod.Name] = append(want[pod.Name], pod.Addrs...)
		want[pod.Service] = append(want[pod.Service], pod.Addrs...)
	}
	got := parsed(t, pods)
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if len(got) != names {
		t.Errorf("%d names, want %d", len(got), names)
	}
	seen := map[netip.Addr]bool{}
	for _, pod := range pods {
		for _, addr := range pod.Addrs {
			if seen[addr] {
				t.Errorf("%v is of two pods", addr)
			}
			seen[addr] = true
		}
	}
}

func TestQuestionsAreTheSameAtEveryCall(t *testing.T) {
	const names, n = 1000, 20_000
	var first, second bytes.Buffer
	if err := errors.Join(WriteQuestions(&first, names, n), WriteQuestions(&second, names, n)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two calls differ")
	}
	zone := parsed(t, Pods(names))
	kinds, missing := map[string]int{}, 0
	for line := range strings.Lines(first.String()) {
		name, kind, _ := strings.Cut(strings.TrimSpace(line), " ")
		kinds[kind]++
		if zone[strings.TrimSuffix(name, "."+Zone)] == nil {
			missing++
		}
	}
	if part := float64(missing) / n; part < 0.09 || part > 0.11 {
		t.Errorf("%d of %d names do not exist, want a part of %v", missing, n, Missing)
	}
	if got := slices.Sorted(maps.Keys(kinds)); !slices.Equal(got, []string{"A", "AAAA"}) || kinds["A"]+kinds["AAAA"] != n || kinds["A"] < n*45/100 || kinds["A"] > n*55/100 {
		t.Errorf("questions by type: %v", kinds)
	}
}
