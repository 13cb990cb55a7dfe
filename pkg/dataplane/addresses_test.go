package dataplane

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
)

var compareAddrs = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func addrs(texts ...string) []netip.Addr {
	var parsed []netip.Addr
	for _, text := range texts {
		parsed = append(parsed, netip.MustParseAddr(text))
	}
	return parsed
}

func prefixes(texts ...string) []netip.Prefix {
	var parsed []netip.Prefix
	for _, text := range texts {
		parsed = append(parsed, netip.MustParsePrefix(text))
	}
	return parsed
}

// dualStack has one address for a sandbox in IPv4 and many in IPv6.
func dualStack(t *testing.T) *addresses {
	t.Helper()
	layouts, err := systemOf("linux").layouts(prefixes("10.1.0.0/30", "fd00::/64"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAddresses(layouts)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func used(a *addresses) []int {
	var counts []int
	for _, s := range a.stats() {
		counts = append(counts, s.Used)
	}
	return counts
}

func TestAllocateGivesBothFamiliesOrNone(t *testing.T) {
	a := dualStack(t)
	got, _, err := a.allocate("one", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(addrs("10.1.0.2", "fd00::2"), got, compareAddrs); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if _, _, err := a.allocate("two", nil, nil); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("second sandbox in a pool of one: %v", err)
	}
	if diff := cmp.Diff([]int{1, 1}, used(a)); diff != "" {
		t.Errorf("used after a refusal (-want +got):\n%s", diff)
	}
	a.release("one")
	if _, _, err := a.allocate("two", nil, nil); err != nil {
		t.Errorf("after the release: %v", err)
	}
}

func TestAllocateAgainGivesTheSameAndUndoesNothing(t *testing.T) {
	a := dualStack(t)
	first, _, err := a.allocate("one", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, undo, err := a.allocate("one", first, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again, compareAddrs); diff != "" {
		t.Errorf("second answer (-want +got):\n%s", diff)
	}
	undo()
	if diff := cmp.Diff([]int{1, 1}, used(a)); diff != "" {
		t.Errorf("undo of the second call freed what the first gave (-want +got):\n%s", diff)
	}
}

func TestAllocateRequested(t *testing.T) {
	for _, tc := range []struct {
		name      string
		requested []netip.Addr
		want      []netip.Addr
		err       error
	}{
		{"one family, the other is chosen", addrs("fd00::77"), addrs("10.1.0.2", "fd00::77"), nil},
		{"both families", addrs("fd00::77", "10.1.0.2"), addrs("10.1.0.2", "fd00::77"), nil},
		{"outside every slice", addrs("192.0.2.1"), nil, ipam.ErrOutside},
		{"the node's own", addrs("10.1.0.1"), nil, ipam.ErrTaken},
		{"two of one slice", addrs("fd00::77", "fd00::78"), nil, ErrInvalid},
		{"the broadcast address", addrs("10.1.0.3"), nil, ipam.ErrOutside},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := dualStack(t)
			got, _, err := a.allocate("one", tc.requested, nil)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if diff := cmp.Diff(tc.want, got, compareAddrs); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
			if want := len(tc.want) / 2; used(a)[0] != want || used(a)[1] != want {
				t.Errorf("used %v after %v", used(a), err)
			}
		})
	}
}

func TestAllocateRefusesOtherAddressesThanHeld(t *testing.T) {
	a := dualStack(t)
	if _, _, err := a.allocate("one", addrs("fd00::77"), nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.allocate("one", addrs("fd00::78"), nil); !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("other address for the same sandbox: %v", err)
	}
	if diff := cmp.Diff([]int{1, 1}, used(a)); diff != "" {
		t.Errorf("used (-want +got):\n%s", diff)
	}
}

func TestAdoptLeavesForeignAddressesAlone(t *testing.T) {
	a := dualStack(t)
	err := a.adopt("one", addrs("10.9.0.2", "fd00::5"), nil)
	if !errors.Is(err, ipam.ErrOutside) {
		t.Errorf("adopting an address of no slice: %v", err)
	}
	if diff := cmp.Diff([]int{0, 1}, used(a)); diff != "" {
		t.Errorf("used (-want +got):\n%s", diff)
	}
}
