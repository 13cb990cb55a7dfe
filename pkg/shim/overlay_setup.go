package shim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// SetupGlobalOverlay brings up the cluster's WireGuard device, or takes over
// the one that is there, and keeps the state of the overlay as RefreshStatus
// does. A daemon that is away costs one round of dialing and no more. Repeating
// it changes nothing.
func (m *OverlayManager) SetupGlobalOverlay(ctx context.Context) error {
	if err := m.setupGlobal(ctx); err != nil {
		return fmt.Errorf("set up overlay of %s: %w", m.opt.Deployment, err)
	}
	return nil
}

func (m *OverlayManager) setupGlobal(ctx context.Context) error {
	ctx, cancel := m.client.bounded(ctx)
	defer cancel()
	_, err := expect[*BridgeName](m.client.Call(ctx, &SetupGlobalOverlay{
		Deployment: m.opt.Deployment, InstanceID: m.opt.InstanceID,
		ClusterCIDR: m.opt.ClusterCIDR, SliceCIDR: m.opt.SliceCIDR, WGPort: m.opt.Port,
		NATEnabled: m.opt.NAT.Enabled, NAT: m.opt.NAT, UAPISocketDir: m.opt.UAPISocketDir,
	}))
	if err != nil {
		return err
	}
	_, err = m.RefreshStatus(ctx)
	return err
}

// TeardownGlobalOverlay removes the cluster's WireGuard device from the node,
// for good: it belongs to removing the software, not to a process's end.
func (m *OverlayManager) TeardownGlobalOverlay(ctx context.Context) error {
	if err := m.client.do(ctx, &TeardownGlobalOverlay{}); err != nil {
		return fmt.Errorf("tear down overlay of %s: %w", m.opt.Deployment, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status = StatusSnapshot{}
	return nil
}

// SetupServiceOverlay makes the segment of a service, or takes over the one
// that is there. Of a daemon that tells no more than a bridge's name, the answer
// holds Name and ModeShared; as an answer to ModeDedicated that is an error, as
// is any other shared segment.
func (m *OverlayManager) SetupServiceOverlay(ctx context.Context, service string, mode Mode) (*ServiceOverlay, error) {
	overlay, err := m.setupService(ctx, service, mode)
	if err != nil {
		return nil, fmt.Errorf("set up service %s: %w", short(service), err)
	}
	return overlay, nil
}

func (m *OverlayManager) setupService(ctx context.Context, service string, mode Mode) (*ServiceOverlay, error) {
	if service == "" {
		return nil, errNoService
	}
	resp, err := m.client.Call(ctx, &SetupServiceOverlay{Service: service, Mode: mode})
	if bridge, ok := resp.(*BridgeName); ok {
		resp = &ServiceOverlay{Name: bridge.Name, Mode: ModeShared}
	}
	overlay, err := expect[*ServiceOverlay](resp, err)
	if err != nil {
		return nil, err
	}
	if mode == ModeDedicated && overlay.Mode != ModeDedicated {
		return nil, fmt.Errorf("overlayd made segment %s in mode %s instead of %s", overlay.Name, overlay.Mode, mode)
	}
	return overlay, nil
}

// errNoService tells that a service was asked for by no name, which on the wire
// would mean the default segment or the whole cluster.
var errNoService = errors.New("service: must not be empty")

// TeardownServiceOverlay removes the segment of a service from the node. An
// unknown service is none to remove.
func (m *OverlayManager) TeardownServiceOverlay(ctx context.Context, service string) error {
	err := errNoService
	if service != "" {
		err = m.client.do(ctx, &TeardownServiceOverlay{Service: service})
	}
	if err != nil {
		return fmt.Errorf("tear down service %s: %w", short(service), err)
	}
	return nil
}

// ServiceCount asks how many services the node carries.
func (m *OverlayManager) ServiceCount(ctx context.Context) (int, error) {
	snapshot, err := m.RefreshStatus(ctx)
	if err != nil {
		return 0, err
	}
	return int(snapshot.ServiceCount), nil
}

// ServiceBridgeCount asks how many bridges the node has for services. The
// bridge of the default segment is none of them. A daemon that does not tell
// its segments has one bridge for a service.
func (m *OverlayManager) ServiceBridgeCount(ctx context.Context) (int, error) {
	snapshot, err := m.RefreshStatus(ctx)
	if err != nil {
		return 0, err
	}
	if len(snapshot.Segments) == 0 {
		return int(snapshot.ServiceCount), nil
	}
	const defaultSegment = "default"
	bridges := 0
	for _, segment := range snapshot.Segments {
		if segment.Bridge != "" && segment.Name != defaultSegment {
			bridges++
		}
	}
	return bridges, nil
}

// Cleanup ends the use of the overlay by this process: it detaches what
// HCNAttachments holds, since nobody else would, and closes the connection.
// Later calls get ErrClosed. The device, the segments and the other sandboxes
// stay as they are, for sandboxes outlive the process that started them.
func (m *OverlayManager) Cleanup(ctx context.Context) error {
	var errs []error
	for _, guid := range slices.Sorted(maps.Keys(m.HCNAttachments())) {
		err := m.DetachContainerHCN(ctx, guid)
		if err != nil {
			errs = append(errs, err)
		}
		if errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			break // so would be the others
		}
	}
	return errors.Join(append(errs, m.client.Close())...)
}
