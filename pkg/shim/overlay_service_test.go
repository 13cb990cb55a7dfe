package shim

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSetupServiceOverlay(t *testing.T) {
	dedicated := &ServiceOverlay{
		Name: "zl-web-d", Mode: ModeDedicated, WGPublicKey: keyA, WGPort: 51821, OverlayIP: ip("10.200.9.1"),
		Subnet: cidr("10.200.9.0/28"), Subnets: cidrs("10.200.9.0/28", "fd00::/120"), Addresses: ips("10.200.9.1", "fd00::1"),
	}
	shared := &ServiceOverlay{Name: "zl-web-b", Mode: ModeShared}
	for _, test := range []struct {
		name   string
		mode   Mode
		answer Response
		want   *ServiceOverlay
		says   string // of the error
	}{
		{"shared", ModeShared, shared, shared, ""},
		{"auto", ModeAuto, shared, shared, ""},
		{"no mode", "", shared, shared, ""},
		{"dedicated", ModeDedicated, dedicated, dedicated, ""},
		{"auto that became dedicated", ModeAuto, dedicated, dedicated, ""},
		{"older daemon", ModeShared, &BridgeName{Name: "zl-web-b"}, shared, ""},
		{"older daemon cannot tell of a dedicated one", ModeDedicated, &BridgeName{Name: "zl-web-b"}, nil, "shared instead of dedicated"},
		{"shared where dedicated was meant", ModeDedicated, shared, nil, "shared instead of dedicated"},
		{"another answer", ModeShared, &OK{}, nil, "answered ok instead of service_overlay"},
		{"refused", ModeShared, &Error{Code: CodeConflict, Message: "is dedicated"}, nil, "is dedicated"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, r := managed(t, func(context.Context, Request) (Response, error) { return test.answer, nil }, OverlayOptions{})
			got, err := m.SetupServiceOverlay(t.Context(), "web", test.mode)
			if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want an error of %q", err, test.says)
			}
			if diff := cmp.Diff(test.want, got, compareNetip); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			mode := test.mode
			if mode == "" {
				mode = ModeAuto // as it comes over the wire
			}
			r.want(t, &SetupServiceOverlay{Service: "web", Mode: mode})
		})
	}
}

// services is a daemon that makes segments, each once.
type services struct {
	mu   sync.Mutex
	made map[string]int
}

func (s *services) handle(ctx context.Context, req Request) (Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch req := req.(type) {
	case *SetupServiceOverlay:
		if s.made[req.Service] == 0 {
			s.made[req.Service]++
		}
		return &ServiceOverlay{Name: "zl-" + req.Service + "-b", Mode: ModeShared}, nil
	case *TeardownServiceOverlay:
		delete(s.made, req.Service)
		return nil, nil
	case *Status:
		snapshot := &StatusSnapshot{ServiceCount: uint32(len(s.made)), Segments: []SegmentStatus{{Name: "default", Bridge: "zl-default-b"}}}
		for name := range s.made {
			snapshot.Segments = append(snapshot.Segments, SegmentStatus{Name: name, Bridge: "zl-" + name + "-b"})
		}
		return snapshot, nil
	}
	return obliging(ctx, req)
}

// TestConcurrentSetups calls one manager from all sides, over its one
// connection that is yet to be made.
func TestConcurrentSetups(t *testing.T) {
	for _, test := range []struct {
		name              string
		services, callers int
		global            bool
	}{
		{"one service", 1, 16, false},
		{"four services", 4, 4, false},
		{"with the global overlay", 2, 8, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			daemon := &services{made: make(map[string]int)}
			m, _ := managed(t, daemon.handle, OverlayOptions{NodeID: 1})
			if test.global {
				if err := m.SetupGlobalOverlay(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			var group sync.WaitGroup
			for i := range test.services * test.callers {
				service := fmt.Sprint("svc", i%test.services)
				group.Go(func() {
					overlay, err := m.SetupServiceOverlay(t.Context(), service, ModeShared)
					if err != nil {
						t.Error(err)
					} else if want := "zl-" + service + "-b"; overlay.Name != want {
						t.Errorf("%s got %s, want %s", service, overlay.Name, want)
					}
				})
			}
			group.Wait()
			wantCounts(t, m, test.services)
			if err := m.TeardownServiceOverlay(t.Context(), "svc0"); err != nil {
				t.Error(err)
			}
			wantCounts(t, m, test.services-1)
		})
	}
}

func wantCounts(t *testing.T, m *OverlayManager, want int) {
	t.Helper()
	count, err := m.ServiceCount(t.Context())
	if err != nil || count != want {
		t.Errorf("%d services, %v, want %d", count, err, want)
	}
	bridges, err := m.ServiceBridgeCount(t.Context())
	if err != nil || bridges != want {
		t.Errorf("%d bridges, %v, want %d", bridges, err, want)
	}
}

func TestServiceBridgesOfADaemonThatTellsNoSegments(t *testing.T) {
	m, _ := managed(t, func(context.Context, Request) (Response, error) { return &StatusSnapshot{ServiceCount: 3}, nil }, OverlayOptions{})
	wantCounts(t, m, 3)
}
