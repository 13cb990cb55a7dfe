package firewall

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeNATs keeps NATs as Windows does, and writes down what is done to them. It
// fails at the names in broken.
type fakeNATs struct {
	nats   []hostNAT
	broken map[string]bool
	done   []string
}

func (f *fakeNATs) list() ([]hostNAT, error) {
	if f.broken["list"] {
		return nil, errors.New("WMI is not there")
	}
	return slices.Clone(f.nats), nil
}

func (f *fakeNATs) add(nat hostNAT) error {
	f.done = append(f.done, "add "+nat.name)
	if f.broken[nat.name] || slices.ContainsFunc(f.nats, func(n hostNAT) bool { return n.name == nat.name }) {
		return errors.New(nat.name + " cannot be made")
	}
	f.nats = append(f.nats, nat)
	return nil
}

func (f *fakeNATs) remove(name string) error {
	f.done = append(f.done, "remove "+name)
	if f.broken[name] {
		return errors.New(name + " cannot be removed")
	}
	f.nats = slices.DeleteFunc(f.nats, func(n hostNAT) bool { return n.name == name })
	return nil
}

var compareNATs = cmp.Options{cmp.AllowUnexported(hostNAT{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}

func natOf(name, internal, external string) hostNAT {
	return hostNAT{name: name, internal: netip.MustParsePrefix(internal), external: netip.MustParsePrefix(external)}
}

// The cluster is no destination of a NAT: it is reached by the WireGuard adapter,
// whose address is not in the external prefix.
func TestWantedNATs(t *testing.T) {
	external := netip.MustParsePrefix("192.0.2.0/24")
	subnets := hostPrefixes("10.42.7.0/25", "fd42:0:0:7::/65", "10.99.1.0/25")
	for _, c := range []struct {
		name  string
		rules Rules
		want  []hostNAT
	}{
		{name: "not asked for", rules: Rules{Subnets: subnets}},
		{name: "IPv4 alone", rules: Rules{Subnets: subnets, Masquerade: true}, want: []hostNAT{
			natOf("zlayer-10.42.7.0-25", "10.42.7.0/25", "192.0.2.0/24"), natOf("zlayer-10.99.1.0-25", "10.99.1.0/25", "192.0.2.0/24"),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, wantedNATs("zlayer", c.rules, external), compareNATs); diff != "" {
				t.Errorf("NATs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReconcileNATs(t *testing.T) {
	one, moved := natOf("zlayer-10.42.7.0-25", "10.42.7.0/25", "192.0.2.0/24"), natOf("zlayer-10.42.7.0-25", "10.42.7.0/25", "198.51.100.0/24")
	old := natOf("zlayer-10.99.1.0-25", "10.99.1.0/25", "192.0.2.0/24")
	for _, c := range []struct {
		name         string
		have, wanted []hostNAT
		broken       string
		done         []string
		failed       bool
		same         bool
	}{
		{name: "new", wanted: []hostNAT{one}, done: []string{"add " + one.name}},
		{name: "as it should be", have: []hostNAT{one}, wanted: []hostNAT{one}, same: true},
		{name: "the host has moved", have: []hostNAT{moved}, wanted: []hostNAT{one}, done: []string{"remove " + one.name, "add " + one.name}},
		{name: "another slice", have: []hostNAT{old}, wanted: []hostNAT{one}, done: []string{"remove " + old.name, "add " + one.name}},
		{name: "teardown", have: []hostNAT{one, old}, done: []string{"remove " + one.name, "remove " + old.name}},
		{name: "one cannot be removed", have: []hostNAT{moved, old}, wanted: []hostNAT{one}, broken: one.name, done: []string{"remove " + one.name, "remove " + old.name}, failed: true},
		{name: "one cannot be made", wanted: []hostNAT{one, old}, broken: one.name, done: []string{"add " + one.name, "add " + old.name}, failed: true},
		{name: "no WMI", wanted: []hostNAT{one}, broken: "list", failed: true, same: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := &fakeNATs{nats: c.have, broken: map[string]bool{c.broken: true}}
			changed, err := reconcileNATs(store, c.wanted)
			if (err != nil) != c.failed || changed == c.same {
				t.Errorf("changed: %t, %v", changed, err)
			}
			if diff := cmp.Diff(c.done, store.done); diff != "" {
				t.Errorf("done (-want +got):\n%s", diff)
			}
		})
	}
}

func TestIsNATName(t *testing.T) {
	for name, want := range map[string]bool{
		"zlayer-10.42.7.0-25": true, "zlayer-10.42.7.0-250": false, "zlayer-nat": false, "zlayer-10.42.7.0": false,
		"zlayer": false, "nat": false, "": false, "other-10.42.7.0-25": false, "zlayer-10.042.7.0-25": false,
	} {
		if got := isNATName("zlayer", name); got != want {
			t.Errorf("%q: %t", name, got)
		}
	}
}

func TestExternalPrefix(t *testing.T) {
	slow, fast := way{metric: 300, prefix: netip.MustParsePrefix("198.51.100.7/24")}, way{metric: 25, prefix: netip.MustParsePrefix("192.0.2.7/24")}
	if got, found := externalPrefix([]way{slow, fast}); !found || got != netip.MustParsePrefix("192.0.2.0/24") {
		t.Errorf("%s, %t", got, found)
	}
	if got, found := externalPrefix(nil); found {
		t.Errorf("without a default route: %s", got)
	}
}
