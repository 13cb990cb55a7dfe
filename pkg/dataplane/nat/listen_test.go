package nat

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// A node listens only while somebody may have something to say.
func TestListens(t *testing.T) {
	w := &simWorld{internet: newNetwork()}
	one, two := w.node("a", w.internet, "203.0.113.1"), w.node("b", w.internet, "203.0.113.2")
	host, other := Candidate{Host, netip.MustParseAddrPort("203.0.113.2:51820")}, netip.MustParseAddrPort("203.0.113.9:4000")
	with := func(candidates ...Candidate) func(*engine) {
		return func(e *engine) { e.setPeers([]Peer{{Key: two.key, Node: "b", Candidates: candidates}}) }
	}
	for _, c := range []struct {
		name    string
		servers []string
		do      func(*engine)
		want    bool
	}{
		{"alone", nil, func(*engine) {}, false},
		{"a peer without candidates", nil, with(), false},
		{"a peer in no NAT", nil, with(host, Candidate{Host, other}), false},
		{"a peer that servers see as it is", nil, with(host, Candidate{Reflexive, host.Addr}), false},
		{"a translated peer", nil, with(host, Candidate{Reflexive, other}), true},
		{"a relayed peer", nil, with(host, Candidate{Relayed, other}), true},
		{"a peer with a family less", nil, func(e *engine) {
			e.hosts = []netip.AddrPort{one.endpoint(), netip.MustParseAddrPort("[2001:db8::1]:51820")}
			e.setPeers([]Peer{{Key: two.key, Node: "b", Endpoint: two.endpoint()}})
		}, false},
		{"a peer that is published in a family less", nil, func(e *engine) {
			e.hosts = []netip.AddrPort{one.endpoint()}
			e.setPeers([]Peer{{Key: two.key, Node: "b", Endpoint: netip.MustParseAddrPort("[2001:db8::2]:51820")}})
		}, true},
		{"a peer without the family that this node is published in", nil, func(e *engine) {
			e.hosts = []netip.AddrPort{one.endpoint(), netip.MustParseAddrPort("[2001:db8::1]:51820")}
			e.setPeers([]Peer{{Key: two.key, Node: "b", Endpoint: netip.MustParseAddrPort("[2001:db8::2]:51820")}})
		}, true},
		{"servers", []string{"192.0.2.9:3478"}, with(), true},
		{"a relay of its own", nil, func(e *engine) { e.relays = []wayIn{{way: &simSink{}, relayed: other}} }, true},
		{"a translator of its own", nil, func(e *engine) { e.translated[0] = true }, true},
		{"a search", nil, func(e *engine) {
			with()(e)
			e.setSearch(e.peers[two.key], &search{})
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := one.options()
			o.Config.STUNServers = c.servers
			var told []bool
			o.Published = one.endpoint
			o.OnListen = func(listen bool) { told = append(told, listen) }
			agent, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			e := newEngine(agent)
			e.now = time.Now()
			c.do(e)
			e.tell()
			e.tell()
			want := []bool{true}[:map[bool]int{true: 1}[c.want]]
			if !slices.Equal(told, want) {
				t.Errorf("told %v, want %v", told, want)
			}
			e.setPeers(nil)
			e.relays, e.config.STUNServers, e.translated = nil, nil, [families]bool{}
			if e.tell(); c.want {
				want = []bool{true, false}
			}
			if !slices.Equal(told, want) {
				t.Errorf("afterwards told %v, want %v", told, want)
			}
		})
	}
}
