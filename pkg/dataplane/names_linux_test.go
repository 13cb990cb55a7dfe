package dataplane

import (
	"errors"
	"net/netip"
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
	for _, name := range []string{"Web.Example", "web.example.", "db"} { // the case and the last dot tell nothing apart
		if err := d.RegisterName(name, one); err != nil {
			t.Error(err)
		}
	}
	if err := d.RegisterName("WEB.example", two); err != nil {
		t.Error(err)
	}
	db, web := RegisteredName{Name: "db", Addrs: []netip.Addr{one}}, RegisteredName{Name: "web.example", Addrs: []netip.Addr{one, two}}
	wantNames(t, d, "registered", db, web)
	d = restart(t, d)
	wantNames(t, d, "after a restart", db, web)
	for _, name := range []string{"Web.example.", "web.example", "unknown"} {
		if err := d.UnregisterName(name); err != nil {
			t.Error(err)
		}
	}
	wantNames(t, d, "one forgotten", db)
	if err := d.UnregisterName("db"); err != nil {
		t.Error(err)
	}
	wantNames(t, d, "all forgotten")
	wantFiles(t, d, namesDir, 0)
}

func TestNamesThatAreRefused(t *testing.T) {
	d := newPlane(t)
	addr := netip.MustParseAddr("10.200.1.7")
	for _, tc := range []struct {
		name, host string
		addr       netip.Addr
	}{
		{"no name", "", addr},
		{"a dot alone", ".", addr},
		{"254 bytes", strings.Repeat("n", 254), addr},
		{"a space", "a b", addr},
		{"no address", "web", netip.Addr{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := d.RegisterName(tc.host, tc.addr); !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v, want ErrInvalid", err)
			}
			wantNames(t, d, "afterwards")
		})
	}
}
