package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"

	"github.com/zlayer/zlayer-cni/internal/failpoint"
	"github.com/zlayer/zlayer-cni/internal/keylock"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/firewall"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

var (
	// ErrConflict means that a request contradicts what is set up already.
	ErrConflict = errors.New("in conflict with what is set up already")
	// ErrLimit means that this node can hold no more of what was asked for.
	ErrLimit = errors.New("this node can hold no more")
)

// Mode is how the packets of a service cross between nodes.
type Mode string

const (
	// Auto takes a service as it is on this node already, else Shared.
	Auto Mode = "auto"
	// Shared rides the cluster's device, on a segment of its own.
	Shared Mode = "shared"
	// Dedicated has a device, keys, addresses and routes of its own.
	Dedicated Mode = "dedicated"
)

// errNoDedicated says why Windows has shared services only. HCN can give a service
// a network of its own, but what its sandboxes send to another node goes by the
// host's routes, which know destinations alone.
var errNoDedicated = fmt.Errorf("a dedicated service needs a routing table of its own, and Windows has one for all, "+
	"so that its packets could take the cluster's device: %w", errors.ErrUnsupported)

// maxServiceName bounds the name of a service, in bytes.
const maxServiceName = 4096

// ServiceRequest says which service is meant, and how it is to be.
type ServiceRequest struct {
	// Name tells services apart: NAMESPACE/NAME in Kubernetes.
	Name string
	// Mode is Auto, Shared or Dedicated; empty means Auto.
	Mode Mode
	// Reach is what a dedicated service's sandboxes and the rest may say to each
	// other. Anything leaves it as it is, which is All for a new one.
	Reach Reach
}

// Reach says how far a service's sandboxes reach, and who reaches them.
type Reach int

const (
	// Anything takes whatever the service has.
	Anything Reach = iota
	// All is the whole overlay and what lies beyond.
	All
	// Itself is the service alone: it is cut off from everything else.
	Itself
)

func (r ServiceRequest) check() error {
	switch {
	case r.Name == "" || len(r.Name) > maxServiceName:
		return fmt.Errorf("the name of a service has 1 to %d bytes, not %d: %w", maxServiceName, len(r.Name), ErrInvalid)
	case r.Name == DefaultSegment:
		return fmt.Errorf("%s is the segment of sandboxes without a service: %w", r.Name, ErrInvalid)
	case r.Mode != "" && r.Mode != Auto && r.Mode != Shared && r.Mode != Dedicated:
		return fmt.Errorf("mode %q is not %s, %s or %s: %w", r.Mode, Auto, Shared, Dedicated, ErrInvalid)
	}
	return nil
}

// service is one of this node, from its first sandbox or SetupService to its
// last sandbox or TeardownService.
type service struct {
	record serviceRecord
	used   map[string]struct{} // key IDs of its sandboxes, attached or under way; changing it takes mu alone

	// What follows is a dedicated one's.
	key      wireguard.PrivateKey
	device   *wireguard.Device // nil while it is not up
	stop     func()            // ends the device's Run
	peers    []wireguard.Peer
	problems []wireguard.Problem // what was refused as a peer
	fault    error               // why the device is not up
}

// serviceRecord is what the kernel cannot hold of a service.
type serviceRecord struct {
	Name string `json:"name"`
	Mode Mode   `json:"mode"`
	// Held says that SetupService asked for it.
	Held     bool `json:"held,omitempty"`
	Isolated bool `json:"isolated,omitempty"`
	// Slot gives a dedicated service its UDP port and routing table.
	Slot   int            `json:"slot,omitempty"`
	Blocks []netip.Prefix `json:"blocks,omitempty"`
	// Addresses are a dedicated service's own, of its blocks.
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

func (r serviceRecord) recordName() string { return r.Name }

// services are those of this node.
type services struct {
	turn  keylock.Lock // serializes work on one service; taken after a sandbox's lock
	store records[serviceRecord]

	// mu guards the map and what is in the services. Changing them takes the
	// service's turn, too, so whoever has that may read without mu.
	mu  sync.Mutex
	all map[string]*service
}

func newServices(stateDir string) *services {
	return &services{store: records[serviceRecord]{filepath.Join(stateDir, servicesDir)}, all: map[string]*service{}}
}

func (s *services) get(name string) *service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[name]
}

func (s *services) put(one *service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[one.record.Name] = one
}

func (s *services) drop(one *service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, one.record.Name)
}

// mode is empty for a service that is not here.
func (s *services) mode(name string) Mode {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.all[name]; one != nil {
		return one.record.Mode
	}
	return ""
}

// names is sorted.
func (s *services) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.all))
}

// change lets f change a service whose turn the caller has.
func (s *services) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// save keeps on disk what a start cannot read from the kernel, which is nothing
// of a shared service that comes and goes with its sandboxes, unless its name is
// too long for an alias.
func (s *services) save(record serviceRecord) error {
	const longName = 64
	if record.Mode == Dedicated || record.Held || len(record.Name) > longName {
		return s.store.put(record)
	}
	return s.store.remove(record.Name)
}

// SetupService makes a service's segment and, for a dedicated one, device and
// blocks, or takes over what is there. It stays until TeardownService, also
// without sandboxes. Asking again is fine.
//
// Errors: ErrNotReady, ErrInvalid, ErrConflict for another mode than it has,
// ErrLimit, ipam.ErrExhausted. On an error nothing is left that was not there.
func (d *Dataplane) SetupService(ctx context.Context, req ServiceRequest) (ServiceStatus, error) {
	var status ServiceStatus
	err := d.withService(ctx, req.Name, func(parts *parts) error {
		s, err := d.openService(ctx, parts, req)
		if err != nil {
			return err
		}
		if err := d.hold(parts, s, true); err != nil {
			return errors.Join(err, d.closeIfUnused(ctx, parts, s))
		}
		status, _ = d.serviceStatus(ctx, parts, *s) // without what only the device tells, if that cannot be read
		return nil
	})
	if err != nil {
		return status, fmt.Errorf("set up service %s: %w", shorten(req.Name), err)
	}
	return status, nil
}

// TeardownService takes SetupService back. The service goes with its last
// sandbox, at once if it has none. One that is not there is none to remove.
func (d *Dataplane) TeardownService(ctx context.Context, name string) error {
	err := d.withService(ctx, name, func(parts *parts) error {
		s := parts.services.get(name)
		if s == nil {
			return nil
		}
		return errors.Join(d.hold(parts, s, false), d.closeIfUnused(ctx, parts, s))
	})
	if err != nil {
		return fmt.Errorf("tear down service %s: %w", shorten(name), err)
	}
	return nil
}

// withService gives f the service's turn.
func (d *Dataplane) withService(ctx context.Context, name string, f func(*parts) error) error {
	parts := d.current()
	if parts == nil {
		return fmt.Errorf("%s: %w", d.whyWaiting(), ErrNotReady)
	}
	unlock, err := parts.services.turn.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	return f(parts)
}

// eachService gives f every service in its turn, and returns all errors.
func (d *Dataplane) eachService(ctx context.Context, all *services, f func(*service) error) error {
	var errs []error
	for _, name := range all.names() {
		err := d.withService(ctx, name, func(*parts) error {
			if s := all.get(name); s != nil {
				return f(s)
			}
			return nil
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("service %s: %w", shorten(name), err))
		}
	}
	return errors.Join(errs...)
}

// hold notes, also for the next start, whether the service stays without
// sandboxes.
func (d *Dataplane) hold(parts *parts, s *service, held bool) error {
	if s.record.Held == held {
		return nil
	}
	record := s.record
	record.Held = held
	if err := parts.services.save(record); err != nil {
		return err
	}
	parts.services.change(func() { s.record = record })
	return nil
}

// join has a sandbox counted as one of a service's, which is made if it is not
// there, and gives it addresses. Joining again gives the same.
func (d *Dataplane) join(ctx context.Context, req AttachRequest) (addrs []netip.Addr, undo func(), err error) {
	id := req.Key.ID()
	err = d.withService(ctx, req.Service.Name, func(parts *parts) error {
		s, err := d.openService(ctx, parts, req.Service)
		if err != nil {
			return err
		}
		if err := d.fromBlocks(ctx, parts, s, func(blocks []netip.Prefix) (err error) {
			addrs, undo, err = parts.addresses.allocate(id, req.IPs, blocks)
			return err
		}); err != nil {
			return errors.Join(fmt.Errorf("allocate addresses: %w", err), d.closeIfUnused(ctx, parts, s))
		}
		parts.services.change(func() { s.used[id] = struct{}{} })
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("join service %s: %w", shorten(req.Service.Name), err)
	}
	return addrs, undo, nil
}

// leave takes a sandbox out of all services but the one that is kept, and returns
// what these no longer need. What of that fails, reconcile tries again.
func (d *Dataplane) leave(ctx context.Context, from *services, id, kept string) {
	for _, name := range from.without(id, kept) {
		err := d.withService(ctx, name, func(parts *parts) error {
			if s := parts.services.get(name); s != nil {
				return d.closeIfUnused(ctx, parts, s)
			}
			return nil
		})
		if err != nil {
			d.log.Warn("what a service no longer needs stays, will try again", "op", "service", "service", shorten(name), "err", err)
		}
	}
}

// without takes a sandbox out of all services but the one that is kept, and
// returns those that had it.
func (s *services) without(id, kept string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var had []string
	for name, one := range s.all {
		if _, found := one.used[id]; found && name != kept {
			delete(one.used, id)
			had = append(had, name)
		}
	}
	return had
}

// users is the number of a service's sandboxes.
func (s *services) users(one *service) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(one.used)
}

// openService returns the service, made now if it is not there. The caller has
// its turn.
func (d *Dataplane) openService(ctx context.Context, parts *parts, req ServiceRequest) (*service, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	if s := parts.services.get(req.Name); s != nil {
		return s, d.fit(ctx, parts, s, req)
	}
	s := &service{record: serviceRecord{Name: req.Name, Mode: Shared, Isolated: req.Reach == Itself}, used: map[string]struct{}{}}
	open := d.openShared
	if req.Mode == Dedicated && d.system.subnets {
		return nil, errNoDedicated
	}
	if req.Mode == Dedicated {
		s.record.Mode, open = Dedicated, d.openDedicated
	} else if req.Reach == Itself {
		return nil, fmt.Errorf("a shared service cannot be cut off from the rest, only a dedicated one can: %w", ErrInvalid)
	}
	if err := open(ctx, parts, s); err != nil {
		return nil, errors.Join(err, d.undoService(ctx, parts, s))
	}
	d.log.Info("service made", "op", "service", "service", shorten(req.Name), "mode", s.record.Mode, "isolated", s.record.Isolated)
	return s, nil
}

// fit refuses a request for a service that is otherwise here. Whether it is cut
// off may still change while it has no sandbox: a set-up does not say.
func (d *Dataplane) fit(ctx context.Context, parts *parts, s *service, req ServiceRequest) error {
	have := s.record
	isolated := req.Reach == Itself
	switch {
	case req.Mode != "" && req.Mode != Auto && req.Mode != have.Mode:
		return fmt.Errorf("it is %s on this node, and stays so as long as it has sandboxes or is set up: %w", have.Mode, ErrConflict)
	case req.Reach == Anything || have.Isolated == isolated:
		return d.mend(ctx, parts, s)
	case have.Mode == Shared:
		return fmt.Errorf("it is shared on this node, and only a dedicated one can be cut off from the rest: %w", ErrConflict)
	case parts.services.users(s) > 0:
		return fmt.Errorf("it is %s on this node, and stays so as long as it has sandboxes: %w", reachWord(have.Isolated), ErrConflict)
	}
	return d.isolate(ctx, parts, s, isolated)
}

func reachWord(isolated bool) string {
	if isolated {
		return "cut off from the rest"
	}
	return "joined to the rest"
}

// openShared makes the segment of a shared service.
func (d *Dataplane) openShared(ctx context.Context, parts *parts, s *service) error {
	parts.services.put(s)
	if err := parts.services.save(s.record); err != nil {
		return err
	}
	return d.raise(ctx, parts, s)
}

// closeIfUnused removes a service that nobody needs any more, and else the
// blocks it does not need. The caller has its turn.
func (d *Dataplane) closeIfUnused(ctx context.Context, parts *parts, s *service) error {
	if s.record.Held || parts.services.users(s) > 0 {
		return d.shrink(ctx, parts, s)
	}
	if err := d.closeService(ctx, parts, s); err != nil {
		return err
	}
	d.log.Info("service removed", "op", "service", "service", shorten(s.record.Name))
	return nil
}

// undoService removes what there is of a service that could not be made.
func (d *Dataplane) undoService(ctx context.Context, parts *parts, s *service) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := d.closeService(ctx, parts, s); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

// closeService removes a service without sandboxes, or what there is of it. Its
// bridge goes first: without one there is nothing to guard. What fails leaves the service where it is, for
// reconcile to try again or the next sandbox to mend.
func (d *Dataplane) closeService(ctx context.Context, parts *parts, s *service) error {
	err := d.dismantle(ctx, parts, s)
	if err != nil {
		parts.services.change(func() { s.fault = err })
	}
	return err
}

func (d *Dataplane) dismantle(ctx context.Context, parts *parts, s *service) error {
	if err := errors.Join(parts.attacher.ReleaseSegment(ctx, s.record.Name), failpoint.Hit(failServiceUnplugged)); err != nil {
		return err
	}
	d.listen(parts)
	if s.record.Mode == Dedicated {
		if err := d.closeDedicated(ctx, parts, s); err != nil {
			return err
		}
	}
	if err := errors.Join(parts.services.store.remove(s.record.Name), failpoint.Hit(failServiceForgotten)); err != nil {
		return err
	}
	parts.services.drop(s)
	if s.record.Mode == Dedicated {
		d.servicesChanged()
	}
	return d.applyFirewall(ctx, parts, nil)
}

// rules are the dedicated services as the firewall knows them, given the
// segments. Without one, a service cannot have sandboxes yet.
func (s *services) rules(segments []attach.Segment) []firewall.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rules []firewall.Service
	for _, one := range s.all {
		if one.record.Mode != Dedicated {
			continue
		}
		if at := segmentOf(segments, one.record.Name); at >= 0 {
			rules = append(rules, one.rule(segments[at].Bridge))
		}
	}
	slices.SortFunc(rules, func(a, b firewall.Service) int { return cmp.Compare(a.Device, b.Device) })
	return rules
}

// segmentOf is where a segment stands that may be known by its digest alone, -1
// if nowhere.
func segmentOf(segments []attach.Segment, name string) int {
	at := slices.IndexFunc(segments, func(s attach.Segment) bool { return s.Name == name })
	if at < 0 {
		at = slices.IndexFunc(segments, func(s attach.Segment) bool { return s.Named(name) })
	}
	return at
}

// shorten cuts a name that was chosen elsewhere and may be of any length.
func shorten(name string) string {
	const longest = 64
	if len(name) > longest {
		return name[:longest] + "..."
	}
	return name
}
