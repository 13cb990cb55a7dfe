package dataplane

import (
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func wantNames(t *testing.T, d *Dataplane, when string, want ...RegisteredName) {
	t.Helper()
	if diff := cmp.Diff(want, d.Names(), cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s: names (-want +got)\n%s", when, diff)
	}
}

func TestRegisteredNames(t *testing.T) {
	d := newRunningPlane(t)
	one, two := netip.MustParseAddr("10.200.1.7"), netip.MustParseAddr("fd00:200:0:1::7")
	for _, name := range []string{"Web.Example.", "db", "cache.overlay.local", "Cache.overlay.LOCAL.", "cache"} {
		if err := d.RegisterName(name, one); err != nil {
			t.Error(err)
		}
	}
	if err := d.RegisterName("WEB.example.", two); err != nil {
		t.Error(err)
	}
	cache, db := RegisteredName{Name: "cache", Addrs: []netip.Addr{one}}, RegisteredName{Name: "db", Addrs: []netip.Addr{one}}
	web := RegisteredName{Name: "web.example.", Addrs: []netip.Addr{one, two}}
	wantNames(t, d, "registered", cache, db, web)
	d = restart(t, d)
	wantNames(t, d, "after a restart", cache, db, web)
	for _, name := range []string{"Web.example.", "web.example", "unknown", "Cache.overlay.local", "no name"} {
		if err := d.UnregisterName(name); err != nil {
			t.Error(err)
		}
	}
	wantNames(t, d, "some forgotten", db)
	if err := d.UnregisterName("db"); err != nil {
		t.Error(err)
	}
	wantNames(t, d, "all forgotten")
	wantFiles(t, d, namesDir, 0)
}

// TestNamesOfEarlierVersions has a state directory in which names have another
// form, are another zone's, or would not be taken any more.
func TestNamesOfEarlierVersions(t *testing.T) {
	d := newPlane(t)
	one, two := netip.MustParseAddr("10.200.1.7"), netip.MustParseAddr("10.200.1.8")
	store := records[RegisteredName]{filepath.Join(d.cfg.StateDir, namesDir)}
	for _, record := range []RegisteredName{
		{"db", []netip.Addr{one}}, {"web.overlay.local", []netip.Addr{one}}, {"web", []netip.Addr{two}}, {"a*b", []netip.Addr{one}},
	} {
		if err := store.put(record); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		var err error
		if d.names, err = loadNames(d.cfg.StateDir, d.naming); err == nil || !strings.Contains(err.Error(), "a*b") {
			t.Errorf("the name that is none is not told of: %v", err)
		}
		names := d.Names()
		if len(names) != 2 || names[0].Name != "db" || names[1].Name != "web" || len(names[1].Addrs) != 2 {
			t.Errorf("names: %v", names)
		}
		wantFiles(t, d, namesDir, 3)
	}
	if err := d.UnregisterName("a*b"); err != nil {
		t.Error(err)
	}
	wantFiles(t, d, namesDir, 2)
}

// TestANameHasSoManyAddresses fills a name: what was taken is there after a restart.
func TestANameHasSoManyAddresses(t *testing.T) {
	d := newPlane(t)
	addr := netip.MustParseAddr("fd00:200:1000:2000:3000:4000:5000:6000")
	full := RegisteredName{Name: strings.Repeat("n", 60)}
	for range maxAddrsOfName - 1 {
		full.Addrs, addr = append(full.Addrs, addr), addr.Next()
	}
	if err := d.names.store.put(full); err != nil {
		t.Fatal(err)
	}
	var err error
	if d.names, err = loadNames(d.cfg.StateDir, d.naming); err != nil {
		t.Fatal(err)
	}
	if err := d.RegisterName(full.Name, addr); err != nil {
		t.Error(err)
	}
	if err := d.RegisterName(full.Name, addr.Next()); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "1000 addresses") {
		t.Errorf("error %v, want ErrLimit", err)
	}
	if err := d.RegisterName(full.Name, addr); err != nil {
		t.Errorf("what it has already: %v", err)
	}
	again, err := loadNames(d.cfg.StateDir, d.naming)
	if err != nil || len(again.all) != 1 || len(again.all[0].Addrs) != maxAddrsOfName {
		t.Errorf("after a restart %d names, %v", len(again.all), err)
	}
}

func TestNamesThatAreRefused(t *testing.T) {
	d := newPlane(t)
	addr := netip.MustParseAddr("10.200.1.7")
	long := strings.Repeat(strings.Repeat("n", 60)+".", 4)
	for _, tc := range []struct {
		name, host, says string
		addr             netip.Addr
	}{
		{"no name", "", "is empty", addr},
		{"a dot alone", ".", "is empty", addr},
		{"the zone itself", "overlay.local.", "is the zone itself", addr},
		{"a label of 64 bytes", strings.Repeat("n", 64), "has 64 bytes, of at most 63", addr},
		{"254 bytes", long + strings.Repeat("n", 10) + ".", "has 254 bytes in all, of at most 253", addr},
		{"254 bytes with the zone", long[:60*4+3], "has 257 bytes in all", addr},
		{"a space", "a b", "' ' is no letter", addr},
		{"two dots", "a..b", "is empty", addr},
		{"two dots at its end", "a..", "is empty", addr},
		{"another alphabet", "b\u00fccher", "'ü' is no letter", addr},
		{"the zone's own server", "NS", "the zone's own server", addr},
		{"the zone's own server in full", "ns.overlay.local.", "the zone's own server", addr},
		{"no address", "web", "without an address", netip.Addr{}},
		{"an address of a link", "web", "without an address", netip.MustParseAddr("fe80::5%eth0")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := d.RegisterName(tc.host, tc.addr)
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want ErrInvalid and %q", err, tc.says)
			}
			wantNames(t, d, "afterwards")
			wantFiles(t, d, namesDir, 0)
		})
	}
}
