package attach

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
	"github.com/zlayer/zlayer-cni/internal/linkname"
)

const (
	portSuffix   = "p"
	bridgeSuffix = "b"
	// nameTries is how many names are tried before foreign links that bear them win.
	nameTries = 8
)

// linkName is the try-th name of a link of ours; the first is 0.
func linkName(parts []string, suffix string, try int) string {
	if try > 0 {
		parts = append(slices.Clone(parts), strconv.Itoa(try))
	}
	return linkname.Name(parts, suffix)
}

func portName(k Key, try int) string {
	return linkName([]string{k.ContainerID, k.IfName}, portSuffix, try)
}

func bridgeName(segment string, try int) string {
	return linkName([]string{segment}, bridgeSuffix, try)
}

// ourName tells whether a link's name has the form of ours.
func ourName(name, suffix string) bool {
	return strings.HasPrefix(name, "zl-") && strings.HasSuffix(name, "-"+suffix)
}

// ourGroup tells whether a link group is ours: LinkGroup, or one of a batch of
// deletions.
func ourGroup(group uint32) bool { return group&0xffff0000 == LinkGroup }

// deriveMAC makes a locally administered unicast address that is always the
// same for one owner.
func deriveMAC(role, owner string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(role + " " + owner))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// bridgeMAC is the hardware address of a segment's bridge.
func bridgeMAC(segment string) net.HardwareAddr {
	return deriveMAC("bridge", linkalias.Digest(segment))
}

// validate checks what can be wrong with a Spec on any node of Linux.
func (s Spec) validate() error {
	if s.Netns == nil {
		return fmt.Errorf("a network namespace is needed: %w", ErrInvalid)
	}
	return s.validateRequest()
}

// validateRequest checks what can be wrong with a Spec on any node.
func (s Spec) validateRequest() error {
	switch {
	case s.Key.ContainerID == "" || s.Key.Digest != "":
		return fmt.Errorf("a container ID is needed: %w", ErrInvalid)
	case s.Segment == "":
		return fmt.Errorf("a segment is needed: %w", ErrInvalid)
	}
	if err := checkMTU(s.MTU, s.Addrs); err != nil {
		return err
	}
	if err := checkIfName(s.Key.IfName); err != nil {
		return err
	}
	if s.MAC != nil {
		if err := checkMAC(s.MAC); err != nil {
			return err
		}
	}
	return checkAddrs(s.Addrs)
}

// validate checks what can be wrong with a SegmentSpec on any node.
func (s SegmentSpec) validate() error {
	if s.Name == "" {
		return fmt.Errorf("a segment has a name: %w", ErrInvalid)
	}
	return checkTable(s.Table)
}

// checkTable wants a routing table that has no other use, or 0 for none.
func checkTable(table uint32) error {
	const fallback, main, local = 253, 254, 255 // the kernel's own
	switch table {
	case RouteTable, fallback, main, local:
		return fmt.Errorf("routing table %d is not for a segment: %w", table, ErrInvalid)
	default:
		return nil
	}
}

// checkMTU wants what the kernel takes for a veth with such addresses, or 0 for
// its default.
func checkMTU(mtu int, addrs []netip.Addr) error {
	const smallest, smallestIPv6, largest = 68, 1280, 65535
	least := smallest
	if slices.ContainsFunc(addrs, netip.Addr.Is6) {
		least = smallestIPv6
	}
	if mtu != 0 && (mtu < least || mtu > largest) {
		return fmt.Errorf("MTU %d is not between %d and %d: %w", mtu, least, largest, ErrInvalid)
	}
	return nil
}

// checkIfName applies the kernel's rule for interface names (dev_valid_name),
// and lo is taken.
func checkIfName(name string) error {
	bad := func(r rune) bool { return r == '/' || r == ':' || r <= ' ' || r == 0x7f }
	if name == "" || len(name) > linkname.MaxLen || name == "." || name == ".." || name == "lo" || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("interface name %q: %w", shorten(name), ErrInvalid)
	}
	return nil
}

func checkMAC(mac net.HardwareAddr) error {
	const multicast = 1
	if len(mac) != 6 || mac[0]&multicast != 0 || slices.Equal(mac, make(net.HardwareAddr, 6)) {
		return fmt.Errorf("hardware address %s: %w", mac, ErrInvalid)
	}
	return nil
}

// checkAddrs wants addresses that a sandbox can have, each once.
func checkAddrs(addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return fmt.Errorf("an address is needed: %w", ErrInvalid)
	}
	for i, addr := range addrs {
		switch {
		case !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" || !addr.IsGlobalUnicast():
			return fmt.Errorf("address %s: %w", addr, ErrInvalid)
		case slices.Contains(addrs[:i], addr):
			return fmt.Errorf("address %s twice: %w", addr, ErrInvalid)
		}
	}
	return nil
}
