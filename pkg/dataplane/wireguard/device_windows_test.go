package wireguard

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/windows"
)

// Without the libraries no device can be opened, and a library in the working
// directory is not one: anybody may have put it there.
func TestOpenSaysWhichLibraryIsMissing(t *testing.T) {
	dir, err := os.MkdirTemp("", "zl-wg") // Wine cannot remove what t.TempDir makes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) }) // behind Chdir's
	t.Chdir(dir)
	files := map[Backend][]string{Kernel: {"wireguard.dll"}, Userspace: {"wintun.dll"}, Auto: {"wireguard.dll", "wintun.dll"}}
	for _, file := range files[Auto] {
		for _, folder := range []string{programFolder(t), `C:\windows\system32`} {
			if _, err := os.Stat(filepath.Join(folder, file)); !errors.Is(err, fs.ErrNotExist) {
				t.Skipf("this machine has %s in %s", file, folder)
			}
		}
		if err := os.WriteFile(file, []byte("not a library"), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(filepath.Join(dir, file)) })
	}
	for backend, missing := range files {
		t.Run(string(backend), func(t *testing.T) {
			_, err := Open(t.Context(), Config{Name: "zl-wg", Backend: backend, PrivateKey: NewPrivateKey(testKey(t))})
			if !errors.Is(err, windows.ERROR_MOD_NOT_FOUND) {
				t.Fatalf("error %v", err)
			}
			for _, file := range missing {
				if want := "load " + file + " from " + programFolder(t) + " or System32"; !strings.Contains(err.Error(), want) {
					t.Errorf("error %v does not say %q", err, want)
				}
			}
		})
	}
	if left, err := refusals(); err != nil || len(left) > 0 {
		t.Errorf("routes left: %v, %v", left, err)
	}
}

// Without a device, packets to the cluster must not leave in clear.
func TestOpenThatFailsLeavesRefusals(t *testing.T) {
	needs(t, "InitializeIpForwardEntry", "CreateIpForwardEntry2")
	if _, err := os.Stat(filepath.Join(programFolder(t), "wintun.dll")); err == nil {
		t.Skip("this machine has wintun.dll")
	}
	t.Cleanup(func() {
		if err := removeRefusals(); err != nil {
			t.Error(err)
		}
	})
	cluster := prefixes("192.0.2.0/24")
	cfg := Config{Name: "zl-wg", Backend: Userspace, PrivateKey: NewPrivateKey(testKey(t)), Cluster: cluster}
	if _, err := Open(t.Context(), cfg); err == nil {
		t.Fatal("opened a device without wintun")
	}
	have, err := refusals()
	if err != nil || len(have) != 1 || have[0].dst != cluster[0] {
		t.Errorf("left %v, %v; want what refuses %v", have, err, cluster)
	}
}

func programFolder(t *testing.T) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(program)
}

func TestOpenOfAServiceIsUnsupported(t *testing.T) {
	_, err := Open(t.Context(), Config{Name: "zl-web", Service: "web", Table: 122001, PrivateKey: NewPrivateKey(testKey(t))})
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

// The agent may ask while the adapter is lost and could not be made again.
func TestHearSTUNWithoutAnAdapter(t *testing.T) {
	d := newDevice(Config{Name: "zl-wg", OnSTUN: func(netip.Addr, netip.AddrPort, []byte) {}})
	d.backend = Userspace
	d.free <- struct{}{}
	if err := d.HearSTUN(t.Context(), true); err != nil {
		t.Error(err)
	}
}

// A name is refused if the adapter that has it is not ours, whatever its case.
func TestCheckName(t *testing.T) {
	refusing, err := loopback()
	if err != nil {
		t.Fatal(err)
	}
	row, err := refusing.Interface()
	if err != nil {
		t.Fatal(err)
	}
	if err := checkName(row.Alias()); !errors.Is(err, errForeign) {
		t.Errorf("the loopback interface's name %q: %v", row.Alias(), err)
	}
	if err := checkName("zl-wg"); err != nil {
		t.Errorf("a free name: %v", err)
	}
}

func TestListHasNothingOfOthers(t *testing.T) {
	if found, err := List(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("found %v, %v", found, err)
	}
}

// The routes that refuse are read as they were written, and removed.
func TestRefusals(t *testing.T) {
	needs(t, "InitializeIpForwardEntry", "CreateIpForwardEntry2")
	var routes []route
	for r := range adapterRoutes(Config{Refuse: prefixes("192.0.2.0/24", "2001:db8::/64")}, nil) {
		routes = append(routes, r)
	}
	if err := addRoutes(noAdapter, routes); err != nil {
		t.Skipf("this machine does not let routes be added: %v", err)
	}
	t.Cleanup(func() {
		if err := removeRefusals(); err != nil {
			t.Error(err)
		}
	})
	byText := func(a, b route) int { return a.dst.Compare(b.dst) }
	have, err := refusals()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(routes, byText)
	slices.SortFunc(have, byText)
	if diff := cmp.Diff(routes, have, cmp.AllowUnexported(route{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	if err := RemoveRefusals(t.Context(), 0, 0); err != nil {
		t.Fatal(err)
	}
	if have, err := refusals(); err != nil || len(have) > 0 {
		t.Errorf("left %v, %v", have, err)
	}
}

// An address of this machine counts no more than none at all.
func TestTunnelMTUOfThisMachine(t *testing.T) {
	needs(t, "InitializeIpInterfaceEntry")
	without, err := TunnelMTU(nil)
	if err != nil || without < MinMTU || without > maxMTU {
		t.Errorf("MTU %d, %v", without, err)
	}
	if mtu, err := TunnelMTU(addresses("127.0.0.1")); err != nil || mtu != without {
		t.Errorf("with an address of this machine the MTU is %d, %v; without any it is %d", mtu, err, without)
	}
}

// needs skips a test where Windows' API lacks calls, as Wine's does.
func needs(t *testing.T, calls ...string) {
	t.Helper()
	for _, call := range calls {
		if err := windows.NewLazySystemDLL("iphlpapi.dll").NewProc(call).Find(); err != nil {
			t.Skipf("this is Wine: %v", err)
		}
	}
}

func TestEchoOfThisMachine(t *testing.T) {
	echo, err := newEchoSender(addresses("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := echo.send(t.Context(), netip.MustParseAddr("127.0.0.1"), time.Minute); err != nil {
		t.Errorf("no answer from this machine: %v", err)
	}
	if err := echo.send(t.Context(), netip.MustParseAddr("::1"), time.Minute); !errors.Is(err, errNotAsked) {
		t.Errorf("sent from a family without an address: %v", err)
	}
}
