package wireguard

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Another GUID would be another adapter to Windows, without the settings of the one
// before, after every update of the daemon.
func TestAdapterGUID(t *testing.T) {
	guid := adapterGUID("zl-wg")
	if got, want := hex.EncodeToString(guid[:]), "ab38a5e6bbf8808e901c90a91ab95128"; got != want {
		t.Errorf("GUID of zl-wg is %s, want %s", got, want)
	}
	if guid == adapterGUID("zl-wg2") {
		t.Error("another name has the same GUID")
	}
	if guid[6]>>4 != 8 || guid[8]>>6 != 2 {
		t.Errorf("GUID %x is not of RFC 9562's version 8", guid)
	}
}

func TestAdapterRoutes(t *testing.T) {
	through := func(dst string) route { return route{dst: netip.MustParsePrefix(dst), metric: peerMetric} }
	refused := func(dst string) route {
		return route{dst: netip.MustParsePrefix(dst), metric: refuseMetric, unreachable: true}
	}
	for _, c := range []struct {
		name    string
		refuse  []netip.Prefix
		cluster []netip.Prefix
		peers   []Peer
		want    []route
	}{
		{name: "nothing"},
		{name: "own slices", refuse: prefixes("10.200.1.0/24", "fd00:200:0:1::/64"), want: []route{refused("10.200.1.0/24"), refused("fd00:200:0:1::/64")}},
		{name: "a peer, with what refuses behind it", peers: []Peer{planned(2)}, want: []route{
			through("10.200.2.0/24"), refused("10.200.2.0/24"), through("fd00:200:0:2::/64"), refused("fd00:200:0:2::/64"),
		}},
		{name: "what is refused is no peer's", refuse: prefixes("10.200.2.0/24"), peers: []Peer{planned(2)}, want: []route{
			refused("10.200.2.0/24"), through("fd00:200:0:2::/64"), refused("fd00:200:0:2::/64"),
		}},
		{name: "the cluster behind a peer", cluster: prefixes("10.200.9.9/16"), peers: []Peer{planned(2)}, want: []route{
			refused("10.200.0.0/16"), through("10.200.2.0/24"), refused("10.200.2.0/24"), through("fd00:200:0:2::/64"), refused("fd00:200:0:2::/64"),
		}},
		{name: "a cluster that is one peer's slice", cluster: prefixes("10.200.2.0/24"), peers: []Peer{planned(2)}, want: []route{
			through("10.200.2.0/24"), refused("10.200.2.0/24"), through("fd00:200:0:2::/64"), refused("fd00:200:0:2::/64"),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := map[route]bool{}
			for _, r := range c.want {
				want[r] = true
			}
			got := adapterRoutes(Config{Refuse: c.refuse, Cluster: c.cluster}, c.peers)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
			if del, add := diffRoutes(c.want, got); len(del)+len(add) > 0 {
				t.Errorf("routes that are there already: delete %v, add %v", del, add)
			}
		})
	}
}

// fakeTable is a routing table. Of the routes to broken it adds none, and after each
// step it looks whether an address is refused where no other route is.
type fakeTable struct {
	routes map[route]bool
	broken netip.Prefix
	must   []netip.Addr // have to be refused all the time
	open   []string     // when they were not
}

func (f *fakeTable) add(routes []route) (err error) {
	for _, r := range routes {
		if r.dst == f.broken {
			err = errors.New("no room")
			continue
		}
		f.routes[r] = true
		f.look("add", r)
	}
	return err
}

func (f *fakeTable) remove(routes []route) error {
	for _, r := range routes {
		delete(f.routes, r)
		f.look("remove", r)
	}
	return nil
}

func (f *fakeTable) look(what string, at route) {
	for _, addr := range f.must {
		refused := false
		for r := range f.routes {
			refused = refused || r.unreachable && r.dst.Contains(addr)
		}
		if !refused {
			f.open = append(f.open, fmt.Sprintf("%s %v: nothing refuses %v", what, at.dst, addr))
		}
	}
}

// Whatever changes, what has been refused and shall be is refused in between, too.
func TestChangeRoutesIsNeverWithoutRefusal(t *testing.T) {
	peers := func(texts ...string) map[route]bool {
		return adapterRoutes(Config{}, []Peer{{AllowedIPs: prefixes(texts...)}})
	}
	for _, c := range []struct {
		name         string
		before, want map[route]bool
		must         string
		broken       string
		keep, failed bool
	}{
		{name: "new", want: peers("10.200.2.0/24")},
		{name: "gone", before: peers("10.200.2.0/24", "10.200.3.0/24"), want: peers("10.200.3.0/24")},
		{name: "divided", before: peers("10.200.2.0/24"), want: peers("10.200.2.0/25", "10.200.2.128/25"), must: "10.200.2.1"},
		{name: "made one", before: peers("10.200.2.0/25", "10.200.2.128/25"), want: peers("10.200.2.0/24"), must: "10.200.2.129"},
		{name: "divided, without success", before: peers("10.200.2.0/24"), want: peers("10.200.2.0/25", "10.200.2.128/25"), must: "10.200.2.1", broken: "10.200.2.0/25", failed: true},
		{name: "before the peers are known", before: peers("10.200.2.0/24"), want: map[route]bool{}, must: "10.200.2.1", keep: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := &fakeTable{routes: maps.Clone(c.before)}
			if table.routes == nil {
				table.routes = map[route]bool{}
			}
			if c.must != "" {
				table.must = addresses(c.must)
			}
			if c.broken != "" {
				table.broken = netip.MustParsePrefix(c.broken)
			}
			err := changeRoutes(table, slices.Collect(maps.Keys(c.before)), c.want, c.keep)
			if (err != nil) != c.failed {
				t.Errorf("error %v", err)
			}
			if len(table.open) > 0 {
				t.Error(table.open)
			}
			if diff := cmp.Diff(c.want, table.routes); diff != "" && !c.failed && !c.keep {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
		})
	}
}

// A route by the adapter is there only with the one that refuses behind it.
func TestChangeRoutesRefusesFirst(t *testing.T) {
	wanted := adapterRoutes(Config{}, []Peer{planned(2), planned(3)})
	_, add := diffRoutes(nil, wanted)
	del, _ := diffRoutes(add, nil)
	half := len(wanted) / 2
	for i := range half {
		if !add[i].unreachable || !del[half+i].unreachable {
			t.Errorf("place %d: added %v, deleted %v", i, add[i], del[half+i])
		}
	}
	first := refusing(wanted)
	if len(first) != half {
		t.Errorf("%d of %d routes refuse", len(first), len(wanted))
	}
	for r := range first {
		if !r.unreachable {
			t.Errorf("%v does not refuse", r)
		}
	}
}

func TestDiffAddresses(t *testing.T) {
	for _, c := range []struct {
		name     string
		have     []netip.Prefix
		want     []netip.Addr
		del, add []netip.Prefix
	}{
		{name: "new", want: addresses("10.200.1.1", "fd00:200:0:1::1"), add: prefixes("10.200.1.1/32", "fd00:200:0:1::1/128")},
		{name: "as it should be", have: prefixes("10.200.1.1/32", "fd00:200:0:1::1/128"), want: addresses("10.200.1.1", "fd00:200:0:1::1")},
		{name: "link-local stays", have: prefixes("fe80::1/64", "169.254.3.4/16", "10.200.1.1/32"), want: addresses("10.200.1.1")},
		{name: "moved", have: prefixes("10.200.9.1/32"), want: addresses("10.200.1.1"), del: prefixes("10.200.9.1/32"), add: prefixes("10.200.1.1/32")},
		{name: "a wider prefix is none of ours", have: []netip.Prefix{netip.MustParsePrefix("10.200.1.1/24")}, want: addresses("10.200.1.1"),
			del: []netip.Prefix{netip.MustParsePrefix("10.200.1.1/24")}, add: prefixes("10.200.1.1/32")},
		{name: "none any more", have: prefixes("10.200.1.1/32"), del: prefixes("10.200.1.1/32")},
	} {
		t.Run(c.name, func(t *testing.T) {
			del, add := diffAddresses(c.have, c.want)
			if !slices.Equal(del, c.del) || !slices.Equal(add, c.add) {
				t.Errorf("delete %v and add %v, want %v and %v", del, add, c.del, c.add)
			}
		})
	}
}

func addresses(texts ...string) []netip.Addr {
	addrs := make([]netip.Addr, len(texts))
	for i, text := range texts {
		addrs[i] = netip.MustParseAddr(text)
	}
	return addrs
}

func TestMissingLibrarySaysWhichAndWhere(t *testing.T) {
	cause := errors.New("not found")
	err := wireguardNT().missing(`C:\zlayer`, cause)
	if want := `load wireguard.dll from C:\zlayer or System32 (to be had from https://download.wireguard.com/wireguard-nt/): not found`; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if !errors.Is(err, cause) {
		t.Errorf("%v does not wrap its cause", err)
	}
	if err := wintunLibrary().missing("", cause); !strings.Contains(err.Error(), "wintun.dll from the program's folder or") {
		t.Errorf("without a folder: %v", err)
	}
}

// A device may be asked to hear STUN while it is lost, and has no wireguard-go.
func TestWayOfSTUN(t *testing.T) {
	wants := Config{OnSTUN: func(netip.Addr, netip.AddrPort, []byte) {}}
	for _, c := range []struct {
		name        string
		cfg         Config
		backend     Backend
		made, hears bool
		want        stunWay
	}{
		{name: "of no interest", backend: Userspace, made: true, hears: true},
		{name: "wireguard-go", cfg: wants, backend: Userspace, made: true, want: stunByBind},
		{name: "wireguard-go, lost", cfg: wants, backend: Userspace, hears: true},
		{name: "driver", cfg: wants, backend: Kernel},
		{name: "driver, asked for", cfg: wants, backend: Kernel, hears: true, want: stunUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := wayOfSTUN(c.cfg, c.backend, c.made, c.hears); got != c.want {
				t.Errorf("way %v, want %v", got, c.want)
			}
		})
	}
}

// Windows has room for some 2000 callbacks in a process.
func TestDriverLogMakesOneCallback(t *testing.T) {
	var driver driverLog
	var say func(level uint, line string)
	made := uintptr(0)
	var last bytes.Buffer
	for range 3000 {
		last.Reset()
		log := slog.New(slog.NewTextHandler(&last, nil))
		got := driver.to(log, "wintun.dll", func(fn func(uint, string)) uintptr {
			made++
			say = fn
			return made
		})
		if got != 1 {
			t.Fatalf("callback %d", got)
		}
	}
	key := testKey(t)
	say(1, "key "+key.String()+" is bad")
	if got := last.String(); !strings.Contains(got, "level=WARN msg=driver op=wintun.dll") || strings.Contains(got, key.String()) {
		t.Errorf("logged %q", got)
	}
}

func TestDriverLevel(t *testing.T) {
	for level, want := range map[uint]slog.Level{0: slog.LevelDebug, 1: slog.LevelWarn, 2: slog.LevelWarn} {
		if got := driverLevel(level); got != want {
			t.Errorf("level %d is %v, want %v", level, got, want)
		}
	}
}
