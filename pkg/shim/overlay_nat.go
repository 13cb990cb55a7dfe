package shim

import (
	"context"
	"errors"
	"fmt"
)

// NATEnabled tells whether ways through NATs are looked for.
func (m *OverlayManager) NATEnabled() bool { return m.opt.NAT.Enabled }

// NATConfig returns how ways through NATs are looked for.
func (m *OverlayManager) NATConfig() NATConfig { return m.opt.NAT.clone() }

// StartNATTraversal has the daemon look for ways through NATs once, and returns
// what it found. NATMaintenanceTick is for later, each NATConfig's
// STUNRefreshIntervalSecs. If traversal is off it asks nothing and returns a
// status that is not Enabled.
func (m *OverlayManager) StartNATTraversal(ctx context.Context) (*NATStatus, error) {
	if !m.NATEnabled() {
		return &NATStatus{}, nil
	}
	if err := m.NATMaintenanceTick(ctx); err != nil {
		return nil, err
	}
	return m.NATStatusSnapshot(ctx)
}

// NATMaintenanceTick has the daemon do one round of upkeep. If traversal is off
// it asks nothing. The error of a daemon without NAT traversal is
// errors.ErrUnsupported.
func (m *OverlayManager) NATMaintenanceTick(ctx context.Context) error {
	if !m.NATEnabled() {
		return nil
	}
	if err := m.client.do(ctx, &NATTick{}); err != nil {
		return fmt.Errorf("look for ways through NATs: %w", err)
	}
	return nil
}

// NATStatusSnapshot asks what the daemon knows of ways through NATs. The error
// is errors.ErrUnsupported if it tells nothing of them.
func (m *OverlayManager) NATStatusSnapshot(ctx context.Context) (*NATStatus, error) {
	snapshot, err := m.RefreshStatus(ctx)
	if err != nil {
		return nil, err
	}
	if snapshot.NAT == nil {
		return nil, fmt.Errorf("status of NAT traversal: overlayd tells none: %w", errors.ErrUnsupported)
	}
	return snapshot.NAT, nil
}
