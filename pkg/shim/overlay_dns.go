package shim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// RegisterDNS gives a name one more address: in the daemon's zone, or as it is if
// it ends with a dot. The daemon keeps it until UnregisterDNS. Repeating it
// changes nothing.
func (m *OverlayManager) RegisterDNS(ctx context.Context, name string, addr netip.Addr) error {
	err := errNoName
	if name != "" {
		err = m.client.do(ctx, &RegisterDNS{Name: name, IP: addr})
	}
	if err != nil {
		return fmt.Errorf("register name %s: %w", short(name), err)
	}
	return nil
}

// UnregisterDNS takes a name of RegisterDNS back, with all its addresses. An
// unknown one is none to take back.
func (m *OverlayManager) UnregisterDNS(ctx context.Context, name string) error {
	err := errNoName
	if name != "" {
		err = m.client.do(ctx, &UnregisterDNS{Name: name})
	}
	if err != nil {
		return fmt.Errorf("unregister name %s: %w", short(name), err)
	}
	return nil
}

var errNoName = errors.New("name: must not be empty")

// DNSStatusSnapshot asks what the daemon's DNS server does: the zone, where it
// listens and how many names it has. It is not Enabled where the daemon's
// configuration switched it off. The error is errors.ErrUnsupported if the daemon
// tells nothing of it. What sandboxes are told is DNSServerAddr and DNSDomain, or
// the daemon's own choice.
func (m *OverlayManager) DNSStatusSnapshot(ctx context.Context) (*DNSStatus, error) {
	snapshot, err := m.RefreshStatus(ctx)
	if err != nil {
		return nil, err
	}
	if snapshot.DNS == nil {
		return nil, fmt.Errorf("status of DNS: overlayd tells none: %w", errors.ErrUnsupported)
	}
	return snapshot.DNS, nil
}
