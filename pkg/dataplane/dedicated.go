package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/internal/linkname"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/firewall"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

const (
	// serviceSlots is how many dedicated services a node can hold: the UDP ports
	// behind the cluster's.
	serviceSlots = 256
	// firstServiceTable is the routing table of slot 0, which nobody has; see
	// attach.RouteTable.
	firstServiceTable = 122_000
)

const (
	failServiceRecorded   = "service/recorded"
	failServiceGuarded    = "service/guarded"
	failServiceUp         = "service/up"
	failServiceBlocks     = "service/blocks"
	failServiceUnplugged  = "service/closing-unplugged"
	failServiceDeviceless = "service/closing-deviceless"
	failServiceForgotten  = "service/closing-forgotten"
)

// ServiceFailpoints returns the names of the failpoints in the order in which the
// first sandbox of a dedicated service and then its last one reach them. The
// latter's begin with service/closing. A shared service has no device, and so
// misses the first, the third and the fifth.
func ServiceFailpoints() []string {
	return []string{
		failServiceRecorded, failServiceGuarded, failServiceUp,
		failServiceUnplugged, failServiceDeviceless, failServiceForgotten,
	}
}

// serviceOwner is who holds a service's own addresses. No sandbox's ID has a
// colon.
func serviceOwner(name string) string { return "service:" + name }

// serviceDevice is the name of a dedicated service's WireGuard device.
func serviceDevice(name string) string { return linkname.Name([]string{name}, "d") }

// table is the service's routing table, 0 for a shared one.
func (r serviceRecord) table() uint32 {
	if r.Mode != Dedicated {
		return 0
	}
	return firstServiceTable + uint32(r.Slot)
}

// port is the UDP port of the service's device, given the cluster's.
func (r serviceRecord) port(cluster int) int { return cluster + r.Slot }

// rule is the service as the firewall knows it, on the bridge of its segment.
func (s *service) rule(bridge string) firewall.Service {
	rule := firewall.Service{
		Bridge: bridge, Device: serviceDevice(s.record.Name),
		Own: slices.Clone(s.record.Blocks), Isolated: s.record.Isolated,
	}
	for _, peer := range s.peers {
		rule.Remote = append(rule.Remote, peer.AllowedIPs...)
	}
	return rule
}

// openDedicated makes blocks, key, segment, firewall and device of a service.
// The firewall comes before there is anything to guard.
func (d *Dataplane) openDedicated(ctx context.Context, parts *parts, s *service) error {
	if err := parts.services.enter(s); err != nil {
		return err
	}
	key, err := parts.services.store.key(s.record.Name)
	if err != nil {
		return err
	}
	parts.services.change(func() { s.key = key })
	return d.takeSlot(ctx, parts, s)
}

// enter puts a service among the others, unless its device's name, a hash of its
// own, is one of theirs.
func (s *services) enter(one *service) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	device := serviceDevice(one.record.Name)
	for name, other := range s.all {
		if other.record.Mode == Dedicated && serviceDevice(name) == device {
			return fmt.Errorf("its device would have the name %s of service %s's: %w", device, shorten(name), ErrConflict)
		}
	}
	s.all[one.record.Name] = one
	return nil
}

// takeSlot brings the service up on its port, or the first of the band that
// nobody has.
func (d *Dataplane) takeSlot(ctx context.Context, parts *parts, s *service) error {
	const lastPort = 65535
	busy := errors.New("other services have them")
	first, last := serviceRecord{Slot: 1}, serviceRecord{Slot: min(serviceSlots, lastPort-parts.port)}
	for _, slot := range append([]int{s.record.Slot}, slots(last.Slot)...) {
		if !parts.services.claimSlot(s, slot) {
			continue
		}
		err := errors.Join(parts.services.save(s.record), failpoint.Hit(failServiceRecorded))
		if err == nil {
			err = d.raise(ctx, parts, s)
		}
		if !errors.Is(err, wireguard.ErrPortInUse) {
			return err
		}
		busy = err
	}
	return fmt.Errorf("no UDP port between %d and %d is free for the service's device: %w: %w", first.port(parts.port), last.port(parts.port), busy, ErrLimit)
}

// slots are those from the first to the last.
func slots(last int) []int {
	all := make([]int, 0, max(last, 0))
	for slot := 1; slot <= last; slot++ {
		all = append(all, slot)
	}
	return all
}

// claimSlot gives the service a slot unless another has it.
func (s *services) claimSlot(one *service, slot int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.all {
		if slot == 0 || other != one && other.record.Slot == slot {
			return false
		}
	}
	one.record.Slot = slot
	return true
}

// raise brings up what a service's record says and is not up: segment, firewall
// and, for a dedicated one, device and peers. What is made before an error stays
// for closeService or the next try.
func (d *Dataplane) raise(ctx context.Context, parts *parts, s *service) error {
	raise := d.raiseShared
	if s.record.Mode == Dedicated {
		raise = d.raiseDedicated
	}
	err := raise(ctx, parts, s)
	parts.services.change(func() { s.fault = err })
	return err
}

func (d *Dataplane) raiseShared(ctx context.Context, parts *parts, s *service) error {
	if _, err := parts.attacher.EnsureSegment(ctx, attach.SegmentSpec{Name: s.record.Name, Table: s.record.table()}); err != nil {
		return err
	}
	d.listen(parts)
	return errors.Join(d.applyFirewall(ctx, parts, nil), failpoint.Hit(failServiceGuarded))
}

func (d *Dataplane) raiseDedicated(ctx context.Context, parts *parts, s *service) error {
	if err := d.raiseBlocks(parts, s); err != nil {
		return err
	}
	if err := d.raiseShared(ctx, parts, s); err != nil {
		return err
	}
	if s.device == nil {
		if err := d.raiseDevice(ctx, parts, s); err != nil {
			return err
		}
	}
	d.servicesChanged()
	return errors.Join(d.setServicePeers(ctx, parts, s), failpoint.Hit(failServiceUp))
}

// raiseBlocks gives a dedicated service its blocks and its own addresses: those
// it had, and new ones where it has none in a slice.
func (d *Dataplane) raiseBlocks(parts *parts, s *service) error {
	had, err := parts.addresses.claimBlocks(s.record.Blocks)
	if err != nil {
		d.log.Warn("service loses blocks", "op", "service", "service", shorten(s.record.Name), "err", err)
	}
	missing, err := parts.addresses.missingBlocks(had)
	if err != nil {
		return err
	}
	blocks := slices.Concat(had, missing)
	own, undo, err := parts.addresses.allocate(serviceOwner(s.record.Name), nil, blocks)
	if err != nil {
		return errors.Join(fmt.Errorf("allocate the service's own addresses: %w", err), parts.addresses.releaseBlocks(missing))
	}
	if slices.Equal(blocks, s.record.Blocks) && slices.Equal(own, s.record.Addresses) {
		return nil
	}
	record := s.record
	record.Blocks, record.Addresses = blocks, own
	if err := parts.services.save(record); err != nil {
		undo()
		return errors.Join(err, parts.addresses.releaseBlocks(missing))
	}
	parts.services.change(func() { s.record = record })
	return nil
}

// raiseDevice opens or adopts the device of a service.
func (d *Dataplane) raiseDevice(ctx context.Context, parts *parts, s *service) error {
	name := s.record.Name
	own := parts.addresses.held(serviceOwner(name))
	device, err := wireguard.Open(ctx, wireguard.Config{
		Name: serviceDevice(name), Service: name, Backend: parts.device.Backend(), PrivateKey: s.key,
		ListenPort: s.record.port(parts.port), MTU: parts.device.MTU(),
		Addresses: own, Table: int(s.record.table()), Refuse: refusedOf(s.record, own), Log: d.log,
	})
	if err != nil {
		return fmt.Errorf("open WireGuard device: %w", err)
	}
	stop := parts.background.start(func(ctx context.Context) {
		if err := device.Run(ctx); err != nil {
			d.log.Error("watch over a service's device", "op", "service", "iface", device.Name(), "err", err)
		}
	})
	parts.services.change(func() { s.device, s.stop = device, stop })
	return nil
}

// refusedOf is everything where the service is cut off from it, in the families
// it has.
func refusedOf(record serviceRecord, own []netip.Addr) []netip.Prefix {
	var refused []netip.Prefix
	if record.Isolated {
		for _, addr := range own {
			refused = append(refused, everything(addr))
		}
	}
	return refused
}

// everything is the default route's destination in the family of addr.
func everything(addr netip.Addr) netip.Prefix {
	if addr.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// mend brings up what could not be brought up before, by another port if need
// be.
func (d *Dataplane) mend(ctx context.Context, parts *parts, s *service) error {
	switch {
	case s.fault == nil:
		return nil
	case s.record.Mode == Dedicated:
		return d.takeSlot(ctx, parts, s)
	default:
		return d.raise(ctx, parts, s)
	}
}

// isolate changes whether a service without sandboxes is cut off. Its device is
// opened anew, which keeps what is in the kernel.
func (d *Dataplane) isolate(ctx context.Context, parts *parts, s *service, isolated bool) error {
	record := s.record
	record.Isolated = isolated
	if err := parts.services.save(record); err != nil {
		return err
	}
	parts.services.change(func() { s.record = record })
	if err := parts.services.lowerDevice(s); err != nil {
		return err
	}
	return d.raise(ctx, parts, s)
}

// lower ends this process's part of all services.
func (s *services) lower() error {
	var errs []error
	for _, name := range s.names() {
		unlock, err := s.turn.Lock(context.Background(), name)
		if err != nil {
			return err
		}
		if one := s.get(name); one != nil {
			errs = append(errs, s.lowerDevice(one))
		}
		unlock()
	}
	return errors.Join(errs...)
}

// lowerDevice ends this process's part of a service's device.
func (s *services) lowerDevice(one *service) error {
	if one.device == nil {
		return nil
	}
	one.stop()
	device := one.device
	s.change(func() { one.device, one.stop = nil, nil })
	return device.Close()
}

// closeDedicated removes device, routes, blocks and addresses of a service.
func (d *Dataplane) closeDedicated(ctx context.Context, parts *parts, s *service) error {
	name := s.record.Name
	if err := parts.services.lowerDevice(s); err != nil {
		return err
	}
	if err := wireguard.Remove(ctx, wireguard.Link{Name: serviceDevice(name), Service: name, Table: int(s.record.table())}); err != nil {
		return err
	}
	if err := failpoint.Hit(failServiceDeviceless); err != nil {
		return err
	}
	parts.addresses.release(serviceOwner(name))
	if err := parts.reservations.dropService(parts.addresses, s.record.Blocks); err != nil {
		return err
	}
	if err := parts.addresses.releaseBlocks(s.record.Blocks); err != nil {
		return err
	}
	parts.services.change(func() { s.record.Blocks, s.record.Addresses = nil, nil }) // they may be others' from here on
	return nil
}

// fromBlocks lets take take addresses of a service: out of its blocks, which grow
// if need be, or out of the slices. The caller has the service's turn, so no
// block goes meanwhile.
func (d *Dataplane) fromBlocks(ctx context.Context, parts *parts, s *service, take func(blocks []netip.Prefix) error) error {
	for {
		err := take(s.blocks())
		if s.record.Mode != Dedicated || !errors.Is(err, ipam.ErrExhausted) {
			return err
		}
		more, err := parts.addresses.moreBlocks(s.record.Blocks)
		if err != nil {
			return err
		}
		if err := d.setBlocks(ctx, parts, s, slices.Concat(s.record.Blocks, more)); err != nil {
			return errors.Join(err, parts.addresses.releaseBlocks(more))
		}
	}
}

// shrink returns the blocks in which a service has no address.
func (d *Dataplane) shrink(ctx context.Context, parts *parts, s *service) error {
	if s.record.Mode != Dedicated {
		return nil
	}
	keep := parts.addresses.usedBlocks(s.record.Blocks)
	if len(keep) == len(s.record.Blocks) {
		return nil
	}
	before := s.record.Blocks
	if err := d.setBlocks(ctx, parts, s, keep); err != nil {
		return err
	}
	return parts.addresses.releaseBlocks(slices.DeleteFunc(slices.Clone(before), func(b netip.Prefix) bool { return slices.Contains(keep, b) }))
}

// setBlocks writes a service's blocks down, then lets firewall and peers know.
// After an error the service has those it had.
func (d *Dataplane) setBlocks(ctx context.Context, parts *parts, s *service, blocks []netip.Prefix) error {
	before, record := s.record, s.record
	record.Blocks = blocks
	if err := parts.services.save(record); err != nil {
		return err
	}
	parts.services.change(func() { s.record = record })
	if err := errors.Join(d.applyFirewall(ctx, parts, nil), failpoint.Hit(failServiceBlocks)); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		parts.services.change(func() { s.record = before })
		return errors.Join(err, parts.services.save(before), d.applyFirewall(ctx, parts, nil))
	}
	d.servicesChanged()
	return nil
}

// blocks are what the addresses of the service's sandboxes come from, nil for any
// part of the slices.
func (s *service) blocks() []netip.Prefix {
	if s.record.Mode != Dedicated {
		return nil
	}
	return append([]netip.Prefix{}, s.record.Blocks...)
}

// blocks are those of a dedicated service, nil for every other name.
func (s *services) blocks(name string) []netip.Prefix {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.all[name]; one != nil {
		return one.blocks()
	}
	return nil
}
