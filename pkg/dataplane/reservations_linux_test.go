package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
)

// mustReserve reserves an address.
func mustReserve(t *testing.T, d *Dataplane, service, owner string) netip.Addr {
	t.Helper()
	addr, err := d.ReserveIP(t.Context(), service, owner)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// tinySlice has the data plane run with five addresses for others.
func tinySlice(t *testing.T) *Dataplane {
	t.Helper()
	d := newPlane(t)
	set := clusterOfOne()
	set.Nodes[0].Slices = prefixes("10.200.1.0/29")
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAnOwnerHasOneReservedAddress(t *testing.T) {
	d := newRunningPlane(t)
	first := mustReserve(t, d, "web", "me")
	if again := mustReserve(t, d, "web", "me"); again != first {
		t.Errorf("the same owner got %s, then %s", first, again)
	}
	seen := map[netip.Addr]string{first: "me for web"}
	for _, other := range [][2]string{
		{"web", "you"}, {"db", "me"}, {"", "me"}, {"web", ""}, {"web", ""}, // nobody is nobody each time
		{"c", "a b"}, {"b c", "a"},
	} {
		addr, name := mustReserve(t, d, other[0], other[1]), other[1]+" for "+other[0]
		if holder, taken := seen[addr]; taken {
			t.Errorf("%q got %s, which %q has", name, addr, holder)
		}
		seen[addr] = name
	}
	sandbox := request(t, "pod", "pod")
	sandbox.IPs = []netip.Addr{first}
	if _, err := d.Attach(t.Context(), sandbox); !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("a sandbox that wants a reserved address: %v, want ipam.ErrTaken", err)
	}
}

func TestReleaseOfAReservedAddress(t *testing.T) {
	d := newRunningPlane(t)
	sandbox := mustAttach(t, d, request(t, "pod", "pod")).Addrs[0]
	mine, nobodys := mustReserve(t, d, "web", "me"), mustReserve(t, d, "web", "")
	for _, tc := range []struct {
		name  string
		addr  netip.Addr
		owner string
		want  error
	}{
		{"of somebody else", mine, "you", ErrConflict},
		{"of a sandbox", sandbox, "", ErrConflict},
		{"of nobody, by somebody", nobodys, "me", ErrConflict},
		{"his own", mine, "me", nil},
		{"his own again", mine, "me", nil},
		{"of nobody", nobodys, "", nil},
		{"never reserved", netip.MustParseAddr("10.200.1.77"), "", nil},
		{"outside the slice", netip.MustParseAddr("192.0.2.1"), "", nil},
		{"the node's own", netip.MustParseAddr("10.200.1.1"), "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := d.ReleaseIP(t.Context(), tc.addr, tc.owner); !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
		})
	}
	wantFiles(t, d, reservationsDir, 0)
	if used := d.current().addresses.stats()[0].Used; used != 1 {
		t.Errorf("%d addresses are held, want the sandbox's alone", used)
	}
}

// TestForeignAddressIsNeverHandedOut releases what was never allocated, which
// elsewhere went into the pool.
func TestForeignAddressIsNeverHandedOut(t *testing.T) {
	d := tinySlice(t)
	taken := map[netip.Addr]bool{netip.MustParseAddr("10.200.1.1"): true}
	for _, foreign := range []string{"192.0.2.1", "10.200.1.0", "10.200.1.1", "10.200.1.7", "10.200.2.3"} {
		if err := d.ReleaseIP(t.Context(), netip.MustParseAddr(foreign), ""); err != nil {
			t.Error(err)
		}
	}
	for range 5 {
		addr := mustReserve(t, d, "", "")
		if taken[addr] || !netip.MustParsePrefix("10.200.1.0/29").Contains(addr) {
			t.Errorf("got %s", addr)
		}
		taken[addr] = true
	}
	if addr, err := d.ReserveIP(t.Context(), "", ""); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("got %s, %v; want ipam.ErrExhausted", addr, err)
	}
	wantFiles(t, d, reservationsDir, 5)
	for addr := range taken {
		if err := d.ReleaseIP(t.Context(), addr, ""); err != nil {
			t.Error(err)
		}
	}
	mustReserve(t, d, "", "")
}

func TestRestartKeepsReservations(t *testing.T) {
	d := newRunningPlane(t)
	if _, err := d.SetupService(t.Context(), ServiceRequest{Name: "d", Mode: Dedicated}); err != nil {
		t.Fatal(err)
	}
	early := mustReserve(t, d, "later", "me") // before that service has blocks of its own
	if _, err := d.SetupService(t.Context(), ServiceRequest{Name: "later", Mode: Dedicated}); err != nil {
		t.Fatal(err)
	}
	before := map[string]netip.Addr{"": mustReserve(t, d, "", "me"), "d": mustReserve(t, d, "d", "me"), "later": early}
	d = restart(t, d)
	used := d.current().addresses.stats()[0].Used
	for service, addr := range before {
		if again := mustReserve(t, d, service, "me"); again != addr {
			t.Errorf("service %q: reserved %s, after a restart %s", service, addr, again)
		}
	}
	if now := d.current().addresses.stats()[0].Used; now != used || used != 5 {
		t.Errorf("%d addresses are held after a restart, then %d; want three and those of two services", used, now)
	}
}

func TestReservationsOfADedicatedServiceComeOfItsBlocks(t *testing.T) {
	d := newRunningPlane(t)
	early := mustReserve(t, d, "d", "early")
	if _, err := d.SetupService(t.Context(), ServiceRequest{Name: "d", Mode: Dedicated}); err != nil {
		t.Fatal(err)
	}
	for i := range 20 { // a block has 16 addresses, one of them the service's own
		addr := mustReserve(t, d, "d", fmt.Sprint(i))
		if blocks := servicesOf(t, d)["d"].Blocks; !within(blocks, addr) {
			t.Errorf("%s is in none of the blocks %v", addr, blocks)
		}
	}
	if err := d.TeardownService(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, d, reservationsDir, 1)
	if stats := d.current().addresses.stats()[0]; stats.Used != 1 || stats.Blocked != 0 {
		t.Errorf("after the service went: %+v, want only %s used", stats, early)
	}
}

func TestReservationsNeedANodeSet(t *testing.T) {
	d := newPlane(t)
	if _, err := d.ReserveIP(t.Context(), "", "me"); !errors.Is(err, ErrNotReady) {
		t.Errorf("reserve: %v, want ErrNotReady", err)
	}
	if err := d.ReleaseIP(t.Context(), netip.MustParseAddr("10.200.1.7"), "me"); !errors.Is(err, ErrNotReady) {
		t.Errorf("release: %v, want ErrNotReady", err)
	}
}
