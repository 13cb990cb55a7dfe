package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Detach takes a sandbox off its segment: endpoint, and namespace if we made
// it, are gone when it returns nil. It needs no namespace; a sandbox that is not
// attached is no error. After an error, Run tries again, and so may the caller.
func (a *hcnAttacher) Detach(ctx context.Context, key Key) error {
	if err := a.detach(ctx, key); err != nil {
		return fmt.Errorf("detach sandbox %s: %w", key, err)
	}
	return nil
}

func (a *hcnAttacher) detach(ctx context.Context, key Key) error {
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
	a.mu.Unlock()
	if !found {
		return nil
	}
	return a.ringIf(a.remove(ctx, r))
}

// remove removes an attachment, of which anything may be missing; the sandbox's
// lock is held. What HCN does not let go of stays in the record, for Run. A
// record that cannot be written is no reason to leave the objects.
func (a *hcnAttacher) remove(ctx context.Context, r hcnAttachment) error {
	var errs []error
	if r.State != hcnLeaving {
		r.State = hcnLeaving
		errs = append(errs, a.put(r))
	}
	errs = append(errs, a.dropEndpoint(ctx, r.Endpoint, r.Namespace))
	if r.OwnNamespace {
		errs = append(errs, a.letGo(r.Namespace), unlessGone(hcnDo(ctx, a.calls, "delete HCN namespace", r.Namespace, func() error { return a.api.DeleteNamespace(r.Namespace) })))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", err, errHCNBusy)
	}
	return a.change(func(s hcnState) (hcnState, error) { return s.withoutAttachment(r.Key.ID()), nil })
}

// dropEndpoint takes an endpoint out of its namespace, where it has one, and
// removes it. HCN refuses the first where the endpoint is not in there or never
// was at all; once there is no endpoint, that is no reason to keep its record. A
// reference that stays goes before the namespace gets another endpoint.
func (a *hcnAttacher) dropEndpoint(ctx context.Context, endpoint, namespace string) error {
	var kept error
	if namespace != "" && namespace != hcnNoID {
		kept = unlessGone(a.takeOut(ctx, namespace, endpoint))
	}
	if err := unlessGone(hcnDo(ctx, a.calls, "delete HCN endpoint", endpoint, func() error { return a.api.DeleteEndpoint(endpoint) })); err != nil {
		return errors.Join(kept, err)
	}
	if kept != nil {
		a.takeOutAfter(ctx, endpoint, namespace, kept)
	}
	return nil
}

// takeOutAfter takes an endpoint that is gone out of its namespace, if it is in
// there. kept is why it could not be while it was there.
func (a *hcnAttacher) takeOutAfter(ctx context.Context, endpoint, namespace string, kept error) {
	if !a.calls.busy(namespace) { // else what hangs is about it
		found, err := a.namespace(ctx, namespace)
		if unlessGone(err) == nil && !found.holds(endpoint) {
			return
		}
		kept = unlessGone(a.takeOut(ctx, namespace, endpoint))
	}
	if kept != nil {
		a.log.Info("endpoint is gone, but its namespace did not let go of it", "op", "detach", "iface", endpoint, "err", kept)
	}
}

// dropUntold removes endpoints with the sandbox's name that the record does not
// know: HCN made them by ids of its own, and its answer was lost. endpoints is what
// HCN has; the sandbox's lock is held.
func (a *hcnAttacher) dropUntold(ctx context.Context, r hcnAttachment, endpoints []hcnEndpoint) error {
	var errs []error
	for _, e := range endpoints {
		if e.Name == endpointName(r.Key) && !sameID(e.ID, r.Endpoint) {
			errs = append(errs, a.dropEndpoint(ctx, e.ID, e.HostComputeNamespace))
		}
	}
	return errors.Join(errs...)
}

// dropLate removes what HCN made after nobody waited for it any more, and called
// otherwise than asked: the record names what was asked for, and nobody would find
// a namespace by anything but its id.
func (a *hcnAttacher) dropLate(kind, asked, made string, remove func(id string) error) {
	if made == "" || sameID(made, asked) {
		return // which the record's own removal finds
	}
	a.log.Info("HCN made it late and by another id, removing it", "op", "undo", "iface", kind+" "+made)
	if err := unlessGone(remove(made)); err != nil {
		a.log.Warn("what HCN made late is left behind", "op", "undo", "iface", kind+" "+made, "err", err)
	}
}

// Teardown removes everything of ours from HCN: what the record knows, and what
// has a name of ours in whatever network. A record that cannot be read is as none.
// The Attacher is as new afterwards. No other call may run meanwhile.
func (a *hcnAttacher) Teardown(ctx context.Context) error {
	if err := a.teardown(ctx); err != nil {
		return fmt.Errorf("tear down segments: %w", err)
	}
	return nil
}

func (a *hcnAttacher) teardown(ctx context.Context) error {
	if err := a.read(); err != nil { // names tell what is ours as well, but for namespaces
		a.log.Warn("tearing down without the record, namespaces of ours may stay", "op", "teardown", "err", err)
	}
	a.mu.Lock()
	attachments, segments := slices.Clone(a.state.Attachments), slices.Clone(a.state.Segments)
	a.mu.Unlock()
	var errs []error
	for _, r := range attachments {
		errs = append(errs, a.remove(ctx, r))
	}
	networks, errNetworks := a.listNetworks(ctx)
	endpoints, errEndpoints := a.listEndpoints(ctx)
	errs = append(errs, errNetworks, errEndpoints, a.removeStrays(ctx, endpoints, networks))
	for _, s := range segments {
		errs = append(errs, a.removeSegment(ctx, s.Name))
	}
	for _, network := range networks {
		if isNetworkName(network.Name) {
			errs = append(errs, a.deleteNetwork(ctx, network.ID))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state, a.written, a.lost = hcnState{Version: hcnStateVersion}, nil, nil
	clear(a.actual)
	if err := os.Remove(a.cfg.State); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// hcnObjects counts what is ours in HCN by its names, whatever any record says.
func hcnObjects(ctx context.Context, api hcnAPI) (networks, endpoints int, err error) {
	calls := newHCNCalls(hcnTimeout, func() {})
	foundNetworks, err := hcnList(ctx, calls, "networks", api.Networks)
	if err != nil {
		return 0, 0, fmt.Errorf("count HCN objects: %w", err)
	}
	foundEndpoints, err := hcnList(ctx, calls, "endpoints", api.Endpoints)
	if err != nil {
		return 0, 0, fmt.Errorf("count HCN objects: %w", err)
	}
	ours := map[string]bool{}
	for _, n := range foundNetworks {
		ours[strings.ToLower(n.ID)] = isNetworkName(n.Name)
		if isNetworkName(n.Name) {
			networks++
		}
	}
	for _, e := range foundEndpoints {
		if _, named := endpointKey(e.Name); named && ours[strings.ToLower(e.HostComputeNetwork)] {
			endpoints++
		}
	}
	return networks, endpoints, nil
}

// removeStrays removes endpoints that have a name of ours on a network of ours,
// and that the record does not know: it was lost, or HCN gave them another id.
// Networks of ours are those of segments, and of networks those with such a name.
func (a *hcnAttacher) removeStrays(ctx context.Context, endpoints []hcnEndpoint, networks []hcnNetwork) error {
	var errs []error
	for _, e := range endpoints {
		if !a.stray(e) || !a.segmentHas(e.HostComputeNetwork) && !slices.ContainsFunc(networks, func(n hcnNetwork) bool {
			return sameID(n.ID, e.HostComputeNetwork) && isNetworkName(n.Name)
		}) {
			continue
		}
		a.log.Info("removing an endpoint of ours that the record does not know", "op", "reconcile", "iface", e.ID)
		errs = append(errs, a.dropEndpoint(ctx, e.ID, e.HostComputeNamespace))
	}
	return errors.Join(errs...)
}

// stray tells whether an endpoint has a name of ours and is in no record. One
// that is being made may have an id that is not written down yet.
func (a *hcnAttacher) stray(e hcnEndpoint) bool {
	keyID, ours := endpointKey(e.Name)
	if !ours {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	r, _, found := a.state.attachment(keyID)
	return !found || !sameID(r.Endpoint, e.ID) && r.State == hcnAttached
}

func (a *hcnAttacher) segmentHas(network string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.state.Segments, func(s hcnSegment) bool { return sameID(s.ID, network) })
}
