package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/test/apiserver"
)

func guest(node, name string, addrs ...string) dataplane.NodeGuest {
	g := dataplane.NodeGuest{Node: node, Name: name}
	for _, addr := range addrs {
		g.Addrs = append(g.Addrs, netip.MustParseAddr(addr))
	}
	return g
}

// TestGuestsArePublishedAndFollowed has this node tell of its guests, and take
// those of another.
func TestGuestsArePublishedAndFollowed(t *testing.T) {
	l := newLab(t)
	peer := peerObject("b", "10.244.1.0/24", "fd00:10:244:1::/64")
	annotate(peer, Guests, `{"tablet":["10.244.1.7"],"phone":["10.244.1.9","fd00:10:244:1::9"]}`)
	l.Create("nodes", peer)
	var local atomic.Pointer[[]dataplane.NodeGuest]
	local.Store(&[]dataplane.NodeGuest{})
	l.start(func(c *Config) { c.Guests = func() []dataplane.NodeGuest { return *local.Load() } })
	l.annotation(PublicKey, keyFor("self"))
	l.annotation(Guests, "")
	local.Store(&[]dataplane.NodeGuest{guest("self", "laptop", "10.244.0.9", "fd00:10:244::9")})
	l.kube.GuestsChanged()
	l.annotation(Guests, `{"laptop":["10.244.0.9","fd00:10:244::9"]}`)
	become := func(want ...dataplane.NodeGuest) {
		t.Helper()
		eventually(t, func() error {
			if diff := cmp.Diff(want, l.plane.last().Guests, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
				return fmt.Errorf("guests (-want +got):\n%s", diff)
			}
			return nil
		})
	}
	phone := guest("b", "phone", "10.244.1.9", "fd00:10:244:1::9")
	become(phone, guest("b", "tablet", "10.244.1.7"))
	l.Edit("nodes", "", "b", func(o apiserver.Object) { annotate(o, Guests, `{"phone":["10.244.1.9","fd00:10:244:1::9"]}`) })
	become(phone)

	// After a start without an API server they are known from disk.
	l.inForce()
	l.stop()
	saved, err := l.kube.load()
	if err != nil || saved == nil || len(saved.guests()) != 1 || !equalGuests(saved.guests()[0], phone) {
		t.Fatalf("the saved set %+v, %v, has not the guest %v", saved, err, phone)
	}
	l.start(func(c *Config) { c.Guests = func() []dataplane.NodeGuest { return nil } })
	l.annotation(Guests, "")
	l.Edit("nodes", "", "b", func(o apiserver.Object) { annotate(o, Guests, "") })
	become()
}

// TestGarbageInGuestsCostsGuests keeps the node itself a peer, and the guests of
// others.
func TestGarbageInGuestsCostsGuests(t *testing.T) {
	l := newLab(t)
	for name, text := range map[string]string{"b": `{"phone":17}`, "c": strings.Repeat("x", maxGuests+1), "d": `{"tv":["10.244.100.3"]}`} {
		peer := peerObject(name, fmt.Sprintf("10.244.%d.0/24", name[0]))
		annotate(peer, Guests, text)
		l.Create("nodes", peer)
	}
	l.start()
	l.plane.hasPeers(t, "b", "c", "d")
	if diff := cmp.Diff([]dataplane.NodeGuest{guest("d", "tv", "10.244.100.3")}, l.plane.last().Guests, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("guests (-want +got):\n%s", diff)
	}
	eventually(t, func() error {
		if n := l.kube.Stats().Problems[reasonBadGuests]; n != 2 {
			return fmt.Errorf("%d nodes with bad guests, want 2", n)
		}
		var said []string
		for _, event := range l.List("events") {
			said = append(said, event["message"].(string))
		}
		slices.Sort(said)
		if len(said) != 2 || !strings.HasPrefix(said[0], "node b has guests whose names are not known: bad annotation: ") {
			return fmt.Errorf("events %v", said)
		}
		return nil
	})
}

// TestTooManyGuests publishes as many as the others read.
func TestTooManyGuests(t *testing.T) {
	var many []dataplane.NodeGuest
	for i := range 4000 {
		many = append(many, guest("self", fmt.Sprintf("guest-%04d", i), fmt.Sprintf("10.244.%d.%d", i/256, i%256), "fd00:10:244::9"))
	}
	k := &Kube{cfg: Config{Guests: func() []dataplane.NodeGuest { return many }}, log: discard}
	book, err := parseGuests(k.guests())
	if err != nil || len(book) < 1000 || len(book)+k.unnamedGuests != len(many) {
		t.Errorf("%d of %d guests, %d without room, error %v", len(book), len(many), k.unnamedGuests, err)
	}
}

func TestParseGuests(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"none", "", ""},
		{"one", `{"phone":["10.244.1.9"]}`, ""},
		{"no JSON", `phone`, "invalid character"},
		{"a list", `[]`, "cannot unmarshal"},
		{"no address", `{"phone":[]}`, `guest "phone": it has 0 addresses`},
		{"three addresses", `{"phone":["10.0.0.1","10.0.0.2","10.0.0.3"]}`, "it has 3 addresses"},
		{"an empty address", `{"phone":[""]}`, "no address of a guest"},
		{"a host name", `{"phone":["phone.example"]}`, "ParseAddr"},
		{"an address with a zone", `{"phone":["fe80::1%eth0"]}`, "no address of a guest"},
		{"an IPv4 address as IPv6", `{"phone":["::ffff:10.0.0.1"]}`, "no address of a guest"},
		{"no name", `{"":["10.244.1.9"]}`, "its name has 0 bytes"},
		{"a long name", `{"` + strings.Repeat("a", maxGuestName+1) + `":["10.244.1.9"]}`, "its name has 254 bytes"},
		{"too large", strings.Repeat("[", maxGuests+1), "more than 65536 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			book, err := parseGuests(tt.text)
			if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || book != nil) {
				t.Errorf("%v, error %v, want %q", book, err, tt.want)
			}
		})
	}
}

func FuzzParseGuests(f *testing.F) {
	f.Add(`{"phone":["10.244.1.9","fd00::9"],"tablet":["10.244.1.7"]}`)
	f.Add(`{"":[null],"a":["::ffff:1.2.3.4"]}`)
	f.Add(`[]`)
	f.Add(strings.Repeat("[", maxGuests+1))
	f.Fuzz(func(t *testing.T, text string) {
		book, err := parseGuests(text)
		if err != nil {
			if book != nil {
				t.Errorf("%v with the error %v", book, err)
			}
			return
		}
		for name, addrs := range book {
			if name == "" || len(name) > maxGuestName || len(addrs) == 0 || len(addrs) > maxGuestAddrs {
				t.Errorf("guest %q with %v", name, addrs)
			}
		}
		k := &Kube{cfg: Config{Guests: func() []dataplane.NodeGuest { return book.of("self") }}, log: discard}
		again, err := parseGuests(k.guests())
		if err != nil || len(again) != len(book)-k.unnamedGuests {
			t.Errorf("%v written and read is %v, %v", book, again, err)
		}
	})
}
