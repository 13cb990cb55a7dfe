package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
)

// listTries is how often a list is asked for. hcsshim looks at each object after
// it has the list, and fails with the first that is gone by then.
const listTries = 5

// EnsureSegment makes a segment's network, or changes it to the subnets that are
// asked for. A network that is not as wanted and holds sandboxes stays until the
// last of them is gone; until then Attach refuses addresses that it has no
// subnet for. Repeated, it does nothing. After an error nothing new is left.
//
// Errors: ErrInvalid, ErrConflict (another segment has one of the subnets).
func (a *hcnAttacher) EnsureSegment(ctx context.Context, spec SegmentSpec) (Segment, error) {
	s, err := a.ensureSegment(ctx, spec)
	if err != nil {
		return Segment{}, fmt.Errorf("ensure segment %s: %w", shorten(spec.Name), err)
	}
	return s, nil
}

func (a *hcnAttacher) ensureSegment(ctx context.Context, spec SegmentSpec) (Segment, error) {
	if err := spec.validate(); err != nil {
		return Segment{}, err
	}
	if err := a.load(ctx); err != nil {
		return Segment{}, err
	}
	home := a.home(spec)
	unlock, err := a.lockSegment(ctx, home)
	if err != nil {
		return Segment{}, err
	}
	defer unlock()
	if _, err := a.networkOf(ctx, SegmentSpec{Name: home, Subnets: spec.Subnets}); err != nil {
		return Segment{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.segmentLocked(spec.Name), nil
}

func (a *hcnAttacher) lockSegment(ctx context.Context, name string) (unlock func(), err error) {
	return a.keys.Lock(ctx, "segment "+name)
}

// networkOf returns the segment's network, which it makes where there is none.
// The segment's lock is held.
func (a *hcnAttacher) networkOf(ctx context.Context, spec SegmentSpec) (hcnNetwork, error) {
	a.mu.Lock()
	before, _, _ := a.state.segment(spec.Name)
	a.mu.Unlock()
	if err := a.settled(before.ID); err != nil { // before the record forgets that the segment is to go
		return hcnNetwork{}, err
	}
	s, isNew, err := a.recordSegment(spec)
	if err != nil {
		return hcnNetwork{}, err
	}
	a.mu.Lock()
	known, looked := a.actual[s.Name]
	a.mu.Unlock()
	if looked && known.differs(networkWanted(s, a.cfg.Adapter)) == "" {
		return known, nil
	}
	network, err := a.ensureNetwork(ctx, s)
	if err != nil && isNew {
		err = errors.Join(err, a.undoSegment(ctx, s))
	}
	return network, err
}

// undoSegment takes back a segment whose network could not be made; also one that HCN
// made by an id of its own, if its answer was lost. Its own time has begun.
func (a *hcnAttacher) undoSegment(ctx context.Context, s hcnSegment) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.timeout)
	defer cancel()
	if err := a.ringIf(a.removeSegment(ctx, s.Name)); err != nil {
		return err
	}
	networks, err := a.listNetworks(ctx)
	if err != nil {
		return err
	}
	return a.dropDuplicates(ctx, s.networks(networks))
}

// settled refuses a network about which HCN has not answered yet: what is there
// now may be taken away by a removal that hangs.
func (a *hcnAttacher) settled(id string) error {
	if id != "" && a.calls.busy(id) {
		return fmt.Errorf("HCN has not answered yet what was asked of network %s: %w", id, errHCNBusy)
	}
	return nil
}

// recordSegment writes down what is wanted of a segment, with the id of its
// network, before there is one.
func (a *hcnAttacher) recordSegment(spec SegmentSpec) (s hcnSegment, isNew bool, err error) {
	err = a.change(func(state hcnState) (hcnState, error) {
		before, _, found := state.segment(spec.Name)
		s, isNew = before, !found || before.Leaving
		if !found {
			s = hcnSegment{Name: spec.Name, ID: newGUID(), Subnets: a.cfg.Subnets}
		}
		s.Leaving = false
		if len(spec.Subnets) > 0 {
			s.Subnets, s.Named = spec.Subnets, true
		}
		if err := checkSubnets(s.Subnets); err != nil {
			return state, err
		}
		for _, other := range state.Segments {
			if other.Name != s.Name && overlap(other.Subnets, s.Subnets) {
				return state, fmt.Errorf("segment %s has the subnets %v, which overlap %v: %w", shorten(other.Name), other.Subnets, s.Subnets, ErrConflict)
			}
		}
		return state.withSegment(s), nil
	})
	return s, isNew, err
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(x netip.Prefix) bool { return slices.ContainsFunc(b, x.Overlaps) })
}

// ensureNetwork looks for a segment's network by its id, and by its name where
// the id is lost; makes it where there is none, and anew where it is not as
// wanted and nobody is on it.
func (a *hcnAttacher) ensureNetwork(ctx context.Context, s hcnSegment) (hcnNetwork, error) {
	networks, err := a.listNetworks(ctx)
	if err != nil {
		return hcnNetwork{}, err
	}
	wanted, networks := networkWanted(s, a.cfg.Adapter), s.networks(networks)
	for _, network := range networks {
		if err := a.settled(network.ID); err != nil {
			return hcnNetwork{}, err
		}
	}
	if len(networks) == 0 {
		return a.createNetwork(ctx, s)
	}
	slices.SortStableFunc(networks, func(x, y hcnNetwork) int { return y.rank(s.ID, wanted) - x.rank(s.ID, wanted) })
	if err := a.dropDuplicates(ctx, networks[1:]); err != nil {
		return hcnNetwork{}, err
	}
	return a.fitNetwork(ctx, s, networks[0])
}

// networks are those that are the segment's, or may be.
func (s hcnSegment) networks(all []hcnNetwork) []hcnNetwork {
	return slices.DeleteFunc(slices.Clone(all), func(n hcnNetwork) bool { return !sameID(n.ID, s.ID) && n.Name != networkName(s.Name) })
}

// rank orders the networks that may be a segment's: the one of the record, then
// one that is as wanted.
func (n hcnNetwork) rank(id string, wanted hcnNetwork) int {
	switch {
	case sameID(n.ID, id):
		return 2
	case n.differs(wanted) == "":
		return 1
	}
	return 0
}

// fitNetwork takes a network that is there for the segment's, or makes it anew.
func (a *hcnAttacher) fitNetwork(ctx context.Context, s hcnSegment, network hcnNetwork) (hcnNetwork, error) {
	why := network.differs(networkWanted(s, a.cfg.Adapter))
	if why == "" {
		return network, a.adoptNetwork(s, network)
	}
	used, err := a.networkUsed(ctx, s.Name, network.ID)
	if err != nil {
		return hcnNetwork{}, err
	}
	if used {
		a.mu.Lock()
		told := a.actual[s.Name].differs(networkWanted(s, a.cfg.Adapter)) == why
		a.mu.Unlock()
		if !told {
			a.log.Warn("network is not as wanted and in use, replacing it when its last sandbox is gone", "op", "segment", "iface", network.Name, "err", why)
		}
		return network, a.adoptNetwork(s, network)
	}
	a.log.Info("network is not as wanted, making it anew", "op", "segment", "iface", network.Name, "err", why)
	if err := a.deleteNetwork(ctx, network.ID); err != nil {
		return hcnNetwork{}, err
	}
	return a.createNetwork(ctx, s)
}

func (a *hcnAttacher) createNetwork(ctx context.Context, s hcnSegment) (hcnNetwork, error) {
	wanted := networkWanted(s, a.cfg.Adapter)
	network, err := hcnMake(ctx, a.calls, "create HCN network", s.ID,
		func() (hcnNetwork, error) { return a.api.CreateNetwork(wanted) },
		func(late hcnNetwork) { a.dropLate("network", s.ID, late.ID, a.api.DeleteNetwork) })
	if err != nil {
		return hcnNetwork{}, err
	}
	network.ID = cmp.Or(network.ID, s.ID)
	if why := network.differs(wanted); why != "" {
		return hcnNetwork{}, errors.Join(fmt.Errorf("HCN network %s %s", network.Name, why), a.deleteNetwork(ctx, network.ID))
	}
	return network, a.adoptNetwork(s, network)
}

// adoptNetwork takes the network as that of the segment: its id is written down
// where it is not the one that was asked for.
func (a *hcnAttacher) adoptNetwork(s hcnSegment, network hcnNetwork) error {
	if !sameID(s.ID, network.ID) {
		s.ID = strings.ToLower(network.ID)
		if err := a.change(func(state hcnState) (hcnState, error) { return state.withSegment(s), nil }); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.actual[s.Name] = network
	return nil
}

// dropDuplicates removes networks that have the name of another one of ours, as
// an earlier record made them. Those that somebody uses are left alone.
func (a *hcnAttacher) dropDuplicates(ctx context.Context, networks []hcnNetwork) error {
	for _, network := range networks {
		used, err := a.networkUsed(ctx, "", network.ID)
		if err != nil {
			return err
		}
		if used {
			a.log.Warn("a second network has the name of one of ours and is in use, leaving it alone", "op", "segment", "iface", network.Name)
			continue
		}
		if err := a.deleteNetwork(ctx, network.ID); err != nil {
			return err
		}
	}
	return nil
}

// networkUsed tells whether anybody is on a network, of ours or not. segment is
// the one whose attachments count, also those without an endpoint yet.
func (a *hcnAttacher) networkUsed(ctx context.Context, segment, id string) (bool, error) {
	a.mu.Lock()
	used := a.state.uses(segment)
	a.mu.Unlock()
	if used {
		return true, nil
	}
	endpoints, err := a.listEndpoints(ctx)
	return slices.ContainsFunc(endpoints, func(e hcnEndpoint) bool { return sameID(e.HostComputeNetwork, id) }), err
}

// ReleaseSegment removes a segment's network. One that does not exist is no
// error; ErrInUse says that sandboxes are on it.
func (a *hcnAttacher) ReleaseSegment(ctx context.Context, name string) error {
	if err := a.releaseSegment(ctx, name); err != nil {
		return fmt.Errorf("release segment %s: %w", shorten(name), err)
	}
	return nil
}

func (a *hcnAttacher) releaseSegment(ctx context.Context, name string) error {
	if err := a.load(ctx); err != nil {
		return err
	}
	unlock, err := a.lockSegment(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	return a.ringIf(a.removeSegment(ctx, name))
}

// ringIf wakes Run if HCN has not let go of something.
func (a *hcnAttacher) ringIf(err error) error {
	if errors.Is(err, errHCNBusy) {
		a.ring()
	}
	return err
}

// removeSegment removes a segment that has no attachments; its lock is held.
// What HCN does not let go of stays in the record, for Reconcile.
func (a *hcnAttacher) removeSegment(ctx context.Context, name string) error {
	var s hcnSegment
	err := a.change(func(state hcnState) (hcnState, error) {
		found := false
		switch s, _, found = state.segment(name); {
		case state.uses(name):
			return state, ErrInUse
		case !found: // or it is on the common network, which stays
			return state, nil
		}
		s.Leaving = true
		return state.withSegment(s), nil
	})
	if err != nil || s.ID == "" {
		return err
	}
	a.forgetNetwork(name)
	if err := a.deleteNetwork(ctx, s.ID); err != nil {
		return fmt.Errorf("%w: %w", err, errHCNBusy)
	}
	return a.change(func(state hcnState) (hcnState, error) { return state.withoutSegment(name), nil })
}

// forgetNetwork has the segment's network looked at before it is used again.
func (a *hcnAttacher) forgetNetwork(segment string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.actual, segment)
}

func (a *hcnAttacher) deleteNetwork(ctx context.Context, id string) error {
	return unlessGone(hcnDo(ctx, a.calls, "delete HCN network", id, func() error { return a.api.DeleteNetwork(id) }))
}

func (a *hcnAttacher) listNetworks(ctx context.Context) ([]hcnNetwork, error) {
	return hcnList(ctx, a.calls, "networks", a.api.Networks)
}

func (a *hcnAttacher) listEndpoints(ctx context.Context) ([]hcnEndpoint, error) {
	return hcnList(ctx, a.calls, "endpoints", a.api.Endpoints)
}

func hcnList[T any](ctx context.Context, c *hcnCalls, what string, list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		all, err := hcnCall(ctx, c, "list HCN", what, list)
		if !errors.Is(err, fs.ErrNotExist) || try == listTries {
			return all, err
		}
	}
}

// unlessGone is for removals: what is not there any more is removed.
func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
