//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NeedTunnel is for tests that bring up WireGuard. Where neither the kernel has
// it nor this user may open /dev/net/tun, it skips the test with reason and
// remedy; root has the means, so for root it fails the test.
func NeedTunnel(t testing.TB) {
	t.Helper()
	err := tunnelFault()
	switch {
	case err == nil:
	case os.Getenv(insideEnv) == insideAsUser:
		t.Skipf("%v: load the module wireguard, or let this user open the device (chmod 666 /dev/net/tun), or run as root", err)
	default:
		t.Fatalf("%v: load the module wireguard or the module tun", err)
	}
}

// tunnelFault says why no WireGuard device can be made, nil if one can.
var tunnelFault = sync.OnceValue(func() error { //nolint:gochecknoglobals // it does not change while the process runs
	kernel := probeWireGuard()
	if kernel == nil {
		return nil
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("no WireGuard: not in the kernel (%w), nor in userspace: open /dev/net/tun: %w", kernel, err)
	}
	return unix.Close(fd)
})

// probeWireGuard makes a device of the kernel's and removes it.
func probeWireGuard() error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	link := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "netlab-probe"}}
	if err := handle.LinkAdd(link); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return handle.LinkDel(link)
}
