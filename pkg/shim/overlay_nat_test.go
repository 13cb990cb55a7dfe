package shim

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestNATStatus: the original's answer was empty whatever the daemon knew.
func TestNATStatus(t *testing.T) {
	told := &NATStatus{Enabled: true, Peers: []NATPeer{{PublicKey: keyB, Connection: ConnectionRelayed, Endpoint: "192.0.2.2:4000"}}}
	m, r := managed(t, func(_ context.Context, req Request) (Response, error) {
		if _, ok := req.(*Status); ok {
			return &StatusSnapshot{NAT: told}, nil
		}
		return nil, nil
	}, OverlayOptions{})
	got, err := m.NATStatusSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(told, got, compareNetip); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	r.want(t, &Status{})
	if got, err = m.StartNATTraversal(t.Context()); err != nil || !cmp.Equal(told, got, compareNetip) {
		t.Errorf("after the first round: %+v, %v", got, err)
	}
	r.want(t, &NATTick{}, &Status{})
}

func TestDaemonWithoutNATTraversal(t *testing.T) {
	m, _ := managed(t, func(_ context.Context, req Request) (Response, error) {
		if _, ok := req.(*Status); ok {
			return &StatusSnapshot{}, nil
		}
		return nil, &Error{Code: CodeUnsupported, Message: req.Op() + " is not supported"}
	}, OverlayOptions{})
	_, status := m.NATStatusSnapshot(t.Context())
	_, start := m.StartNATTraversal(t.Context())
	for what, err := range map[string]error{"status": status, "start": start, "tick": m.NATMaintenanceTick(t.Context())} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v, want errors.ErrUnsupported", what, err)
		}
	}
	if errors.Is(&Error{Code: CodeInternal}, errors.ErrUnsupported) {
		t.Error("any failure is taken for lacking support")
	}
}

func TestNATSwitchedOffAsksNothing(t *testing.T) {
	off := DefaultNATConfig()
	off.Enabled = false
	m, r := managed(t, obliging, OverlayOptions{NAT: &off})
	if err := m.NATMaintenanceTick(t.Context()); err != nil || m.NATEnabled() {
		t.Errorf("enabled %t, %v", m.NATEnabled(), err)
	}
	if status, err := m.StartNATTraversal(t.Context()); err != nil || status.Enabled {
		t.Errorf("started: %+v, %v", status, err)
	}
	r.want(t)
}
