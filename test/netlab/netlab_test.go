//go:build linux

package netlab_test

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

func TestHostsOfAFabricReachEachOther(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	fabric := netlab.TestFabric(t, "fab")
	one, err := fabric.Host("one", netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fabric.Host("two", netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"192.0.2.2", "2001:db8::2"} {
		if out, err := one.Command(ctx, "ping", "-n", "-c", "1", "-W", "10", target).CombinedOutput(); err != nil {
			t.Errorf("ping %s: %v\n%s", target, err, out)
		}
	}
}

func TestCommandHasItsOwnWireGuardFolder(t *testing.T) {
	ns := netlab.TestNS(t, "uapi")
	if err := os.Remove("/var/run/wireguard"); err != nil { // as a teardown in the lab does
		t.Fatal(err)
	}
	out, err := ns.Command(t.Context(), "sh", "-c", "touch /var/run/wireguard/x && ls /var/run/wireguard").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "x" {
		t.Fatalf("in the command's own folder: %q, %v", out, err)
	}
	entries, err := os.ReadDir("/var/run/wireguard")
	if err != nil || len(entries) != 0 {
		t.Errorf("the lab's folder holds %v, %v", entries, err)
	}
}

func TestANameIsTakenOnce(t *testing.T) {
	ns := netlab.TestNS(t, "once")
	if second, err := netlab.NewNS(ns.Name); err == nil {
		_ = second.Close()
		t.Error("a second namespace of the same name was made")
	}
}
