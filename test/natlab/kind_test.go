//go:build linux

package natlab_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/test/natlab"
)

// What a router does, in the words of RFC 4787.
const (
	none        = "none"
	independent = "endpoint-independent"
	byAddress   = "address-dependent"
	byPort      = "address- and port-dependent"
)

type behaviour struct {
	Mapping    string // of one port, for several destinations
	Filtering  string // of what comes to a mapping
	Hairpin    bool   // between two ports behind the router, by their mappings
	Translated bool   // the mapping has the outermost router's address and another port than the host
}

// TestKinds classifies routers as a client of RFC 5780 does.
func TestKinds(t *testing.T) {
	routed := behaviour{Mapping: none, Filtering: independent, Hairpin: true}
	nat := func(mapping, filtering string, hairpin bool) behaviour {
		return behaviour{Mapping: mapping, Filtering: filtering, Hairpin: hairpin, Translated: true}
	}
	tests := []struct {
		name    string
		configs []natlab.Config // from the internet inwards
		v4, v6  *behaviour      // nil: the family is missing
	}{
		{"routed", []natlab.Config{{IPv4: natlab.Routed}}, &routed, nil},
		{"firewall", []natlab.Config{{IPv4: natlab.Firewall}}, &behaviour{Mapping: none, Filtering: byPort, Hairpin: true}, nil},
		{"full cone", []natlab.Config{{IPv4: natlab.FullCone}}, ptr(nat(independent, independent, false)), nil},
		{"full cone, hairpin", []natlab.Config{{IPv4: natlab.FullCone, Hairpin: true}}, ptr(nat(independent, independent, true)), nil},
		{"address restricted", []natlab.Config{{IPv4: natlab.AddressRestricted}}, ptr(nat(independent, byAddress, false)), nil},
		{"address restricted, hairpin", []natlab.Config{{IPv4: natlab.AddressRestricted, Hairpin: true}}, ptr(nat(independent, byAddress, true)), nil},
		{"port restricted", []natlab.Config{{IPv4: natlab.PortRestricted}}, ptr(nat(independent, byPort, false)), nil},
		{"port restricted, hairpin", []natlab.Config{{IPv4: natlab.PortRestricted, Hairpin: true}}, ptr(nat(independent, byPort, true)), nil},
		{"symmetric", []natlab.Config{{IPv4: natlab.Symmetric}}, ptr(nat(byPort, byPort, false)), nil},
		{"symmetric, hairpin", []natlab.Config{{IPv4: natlab.Symmetric, Hairpin: true}}, ptr(nat(byPort, byPort, true)), nil},
		{"carrier-grade", []natlab.Config{{IPv4: natlab.PortRestricted}, {IPv4: natlab.PortRestricted}}, ptr(nat(independent, byPort, false)), nil},
		{"carrier-grade, full cones", []natlab.Config{{IPv4: natlab.FullCone, Hairpin: true}, {IPv4: natlab.FullCone}},
			ptr(nat(independent, independent, true)), nil},
		{"carrier-grade, symmetric carrier", []natlab.Config{{IPv4: natlab.Symmetric}, {IPv4: natlab.FullCone}}, ptr(nat(byPort, byPort, false)), nil},
		{"carrier-grade, restricted home", []natlab.Config{{IPv4: natlab.FullCone}, {IPv4: natlab.AddressRestricted}}, ptr(nat(independent, byAddress, false)), nil},
		{"IPv6 only", []natlab.Config{{IPv6: natlab.Routed}}, nil, &routed},
		{"IPv6 firewall only", []natlab.Config{{IPv6: natlab.Firewall}}, nil, &behaviour{Mapping: none, Filtering: byPort, Hairpin: true}},
		{"NAT of one family", []natlab.Config{{IPv4: natlab.Symmetric, IPv6: natlab.Routed}}, ptr(nat(byPort, byPort, false)), &routed},
		{"NAT of both families", []natlab.Config{{IPv4: natlab.FullCone, IPv6: natlab.PortRestricted}},
			ptr(nat(independent, independent, false)), ptr(nat(independent, byPort, false))},
		{"IPv6 full cone", []natlab.Config{{IPv6: natlab.FullCone}}, nil, ptr(nat(independent, independent, false))},
		{"IPv6 address restricted, hairpin", []natlab.Config{{IPv6: natlab.AddressRestricted, Hairpin: true}}, nil, ptr(nat(independent, byAddress, true))},
		{"IPv6 symmetric", []natlab.Config{{IPv6: natlab.Symmetric}}, nil, ptr(nat(byPort, byPort, false))},
		{"carrier-grade with plain IPv6", []natlab.Config{
			{IPv4: natlab.PortRestricted, IPv6: natlab.Routed}, {IPv4: natlab.PortRestricted, IPv6: natlab.Routed},
		}, ptr(nat(independent, byPort, false)), &routed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			routers, host := w.site("host", test.configs...)
			for _, family := range []struct {
				name   string
				v6     bool
				want   *behaviour
				public netip.Addr
			}{{"IPv4", false, test.v4, routers[0].IPv4}, {"IPv6", true, test.v6, routers[0].IPv6}} {
				if family.want == nil {
					if address(host, family.v6).IsValid() || family.public.IsValid() {
						t.Errorf("%s is there: the host has %s, the router %s", family.name, address(host, family.v6), family.public)
					}
					continue
				}
				got := classify(w, host, family.v6, family.public)
				if diff := cmp.Diff(*family.want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", family.name, diff)
				}
			}
		})
	}
}

func ptr[T any](value T) *T { return &value }

func classify(w *world, host *natlab.Host, v6 bool, public netip.Addr) behaviour {
	w.t.Helper()
	client := listen(w.t, host, v6, 0)
	one, _, _ := w.servers(v6)
	mapping := client.sourceAt(one)
	return behaviour{
		Mapping:    classifyMapping(w, client),
		Filtering:  classifyFiltering(w, host, v6),
		Hairpin:    hairpins(w, listen(w.t, host, v6, 0), listen(w.t, host, v6, 0)),
		Translated: mapping.Addr() == public && mapping.Port() != client.addr.Port(),
	}
}

func classifyMapping(w *world, client *endpoint) string {
	w.t.Helper()
	one, otherPort, otherAddress := w.servers(client.addr.Addr().Is6())
	first, second, third := client.sourceAt(one), client.sourceAt(otherPort), client.sourceAt(otherAddress)
	switch {
	case first == client.addr && second == first && third == first:
		return none
	case first == second && first == third:
		return independent
	case first == second:
		return byAddress
	}
	return byPort
}

// classifyFiltering also checks that the strangers left no trace: what the
// client sends to them afterwards has the mapping it had.
func classifyFiltering(w *world, host *natlab.Host, v6 bool) string {
	w.t.Helper()
	one, otherPort, otherAddress := w.servers(v6)
	client := listen(w.t, host, v6, 0)
	mapping := client.sourceAt(one)
	address, port := client.admits(otherAddress, one, mapping), client.admits(otherPort, one, mapping)
	kind := classifyMapping(w, listen(w.t, host, v6, 0))
	for _, stranger := range []*endpoint{otherAddress, otherPort} {
		if source := client.sourceAt(stranger); kind != byPort && source != mapping {
			w.t.Errorf("after %s sent to %s, the mapping for it is %s", stranger.name, mapping, source)
		}
	}
	switch {
	case address && port:
		return independent
	case port:
		return byAddress
	case address:
		return "by port alone"
	}
	return byPort
}

// hairpins tells whether b receives what a sends to its mapping, from the
// mapping of a where that does not depend on whom a sends to.
func hairpins(w *world, a, b *endpoint) bool {
	w.t.Helper()
	one, _, otherAddress := w.servers(a.addr.Addr().Is6())
	mappingA, mappingB := a.sourceAt(one), b.sourceAt(one)
	depends := a.sourceAt(otherAddress) != mappingA
	for range rounds {
		text := a.send(mappingB)
		for _, p := range b.drain(one, mappingB) {
			if p.text != text {
				continue
			}
			if p.from.Addr() != mappingA.Addr() || !depends && p.from != mappingA {
				w.t.Errorf("%s, whose mapping is %s, sends to %s, and it arrives from %s", a.name, mappingA, mappingB, p.from)
			}
			return true
		}
	}
	return false
}
