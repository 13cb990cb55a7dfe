//go:build linux

package natlab_test

import (
	"net/netip"
	"testing"

	"github.com/zlayer/zlayer-cni/test/natlab"
)

// TestPairsThatMeet has two hosts behind every pair of routers send to each
// other's mappings at the same time, and to whatever source they see. That is
// all that two nodes without a relay can do, so it is what a traversal can be
// measured by.
func TestPairsThatMeet(t *testing.T) {
	sites := []struct {
		name    string
		configs []natlab.Config
	}{
		{"routed", []natlab.Config{{IPv4: natlab.Routed}}},
		{"firewall", []natlab.Config{{IPv4: natlab.Firewall}}},
		{"full cone", []natlab.Config{{IPv4: natlab.FullCone}}},
		{"address restricted", []natlab.Config{{IPv4: natlab.AddressRestricted}}},
		{"port restricted", []natlab.Config{{IPv4: natlab.PortRestricted}}},
		{"carrier-grade", []natlab.Config{{IPv4: natlab.PortRestricted}, {IPv4: natlab.PortRestricted}}},
		{"symmetric", []natlab.Config{{IPv4: natlab.Symmetric}}},
	}
	// A random port is not known to a filter that wants to know it.
	portFilter := map[string]bool{"firewall": true, "port restricted": true, "carrier-grade": true, "symmetric": true}
	w := newWorld(t)
	one, _, _ := w.servers(false)
	var left, right []*natlab.Host
	for i, site := range sites {
		_, l := w.site("left"+string(rune('a'+i)), site.configs...)
		_, r := w.site("right"+string(rune('a'+i)), site.configs...)
		left, right = append(left, l), append(right, r)
	}
	for i, a := range sites {
		for j, b := range sites[i:] {
			t.Run(a.name+" and "+b.name, func(t *testing.T) {
				want := !(a.name == "symmetric" && portFilter[b.name] || b.name == "symmetric" && portFilter[a.name])
				if got := meet(listen(t, left[i], false, 51820), listen(t, right[i+j], false, 51820), one); got != want {
					t.Errorf("they meet: %t, want %t", got, want)
				}
			})
		}
	}
}

func TestNeighboursBehindACarrier(t *testing.T) {
	for _, test := range []struct {
		name    string
		hairpin bool
	}{{"hairpin", true}, {"no hairpin", false}} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			one, _, _ := w.servers(false)
			carrier := must(w.Router("carrier", natlab.Config{IPv4: natlab.PortRestricted, Hairpin: test.hairpin}))(t)
			var hosts []*natlab.Host
			for _, name := range []string{"a", "b"} {
				home := must(carrier.Router("home-"+name, natlab.Config{IPv4: natlab.PortRestricted}))(t)
				hosts = append(hosts, must(home.Host(name))(t))
			}
			if got := meet(listen(t, hosts[0], false, 51820), listen(t, hosts[1], false, 51820), one); got != test.hairpin {
				t.Errorf("they meet: %t", got)
			}
		})
	}
}

// TestPublicAddressesOfNeighbours checks that two hosts of one LAN with the
// same port have mappings of their own, and that LANs may have the same prefix.
func TestPublicAddressesOfNeighbours(t *testing.T) {
	w := newWorld(t)
	one, _, _ := w.servers(false)
	config := natlab.Config{IPv4: natlab.PortRestricted, LAN: netip.MustParsePrefix("192.168.0.0/24")}
	home, office := must(w.Router("home", config))(t), must(w.Router("office", config))(t)
	a, b, c := must(home.Host("a"))(t), must(home.Host("b"))(t), must(office.Host("c"))(t)
	if a.IPv4 != c.IPv4 {
		t.Errorf("LANs of one prefix have hosts %s and %s", a.IPv4, c.IPv4)
	}
	mappings := map[netip.AddrPort]string{}
	for _, host := range []*natlab.Host{a, b, c} {
		client := listen(t, host, false, 51820)
		mapping := client.sourceAt(one)
		if other, taken := mappings[mapping]; taken {
			t.Errorf("%s and %s have the mapping %s", other, host.Name, mapping)
		}
		mappings[mapping] = host.Name
		if kind := classifyMapping(w, client); kind != independent {
			t.Errorf("the mapping of %s is %s", host.Name, kind)
		}
	}
}

// meet tells whether a and b get to send to each other both ways.
func meet(a, b, friend *endpoint) bool {
	mappingA, mappingB := a.sourceAt(friend), b.sourceAt(friend)
	toA, toB := map[netip.AddrPort]bool{mappingA: true}, map[netip.AddrPort]bool{mappingB: true}
	// sees sends from one to all it knows of the other, and returns whether
	// anything came from the other in turn.
	sees := func(e *endpoint, mapping netip.AddrPort, to map[netip.AddrPort]bool) bool {
		for addr := range to {
			e.send(addr)
		}
		arrived := e.drain(friend, mapping)
		for _, p := range arrived {
			to[p.from] = true
		}
		return len(arrived) > 0
	}
	var atA, atB bool
	for range 2 * rounds {
		atA = sees(a, mappingA, toB) || atA
		atB = sees(b, mappingB, toA) || atB
		if atA && atB {
			return true
		}
	}
	return false
}
