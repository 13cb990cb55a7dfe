package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// EnsureSegment makes the segment's bridge, or completes it, and returns it.
func (a *Attacher) EnsureSegment(ctx context.Context, name string) (Segment, error) {
	s, err := a.ensureSegment(ctx, name)
	if err != nil {
		return Segment{}, fmt.Errorf("ensure segment %s: %w", shorten(name), err)
	}
	ports := 0
	for _, attachment := range a.List() {
		if attachment.Bridge == s.bridge {
			ports++
		}
	}
	return s.public(ports), nil
}

func (a *Attacher) ensureSegment(ctx context.Context, name string) (segment, error) {
	if name == "" {
		return segment{}, fmt.Errorf("a segment has a name: %w", ErrInvalid)
	}
	if err := a.load(ctx); err != nil {
		return segment{}, err
	}
	slot, err := a.kernel.enter(ctx)
	if err != nil {
		return segment{}, err
	}
	defer slot.leave()
	return a.bridgeOf(slot, name)
}

// bridgeOf returns the segment's bridge, made if need be.
func (a *Attacher) bridgeOf(slot *slot, name string) (segment, error) {
	if s, found := a.table.segment(name); found {
		return s, nil
	}
	a.bridges.Lock()
	defer a.bridges.Unlock()
	if s, found := a.table.segment(name); found {
		return s, nil
	}
	return a.makeBridge(slot, name)
}

// makeBridge makes the bridge of a segment that has none. A bridge of ours by
// mark and name that nobody finished is completed; a foreign link with the
// name makes us take the next. The caller holds a.bridges or all slots.
func (a *Attacher) makeBridge(slot *slot, name string) (segment, error) {
	for try := range nameTries {
		s := segment{name: name, bridge: bridgeName(name, try), mac: deriveMAC("bridge", digestOf(name))}
		createBridge(&slot.Batch, s.bridge, s.mac)
		link, err := slot.make(s.bridge)
		made := err == nil
		if errors.Is(err, unix.EEXIST) {
			var ours bool
			if link, ours, err = unfinishedBridge(slot, s); err == nil && !ours {
				continue
			}
		}
		if err == nil {
			s.index = link.Index
			err = a.finishBridge(slot, &s)
		}
		if err != nil && made {
			removeBridge(&slot.Batch, s)
			err = errors.Join(err, slot.do())
		}
		if err != nil {
			return segment{}, fmt.Errorf("bridge %s: %w", s.bridge, err)
		}
		a.table.putSegment(s)
		return s, nil
	}
	return segment{}, fmt.Errorf("links that are not ours have the names %s to %s: %w", bridgeName(name, 0), bridgeName(name, nameTries-1), ErrConflict)
}

// unfinishedBridge tells whether the link that has the bridge's name is an
// earlier try of ours.
func unfinishedBridge(slot *slot, s segment) (rtnl.Link, bool, error) {
	link, found, err := slot.link(0, s.bridge)
	if err != nil || !found {
		return link, false, err
	}
	ours := link.Kind == kindBridge && ourGroup(link.Group) && (link.Alias == "" || link.Alias == bridgeAlias(s.name))
	return link, ours, nil
}

// finishBridge configures a bridge; what it has already stays.
func (a *Attacher) finishBridge(slot *slot, s *segment) error {
	if err := failpoint.Hit(failSegmentCreated); err != nil {
		return err
	}
	a.refuseRouterAdvertisements(s.bridge)
	noLinkLocal(&slot.Batch, s.index) // before it is up: fe80::1 is to be its only one
	setMAC(&slot.Batch, s.index, s.mac)
	if mtu := int(a.mtu.Load()); mtu > 0 {
		setMTU(&slot.Batch, s.index, mtu) // said after its birth, it no longer follows the smallest port
	}
	setUp(&slot.Batch, s.index)
	addAddress(&slot.Batch, s.index, gatewayPrefix(netip.IPv4Unspecified()), unix.RT_SCOPE_LINK)
	addRule(&slot.Batch, unix.AF_INET, s.bridge)
	if err := slot.do(); err != nil {
		return err
	}
	ipv6, err := addIPv6(slot, *s)
	if err != nil {
		return err
	}
	s.ipv6 = ipv6
	setAlias(&slot.Batch, s.index, bridgeAlias(s.name))
	if err := slot.do(); err != nil {
		return err
	}
	return failpoint.Hit(failSegmentReady)
}

// addIPv6 gives a bridge its part of IPv6, and tells whether the host has any.
func addIPv6(slot *slot, s segment) (bool, error) {
	addAddress(&slot.Batch, s.index, gatewayPrefix(netip.IPv6Unspecified()), unix.RT_SCOPE_LINK)
	if err := slot.do(); err != nil {
		if noIPv6(err) {
			err = nil
		}
		return false, err
	}
	addRule(&slot.Batch, unix.AF_INET6, s.bridge)
	return true, slot.do()
}

// removeBridge takes away a bridge and its rules, which would outlive it.
func removeBridge(b *rtnl.Batch, s segment) {
	deleteRule(b, unix.AF_INET, s.bridge)
	deleteRule(b, unix.AF_INET6, s.bridge)
	deleteLink(b, s.index)
}

// gatewayPrefix is the gateway as it stands on a bridge. The one of IPv6 brings
// the link's fe80::/64, from which sandboxes ask for their neighbours.
func gatewayPrefix(of netip.Addr) netip.Prefix {
	gateway := Gateway(of)
	if gateway.Is4() {
		return netip.PrefixFrom(gateway, 32)
	}
	return netip.PrefixFrom(gateway, 64)
}

// noIPv6 tells whether the kernel refused because IPv6 is switched off, for a
// link or altogether.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)
}

// refuseRouterAdvertisements keeps a sandbox from announcing itself to the host
// as a router (CVE-2020-13401 in other plugins). A host that forwards refuses
// them by default, so this matters where accept_ra is 2.
func (a *Attacher) refuseRouterAdvertisements(bridge string) {
	path := filepath.Join(a.cfg.Sysctls, "ipv6/conf", bridge, "accept_ra")
	err := a.host.Do(func() error {
		if value, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(value)) == "0" {
			return err
		}
		return os.WriteFile(path, []byte("0"), 0)
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Warn("bridge may accept router advertisements", "op", "segment", "iface", bridge, "err", err)
	}
}
