package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Recover reads the record, removes what an earlier run did not finish, mends
// the rest, and returns it. Every other method does it first if nobody has. What
// HCN does not let go of is no error: Run tries again.
func (a *hcnAttacher) Recover(ctx context.Context) ([]Attachment, error) {
	if err := a.adopt(ctx); err != nil {
		return nil, fmt.Errorf("recover attachments: %w", err)
	}
	return a.List(), nil
}

func (a *hcnAttacher) adopt(ctx context.Context) error {
	if err := a.read(); err != nil {
		return err
	}
	return a.reconcile(ctx)
}

// read takes over the record once. Segments without subnets of their own get
// those that are configured now.
func (a *hcnAttacher) read() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.loaded {
		return nil
	}
	state, err := readState(a.cfg.State)
	if err != nil {
		return err
	}
	for i := range state.Segments {
		if s := &state.Segments[i]; !s.Named && len(a.cfg.Subnets) > 0 {
			s.Subnets = a.cfg.Subnets
		}
	}
	a.state, a.loaded = state, true
	return nil
}

// Reconcile compares everything of ours with HCN and mends the differences:
// networks that are gone or not as wanted are made anew where nobody is on them,
// endpoints are made anew where they are gone and go back into their namespaces,
// and what is unfinished or nobody's is removed. Attachments whose namespace is
// gone are given to Run's callback.
func (a *hcnAttacher) Reconcile(ctx context.Context) error {
	if err := a.load(ctx); err != nil {
		return err
	}
	if err := a.reconcile(ctx); err != nil {
		return fmt.Errorf("reconcile attachments: %w", err)
	}
	return nil
}

func (a *hcnAttacher) reconcile(ctx context.Context) error {
	a.mu.Lock()
	attachments, segments := slices.Clone(a.state.Attachments), slices.Clone(a.state.Segments)
	a.told, a.telling = a.telling, map[string]string{}
	a.mu.Unlock()
	networks, err := a.listNetworks(ctx)
	errs := []error{err}
	for _, s := range segments {
		errs = append(errs, a.reconcileSegment(ctx, s.Name, networks))
	}
	endpoints, err := a.listEndpoints(ctx) // after the record was looked at: what is attached by then is there, or gone
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, r := range attachments {
		errs = append(errs, a.reconcileAttachment(ctx, r, endpoints))
	}
	errs = append(errs, a.removeStrays(ctx, endpoints, nil))
	return errors.Join(errs...)
}

// reconcileSegment looks at one segment. networks is what HCN had a moment ago: it
// tells what is as wanted, and never that a network is not there.
func (a *hcnAttacher) reconcileSegment(ctx context.Context, name string, networks []hcnNetwork) error {
	unlock, err := a.lockSegment(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	a.mu.Lock()
	s, _, found := a.state.segment(name)
	a.mu.Unlock()
	switch {
	case !found:
		return nil
	case s.Leaving || a.superseded(s):
		if err := a.removeSegment(ctx, name); !errors.Is(err, ErrInUse) {
			a.tellBusy(err, "iface", networkName(name))
			return nil
		}
	}
	own := s.networks(networks)
	if len(own) == 1 && sameID(own[0].ID, s.ID) && own[0].differs(networkWanted(s, a.cfg.Adapter)) == "" && a.settled(s.ID) == nil {
		return a.adoptNetwork(s, own[0])
	}
	_, err = a.ensureNetwork(ctx, s)
	return err
}

// superseded tells whether a segment has a network of its own by a configuration
// without a common one. It has the common one's subnets, so it is in its way.
func (a *hcnAttacher) superseded(s hcnSegment) bool {
	return a.cfg.Common != "" && s.Name != a.cfg.Common && !s.Named
}

// reconcileAttachment looks at one attachment unless it has changed since, or
// somebody is at it: they leave it whole or leaving.
func (a *hcnAttacher) reconcileAttachment(ctx context.Context, seen hcnAttachment, endpoints []hcnEndpoint) error {
	if a.keys.Busy(seen.Key.ID()) {
		return nil
	}
	unlock, err := a.keys.Lock(ctx, seen.Key.ID())
	if err != nil {
		return err
	}
	defer unlock()
	a.mu.Lock()
	r, _, found := a.state.attachment(seen.Key.ID())
	a.mu.Unlock()
	if !found || r.Endpoint != seen.Endpoint || r.State != seen.State {
		return nil
	}
	if r.State == hcnAttached {
		mended, whole, err := a.mend(ctx, r, endpoints)
		if whole || err != nil {
			return err
		}
		r = mended
		a.log.Info("namespace is gone, removing the rest", "op", "reconcile", "sandbox", r.Key.String(), "iface", r.Endpoint)
	}
	gone := a.public(r)
	if err := a.remove(ctx, r); err != nil {
		a.tellBusy(err, "sandbox", r.Key.String())
		return nil
	}
	a.mu.Lock()
	a.lost = append(a.lost, gone)
	a.mu.Unlock()
	a.ring()
	return nil
}

// tellBusy logs what will be tried again, unless the last comparison has.
func (a *hcnAttacher) tellBusy(err error, key, value string) {
	if err == nil {
		return
	}
	a.mu.Lock()
	before := a.told[value]
	a.telling[value] = err.Error()
	a.mu.Unlock()
	if before != err.Error() {
		a.log.Warn("not removed yet, trying again", "op", "reconcile", key, value, "err", err)
	}
}

// Run compares HCN with the record now and then until ctx ends, and returns nil
// then. It mends what foreign hands remove, removes what HCN did not let go of
// before, and calls gone, one at a time, for every attachment that went other
// than by Detach. One Run at a time.
func (a *hcnAttacher) Run(ctx context.Context, gone func(Attachment)) error {
	wait := time.NewTimer(0)
	defer wait.Stop()
	retry, told := hcnRetry, ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.poke:
			retry = hcnRetry
		case <-wait.C:
		}
		err := a.Reconcile(ctx)
		if err != nil && ctx.Err() == nil && err.Error() != told {
			a.log.Warn("not everything could be compared with HCN, trying again", "op", "reconcile", "err", err)
		}
		told = fmt.Sprint(err)
		lost, unfinished := a.takeLost()
		for _, attachment := range lost {
			gone(attachment)
		}
		if !unfinished {
			retry = hcnResync
		}
		wait.Reset(retry)
		retry = min(2*retry, hcnResync)
	}
}

// takeLost returns what went other than by Detach since the last time, and whether
// something has yet to go.
func (a *hcnAttacher) takeLost() (lost []Attachment, unfinished bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	lost, a.lost = a.lost, nil
	return lost, a.state.unfinished()
}

// Check compares an attachment with HCN and changes nothing. It returns all that
// is wrong, or ErrNotAttached. The namespace is the record's; the file is not
// used.
func (a *hcnAttacher) Check(ctx context.Context, key Key, _ *os.File) error {
	if err := a.check(ctx, key); err != nil {
		return fmt.Errorf("check sandbox %s: %w", key, err)
	}
	return nil
}

func (a *hcnAttacher) check(ctx context.Context, key Key) error {
	if err := a.load(ctx); err != nil {
		return err
	}
	unlock, err := a.keys.Lock(ctx, key.ID())
	if err != nil {
		return err
	}
	defer unlock()
	a.mu.Lock()
	r, _, found := a.state.attachment(key.ID())
	s, _, _ := a.state.segment(r.Home)
	a.mu.Unlock()
	if !found || r.State != hcnAttached {
		return ErrNotAttached
	}
	return errors.Join(a.checkNetwork(ctx, s), a.checkEndpoint(ctx, r, s.ID), a.checkPlace(ctx, r))
}

func (a *hcnAttacher) checkNetwork(ctx context.Context, s hcnSegment) error {
	networks, err := a.listNetworks(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(networks, func(n hcnNetwork) bool { return sameID(n.ID, s.ID) })
	if i < 0 {
		return fmt.Errorf("HCN network %s is missing", networkName(s.Name))
	}
	if why := networks[i].differs(networkWanted(s, a.cfg.Adapter)); why != "" {
		return fmt.Errorf("HCN network %s %s", networks[i].Name, why)
	}
	return nil
}

func (a *hcnAttacher) checkEndpoint(ctx context.Context, r hcnAttachment, network string) error {
	endpoints, err := a.listEndpoints(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(endpoints, func(e hcnEndpoint) bool { return sameID(e.ID, r.Endpoint) })
	if i < 0 {
		return fmt.Errorf("HCN endpoint %s is missing: %w", r.Endpoint, ErrNotAttached)
	}
	var wrong []error
	have, wanted := endpoints[i], endpointWanted(r, network, a.cfg)
	if !sameID(have.HostComputeNetwork, network) {
		wrong = append(wrong, fmt.Errorf("HCN endpoint %s is on another network", r.Endpoint))
	}
	for _, addr := range r.Addrs {
		if !have.has(addr) {
			wrong = append(wrong, fmt.Errorf("HCN endpoint %s: address %s is missing", r.Endpoint, addr))
		}
	}
	for _, route := range wanted.Routes {
		if !slices.ContainsFunc(have.Routes, route.same) {
			wrong = append(wrong, fmt.Errorf("HCN endpoint %s: default route via %s is missing", r.Endpoint, route.NextHop))
		}
	}
	return errors.Join(wrong...)
}

func (a *hcnAttacher) checkPlace(ctx context.Context, r hcnAttachment) error {
	namespace, err := a.namespace(ctx, r.Namespace)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, ErrNotAttached)
	case err != nil:
		return err
	case !namespace.holds(r.Endpoint):
		return fmt.Errorf("HCN endpoint %s is not in namespace %s", r.Endpoint, r.Namespace)
	}
	return nil
}
