package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// relayField is the relays of a test: those that stand as soon as they are used,
// unless they are dead, or cannot be used at all.
type relayField struct {
	t      *testing.T
	choice *relayChoice
	all    []relay
	dead   map[string]bool
	broken map[string]bool
	open   map[string]*allocation
	missed bool
}

// newRelayField returns one with relays of nodes, in the order of preference.
func newRelayField(t *testing.T, names ...string) *relayField {
	f := &relayField{t: t, dead: map[string]bool{}, broken: map[string]bool{}, open: map[string]*allocation{}}
	for i, name := range names {
		f.all = append(f.all, relay{name: name, key: wgtypes.Key{byte(i)}})
	}
	f.choice = newRelayChoice(f.use, slog.New(slog.DiscardHandler))
	return f
}

func (f *relayField) use(_ context.Context, r relay) (*allocation, error) {
	if f.broken[r.name] {
		return nil, errors.New("no credential")
	}
	if f.open[r.name] != nil {
		f.t.Errorf("%s is used twice", r.name)
	}
	a := newAllocation(r, func() { delete(f.open, r.name) })
	close(a.done)
	f.open[r.name] = a
	if !f.dead[r.name] {
		a.setDown(time.Time{})
	}
	return a, nil
}

// kill has a relay go away, or come back.
func (f *relayField) kill(name string, dead bool) {
	f.dead[name] = dead
	if a := f.open[name]; a != nil && dead {
		a.setDown(time.Now())
	} else if a != nil {
		a.setDown(time.Time{})
	}
}

// during lets time pass, in which the choice is looked at as often as it is.
func (f *relayField) during(d time.Duration) {
	for range d / relayLook {
		f.choice.step(f.t.Context(), f.all, f.missed)
		time.Sleep(relayLook)
	}
}

// talk has packets go by a relay for a time, and come if it is heard.
func (f *relayField) talk(name string, d time.Duration, heard bool) {
	for range d / relayLook {
		if a := f.open[name]; a != nil {
			a.send()
			if heard {
				a.hear()
			}
		}
		f.during(relayLook)
	}
}

// want wants these to be used, and no others.
func (f *relayField) want(when string, names ...string) {
	f.t.Helper()
	if got := strings.Join(slices.Sorted(maps.Keys(f.open)), " "); got != strings.Join(names, " ") {
		f.t.Errorf("%s: %q are used, want %q", when, got, names)
	}
}

func TestRelayChoice(t *testing.T) {
	for _, test := range []struct {
		name   string
		relays []string
		play   func(f *relayField)
	}{
		{"the best one", []string{"a", "b"}, func(f *relayField) {
			f.during(time.Hour)
			f.want("in the end", "a")
		}},
		{"none is needed any more", []string{"a"}, func(f *relayField) {
			f.during(time.Minute)
			f.all = nil
			f.during(relayLook)
			f.want("in the end")
		}},
		{"one that cannot be used keeps nobody from the next", []string{"a", "b"}, func(f *relayField) {
			f.broken["a"] = true
			f.during(relayLook)
			f.want("at once", "b")
			f.during(time.Hour)
			f.want("in the end", "b")
		}},
		{"another takes the place of one that is away", []string{"a", "b"}, func(f *relayField) {
			f.during(time.Minute)
			f.kill("a", true)
			f.during(relayPatience - relayLook)
			f.want("for a while", "a")
			f.during(4 * relayLook)
			f.want("then", "b")
			f.kill("a", false)
			f.during(time.Hour)
			f.want("when it is back", "b")
		}},
		{"one that comes back in time stays", []string{"a", "b"}, func(f *relayField) {
			f.during(time.Minute)
			f.kill("a", true)
			f.during(relayPatience - relayLook)
			f.kill("a", false)
			f.during(time.Minute)
			f.want("in the end", "a")
		}},
		{"one that comes back while the next is dead stays", []string{"a", "b"}, func(f *relayField) {
			f.during(time.Minute)
			f.kill("b", true)
			f.kill("a", true)
			f.during(relayPatience + 5*relayLook)
			f.want("both", "a", "b")
			f.kill("a", false)
			f.during(2 * relayLook)
			f.want("in the end", "a")
		}},
		{"the third if two are dead", []string{"a", "b", "c"}, func(f *relayField) {
			f.kill("a", true)
			f.kill("b", true)
			f.during(2*relayPatience + 5*relayLook)
			f.want("in the end", "c")
		}},
		{"the only one stays", []string{"a"}, func(f *relayField) {
			f.kill("a", true)
			f.during(time.Hour)
			f.want("in the end", "a")
		}},
		{"nothing comes by it", []string{"a", "b"}, func(f *relayField) {
			f.missed = true
			f.talk("a", relayMute+2*relayLook, false)
			f.during(2 * relayLook)
			f.want("in the end", "b")
		}},
		{"nothing comes by it, and nobody is missed", []string{"a", "b"}, func(f *relayField) {
			f.talk("a", time.Hour, false)
			f.want("in the end", "a")
		}},
		{"something comes by it", []string{"a", "b"}, func(f *relayField) {
			f.missed = true
			f.talk("a", time.Hour, true)
			f.want("in the end", "a")
		}},
		{"one that is not offered any more goes when the next is known", []string{"a", "b"}, func(f *relayField) {
			f.during(time.Minute)
			f.all = f.all[1:]
			f.during(relayPatience + 2*relayLook)
			f.want("for a while", "a", "b")
			f.during(relayLinger)
			f.want("in the end", "b")
		}},
		{"one that is offered again in time stays", []string{"a", "b"}, func(f *relayField) {
			f.during(time.Minute)
			all := f.all
			f.all = all[1:]
			f.during(relayPatience - relayLook)
			f.all = all
			f.during(time.Minute)
			f.want("in the end", "a")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newRelayField(t, test.relays...)
				test.play(f)
				f.choice.end()
				f.want("after the end")
			})
		})
	}
}

// TestRelaysThatAreOfNoUseAreTriedEverMoreSeldom: each change costs new candidates.
func TestRelaysThatAreOfNoUseAreTriedEverMoreSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRelayField(t, "a", "b")
		f.missed = true
		changes, last := 0, ""
		for began := time.Now(); time.Since(began) < 4*time.Hour; {
			for name := range f.open {
				if f.choice.current != nil && f.choice.current.relay.name != last {
					last = f.choice.current.relay.name
					changes++
				}
				f.talk(name, relayLook, false)
			}
			f.during(relayLook)
		}
		if changes < 4 || changes > 24 {
			t.Errorf("%d changes in 4 hours", changes)
		}
		f.choice.end()
	})
}

func TestNodesSpreadOverRelays(t *testing.T) {
	peers := []relay{{name: "a"}, {name: "b"}, {name: "c"}}
	servers := []TURNServer{{Address: "turn.example:3478"}, {Address: "192.0.2.9:3478"}}
	first := map[string]int{}
	for i := range 300 {
		own := "node-" + strings.Repeat("x", i)
		all := relaysOf(own, peers, servers)
		again := relaysOf(own, []relay{peers[2], peers[0], peers[1]}, servers)
		names := func(all []relay) (names []string) {
			for _, r := range all {
				names = append(names, r.name)
			}
			return names
		}
		if diff := cmp.Diff(names(all), names(again)); diff != "" {
			t.Fatalf("the order depends on that of the peers (-one +other)\n%s", diff)
		}
		if len(all) != 5 || all[3].turn != &servers[0] || all[4].turn != &servers[1] {
			t.Fatalf("relays %v, want the servers last, as configured", names(all))
		}
		first[all[0].name]++
	}
	for _, peer := range peers {
		if first[peer.name] < 50 {
			t.Errorf("%d of 300 nodes would use %s first", first[peer.name], peer.name)
		}
	}
}
