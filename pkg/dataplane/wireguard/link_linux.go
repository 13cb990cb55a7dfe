package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// unfinishedGroup marks a wireguard link from its creation on, since its
	// alias can only follow. Nobody else uses the number: it reads "zlwg".
	unfinishedGroup = 0x7a6c7767
	// probeName is a link that exists for a moment, to see whether the kernel
	// knows WireGuard.
	probeName = "zl-wg-probe"
	// probeTries is how often that is tried while others' probes are in the way.
	probeTries = 100
	// maxTUNSegments bounds the segments of one packet from the kernel, so that
	// a read of wireguard-go's always has room for them; see batchSize.
	maxTUNSegments = batchSize
)

var (
	errNoKernel = errors.New("the kernel has no WireGuard")
	errForeign  = errors.New("exists and is not ours")
)

// findLink returns the link name, or nil if there is none.
func findLink(nl *netlink.Handle, name string) (netlink.Link, error) {
	link, err := nl.LinkByName(name)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look for link %s: %w", name, err)
	}
	return link, nil
}

// checkOurs returns an error unless found is the device that l names, finished
// or not. Of an unfinished one, its name is all that tells it.
func (l Link) checkOurs(found netlink.Link) error {
	attrs := found.Attrs()
	if unfinished(found) && attrs.Name == l.Name {
		return nil
	}
	if is, err := parseAlias(attrs.Alias); err == nil && backendOf(found) != "" && is.Of(l.Service) && !l.Unfinished {
		return nil
	}
	return fmt.Errorf("link %s (%s, alias %q) %w", attrs.Name, found.Type(), attrs.Alias, errForeign)
}

// unfinished tells a kernel device whose maker died before its alias was set. A
// TUN needs no mark: it becomes persistent only after its alias.
func unfinished(link netlink.Link) bool {
	return backendOf(link) == Kernel && link.Attrs().Alias == "" && link.Attrs().Group == unfinishedGroup
}

// backendOf returns the backend a link belongs to, or "".
func backendOf(link netlink.Link) Backend {
	switch link := link.(type) {
	case *netlink.Wireguard:
		return Kernel
	case *netlink.Tuntap:
		if link.Mode == netlink.TUNTAP_MODE_TUN {
			return Userspace
		}
	}
	return ""
}

// addKernelLink makes a wireguard link, down and without an alias. It returns
// errNoKernel if the kernel cannot.
func addKernelLink(nl *netlink.Handle, name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group = name, unfinishedGroup
	err := nl.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return errNoKernel
	case err != nil:
		return fmt.Errorf("make wireguard link %s: %w", name, err)
	}
	return nil
}

// probeKernel reports whether the kernel can make wireguard links. Devices that
// are opened at the same time share the probe.
func probeKernel(nl *netlink.Handle) (bool, error) {
	for range probeTries {
		err := addKernelLink(nl, probeName)
		switch {
		case errors.Is(err, errNoKernel):
			return false, nil
		case err != nil && !errors.Is(err, unix.EEXIST):
			return false, err
		}
		made := err == nil
		switch link, err := findLink(nl, probeName); {
		case err != nil:
			return false, err
		case link != nil && unfinished(link):
			return true, deleteLink(nl, link)
		case link != nil || made:
			return made, nil
		}
	}
	return false, fmt.Errorf("link %s comes and goes", probeName)
}

// deleteLink treats a link that is already gone as deleted.
func deleteLink(nl *netlink.Handle, link netlink.Link) error {
	if err := nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("delete link %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// finishLink gives a link what it has for its whole life. The alias comes last
// of all for a kernel device, since it says that the rest is done.
func finishLink(nl *netlink.Handle, link netlink.Link, alias string) error {
	attrs := link.Attrs()
	if attrs.Alias == alias {
		return nil
	}
	// The kernel would give the link an address of its own and solicit routers
	// through the tunnel. Without IPv6 there is nothing to turn off.
	const addrGenModeNone = 1
	if err := nl.LinkSetIP6AddrGenMode(link, addrGenModeNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("turn off address generation on %s: %w", attrs.Name, err)
	}
	if backendOf(link) == Userspace {
		if err := nl.LinkSetGSOMaxSegs(link, maxTUNSegments); err != nil {
			return fmt.Errorf("bound the segments of %s: %w", attrs.Name, err)
		}
	}
	if err := nl.LinkSetAlias(link, alias); err != nil {
		return fmt.Errorf("set alias of %s: %w", attrs.Name, err)
	}
	return nil
}

// setAddresses makes link hold exactly addrs, as /32 and /128, and reports
// whether one was missing. Link-local addresses are the kernel's and stay.
func setAddresses(nl *netlink.Handle, link netlink.Link, addrs []netip.Addr) (added bool, err error) {
	found, err := nl.AddrList(link, netlink.FAMILY_ALL)
	// While other links come and go, the list may lack some of ours. They are not added twice.
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	var have []netip.Prefix
	for i := range found {
		prefix := prefixOf(*found[i].IPNet)
		switch {
		case prefix.Addr().IsLinkLocalUnicast():
		case prefix.IsSingleIP() && slices.Contains(addrs, prefix.Addr()):
			have = append(have, prefix)
		default:
			if err := nl.AddrDel(link, &found[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return false, fmt.Errorf("remove address %v of %s: %w", prefix, link.Attrs().Name, err)
			}
		}
	}
	for _, addr := range addrs {
		prefix := netip.PrefixFrom(addr, addr.BitLen())
		if slices.Contains(have, prefix) {
			continue
		}
		wanted := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}}
		if addr.Is6() {
			wanted.Flags = unix.IFA_F_NODAD // nobody else can have it, and a tentative address is no source
		}
		switch err := nl.AddrAdd(link, wanted); {
		case err == nil:
			added = true
		case !errors.Is(err, unix.EEXIST):
			return added, fmt.Errorf("add address %v to %s: %w", prefix, link.Attrs().Name, err)
		}
	}
	return added, nil
}
