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
	"github.com/zlayer/zlayer-cni/internal/linkalias"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach/internal/rtnl"
)

// EnsureSegment makes the segment's bridge where there is none, leads what
// comes in by it to the wanted table, and returns it. A segment that is there
// keeps its attachments, and the rule of its old table stays until that of the
// new one is there. The same again writes nothing.
//
// ReleaseSegment forgets the table. Who wants it for an Attach must not release
// the segment between EnsureSegment and that.
//
// Errors: ErrInvalid (no name, or a table that is not for segments),
// ErrConflict (links that are not ours have the bridge's names).
func (a *Attacher) EnsureSegment(ctx context.Context, spec SegmentSpec) (Segment, error) {
	s, err := a.ensureSegment(ctx, spec)
	if err != nil {
		return Segment{}, fmt.Errorf("ensure segment %s: %w", shorten(spec.Name), err)
	}
	ports := 0
	for _, attachment := range a.List() {
		if attachment.Bridge == s.bridge {
			ports++
		}
	}
	return s.public(ports), nil
}

func (a *Attacher) ensureSegment(ctx context.Context, spec SegmentSpec) (segment, error) {
	if err := spec.validate(); err != nil {
		return segment{}, err
	}
	if err := a.load(ctx); err != nil {
		return segment{}, err
	}
	slot, err := a.kernel.enter(ctx)
	if err != nil {
		return segment{}, err
	}
	defer slot.leave()
	a.bridges.Lock()
	defer a.bridges.Unlock()
	s, found := a.table.segment(spec.Name)
	switch {
	case !found:
		return a.makeBridge(slot, spec.Name, spec.Table)
	case s.table != spec.Table:
		return a.retable(slot, s, spec.Table)
	default:
		return s, nil
	}
}

// ReleaseSegment removes the segment's bridge with its rules. No such segment
// is no error. Whoever attaches or asks for the segment afterwards gets a new
// bridge. After an error the segment is as it was. When ctx ends after the
// removal has begun, it goes on, and is waited for.
//
// Errors: ErrInUse.
func (a *Attacher) ReleaseSegment(ctx context.Context, name string) error {
	if err := a.releaseSegment(ctx, name); err != nil {
		return fmt.Errorf("release segment %s: %w", shorten(name), err)
	}
	return nil
}

func (a *Attacher) releaseSegment(ctx context.Context, name string) error {
	if err := a.load(ctx); err != nil {
		return err
	}
	if err := a.releases.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for other releases: %w", err)
	}
	defer a.releases.Release(1)
	slot, err := a.kernel.enter(ctx)
	if err != nil {
		return err
	}
	defer slot.leave()
	a.bridges.Lock() // until the bridge is gone: nobody is to complete it meanwhile
	defer a.bridges.Unlock()
	s, found, err := a.table.dropSegment(name)
	if err != nil || !found || s.index == 0 { // number 0: never made
		return err
	}
	if err := a.dropBridge(ctx, slot, s); err != nil {
		a.table.putSegment(s)
		addRules(&slot.Batch, s)
		return errors.Join(err, slot.do())
	}
	return nil
}

// dropBridge removes a bridge, its rules first. Once begun it does not end with
// ctx, so that there is a bridge afterwards or none.
func (a *Attacher) dropBridge(ctx context.Context, slot *slot, s segment) error {
	deleteRules(&slot.Batch, s, segment{})
	if err := errors.Join(slot.do(), failpoint.Hit(failSegmentUnruled)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return a.deleter.delete(ctx, s.index)
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
	return a.makeBridge(slot, name, 0)
}

// makeBridge makes the bridge of a segment that has none. A bridge of ours by
// mark and name that nobody finished is completed; any other link with the
// name makes us take the next. The caller holds a.bridges or all slots.
func (a *Attacher) makeBridge(slot *slot, name string, table uint32) (segment, error) {
	for try := range nameTries {
		s := segment{name: name, bridge: bridgeName(name, try), mac: bridgeMAC(name), table: table}
		createBridge(&slot.Batch, s.bridge, s.mac)
		link, err := slot.make(s.bridge)
		made := err == nil
		if errors.Is(err, unix.EEXIST) {
			var ours bool
			if link, ours, err = a.unfinishedBridge(slot, s); err == nil && !ours {
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
	return segment{}, fmt.Errorf("other links have the names %s to %s: %w", bridgeName(name, 0), bridgeName(name, nameTries-1), ErrConflict)
}

// unfinishedBridge tells whether the link that has the bridge's name is an
// earlier try of ours, and not another segment's whose name has the same hash.
func (a *Attacher) unfinishedBridge(slot *slot, s segment) (rtnl.Link, bool, error) {
	link, found, err := slot.link(0, s.bridge)
	if err != nil || !found {
		return link, false, err
	}
	if link.Kind != kindBridge || !ourGroup(link.Group) || a.table.isBridge(link.Index) {
		return link, false, nil
	}
	name, _, aliasErr := parseBridgeAlias(link.Alias)
	return link, link.Alias == "" || aliasErr == nil && linkalias.Digest(name) == linkalias.Digest(s.name), nil
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
	addFamilyRules(&slot.Batch, *s, unix.AF_INET)
	if err := slot.do(); err != nil {
		return err
	}
	ipv6, err := addIPv6(slot, *s)
	if err != nil {
		return err
	}
	s.ipv6 = ipv6
	setAlias(&slot.Batch, s.index, bridgeAlias(s.name, s.table))
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
	addFamilyRules(&slot.Batch, s, unix.AF_INET6)
	return true, slot.do()
}

// removeBridge takes away a bridge and its rules, which would outlive it.
func removeBridge(b *rtnl.Batch, s segment) {
	deleteRules(b, s, segment{})
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
