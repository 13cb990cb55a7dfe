package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/firewall"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// adopt takes over what an earlier run left, in the kernel and on disk, and
// writes the firewall for it before anything new is attached.
func (d *Dataplane) adopt(ctx context.Context, made *parts) (err error) {
	if made.attacher, err = d.system.newAttacher(d.attachConfig(made)); err != nil {
		return fmt.Errorf("open attacher: %w", err)
	}
	attached, err := made.attacher.Recover(ctx)
	if err != nil {
		return fmt.Errorf("adopt attachments: %w", err)
	}
	d.adoptServices(made, attached)
	d.planServices(made)
	d.adoptGuests(made)
	pins := []firewall.Pin{}
	for _, a := range attached {
		pins = append(pins, pinOf(a))
		if err := made.addresses.adopt(a.Key.ID(), a.Addrs, made.services.blocks(made.services.nameOf(a))); err != nil {
			d.log.Warn("attachment keeps addresses that no pool of this node covers", "op", "adopt", "sandbox", a.Key.String(), "err", err)
		}
	}
	if err := made.reservations.adopt(made.addresses, made.services.blocks); err != nil {
		d.log.Warn("reserved addresses not adopted", "op", "adopt", "err", err)
	}
	if _, err := made.attacher.EnsureSegment(ctx, attach.SegmentSpec{Name: DefaultSegment}); err != nil {
		return fmt.Errorf("make segment %s: %w", DefaultSegment, err)
	}
	if err := d.forward(made); err != nil {
		return err
	}
	if err := d.applyFirewall(ctx, made, pins); err != nil {
		return err
	}
	d.mu.Lock()
	peers := d.peers
	d.mu.Unlock()
	if err := d.setPeers(ctx, made, peers); err != nil {
		return err
	}
	d.log.Info("adopted what the kernel holds", "op", "adopt", "attachments", len(attached))
	return nil
}

// adoptServices takes back the services that earlier runs wrote down, and those
// whose sandboxes are there. Blocks come before the addresses in them.
func (d *Dataplane) adoptServices(made *parts, attached []attach.Attachment) {
	recorded, err := made.services.store.load()
	if err != nil {
		d.log.Warn("services not read", "op", "adopt", "err", err)
	}
	for _, record := range recorded {
		made.services.adopt(record)
	}
	for _, segment := range made.attacher.Segments() {
		if segment.Name != DefaultSegment && !slices.ContainsFunc(recorded, func(r serviceRecord) bool { return segment.Named(r.Name) }) {
			made.services.adopt(recordOf(segment, attached, made.slices))
		}
	}
	if err := made.services.store.removeStrayKeys(made.services.names()); err != nil {
		d.log.Warn("keys of services that were never made stay", "op", "adopt", "err", err)
	}
	for _, name := range made.services.names() {
		s := made.services.get(name)
		for _, a := range attached {
			if a.OfSegment(name) {
				s.used[a.Key.ID()] = struct{}{}
			}
		}
		if s.record.Mode != Dedicated {
			continue
		}
		s.key, err = made.services.store.key(name)
		claimed, claiming := made.addresses.claimBlocks(s.record.Blocks)
		s.record.Blocks = claimed
		if err := errors.Join(err, claiming, made.addresses.adopt(serviceOwner(name), s.record.Addresses, s.blocks())); err != nil {
			d.log.Warn("service adopted in part", "op", "adopt", "service", shorten(name), "err", err)
		}
	}
}

// adopt enters a service that is still to be brought up.
func (s *services) adopt(record serviceRecord) {
	s.put(&service{record: record, used: map[string]struct{}{}, fault: errors.New("it is not brought up yet")})
}

// nameOf is the name of the attachment's service, of which its alias may have
// kept only the digest; empty for none.
func (s *services) nameOf(a attach.Attachment) string {
	for _, name := range s.names() {
		if a.OfSegment(name) {
			return name
		}
	}
	return ""
}

// recordOf is what can be told of a service of which nothing is on disk. One
// that had a routing table is dedicated; as nobody knows what it may reach, it
// is cut off.
func recordOf(segment attach.Segment, attached []attach.Attachment, own []netip.Prefix) serviceRecord {
	record := serviceRecord{Name: segment.Name, Mode: Shared}
	if segment.Table == 0 {
		return record
	}
	record.Mode, record.Isolated, record.Slot = Dedicated, true, int(segment.Table)-firstServiceTable
	for _, a := range attached {
		if a.Segment != segment.Name {
			continue
		}
		for _, addr := range a.Addrs {
			for _, slice := range own {
				block := netip.PrefixFrom(addr, blockBits(slice)).Masked()
				if slice.Contains(addr) && !slices.Contains(record.Blocks, block) {
					record.Blocks = append(record.Blocks, block)
				}
			}
		}
	}
	return record
}

// adoptGuests claims the addresses of the guests, and drops those whose addresses
// this node has no more.
func (d *Dataplane) adoptGuests(made *parts) {
	for _, record := range d.guests.list() {
		if err := made.addresses.adopt(guestOwner(record.Name), record.Addresses, made.addresses.apart); err != nil {
			made.addresses.release(guestOwner(record.Name))
			d.guests.drop(record.Name)
			d.log.Warn("guest not adopted, add it again", "op", "adopt", "guest", record.Name, "err", err)
		}
	}
}

// raiseServices brings up the services that were adopted, and removes those that
// nobody needs and devices that belong to none. One that fails costs only
// itself and is tried again.
func (d *Dataplane) raiseServices(ctx context.Context, parts *parts) error {
	return errors.Join(d.mendServices(ctx, parts), d.removeStrayDevices(ctx, parts))
}

// removeStrayDevices removes devices of services that this node does not host.
func (d *Dataplane) removeStrayDevices(ctx context.Context, parts *parts) error {
	found, err := wireguard.List(ctx)
	if err != nil {
		return err
	}
	kept := map[string]bool{deviceName(): true}
	for _, name := range parts.services.names() {
		kept[serviceDevice(name)] = true
	}
	var errs []error
	for _, one := range found {
		if !kept[one.Name] {
			errs = append(errs, wireguard.Remove(ctx, one))
		}
	}
	return errors.Join(errs...)
}

// mendServices brings up what is not up, and removes what nobody needs.
func (d *Dataplane) mendServices(ctx context.Context, parts *parts) error {
	return d.eachService(ctx, parts.services, func(s *service) error {
		if !s.record.Held && parts.services.users(s) == 0 {
			return d.closeIfUnused(ctx, parts, s)
		}
		return d.mend(ctx, parts, s)
	})
}
