package shim

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// recorder is a daemon that remembers what it was asked.
type recorder struct {
	answer HandlerFunc

	mu    sync.Mutex
	asked []Request
}

func (r *recorder) handle(ctx context.Context, req Request) (Response, error) {
	r.mu.Lock()
	r.asked = append(r.asked, req)
	r.mu.Unlock()
	return r.answer(ctx, req)
}

// take returns what was asked since the last call.
func (r *recorder) take() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked := r.asked
	r.asked = nil
	return asked
}

// want fails the test unless exactly this was asked since the last look.
func (r *recorder) want(t *testing.T, want ...Request) {
	t.Helper()
	if diff := cmp.Diff(want, r.take(), compareNetip, cmpopts.IgnoreFields(LinuxNetns{}, "File")); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// obliging answers what ZLayer's daemon would answer.
func obliging(_ context.Context, req Request) (Response, error) {
	switch req := req.(type) {
	case *SetupGlobalOverlay:
		return &BridgeName{Name: "zl-prod-g"}, nil
	case *SetupServiceOverlay:
		return &ServiceOverlay{Name: "zl-prod-web-b", Mode: req.Mode.Resolve()}, nil
	case *Status:
		return &StatusSnapshot{
			Interface: "zl-prod-g", NodeIP: ip("10.200.3.1"), PublicKey: keyA, OverlayCIDR: cidr("10.200.0.0/16"), SliceCIDR: cidr("10.200.3.0/24"),
		}, nil
	case *AttachContainer:
		if _, ok := req.Handle.(*GuestManaged); ok {
			return &GuestConfig{OverlayIP: ip("10.200.3.7"), PrefixLen: 32, PrivateKey: keyB, PublicKey: keyA}, nil
		}
		return &Attached{IP: ip("10.200.3.5"), NamespaceGUID: guidA}, nil
	}
	return nil, nil
}

const guidA = "aabbccdd-eeff-0011-2233-445566778899"

func newManager(t *testing.T, opt OverlayOptions) *OverlayManager {
	t.Helper()
	if opt.Deployment == "" {
		opt.Deployment = "prod"
	}
	if opt.Dial.CallTimeout == 0 {
		opt.Dial.CallTimeout = patience
	}
	m, err := NewOverlayManager(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.client.Close() })
	return m
}

// managed is a manager of a recording daemon.
func managed(t *testing.T, answer HandlerFunc, opt OverlayOptions) (*OverlayManager, *recorder) {
	t.Helper()
	r := &recorder{answer: answer}
	opt.Socket = startDaemon(t, r.handle, ServeOptions{}).path
	return newManager(t, opt), r
}

func TestOverlayOptions(t *testing.T) {
	for _, test := range []struct {
		name string
		opt  OverlayOptions
		says string // empty: valid
	}{
		{"defaults", OverlayOptions{Deployment: "d"}, ""},
		{"no deployment", OverlayOptions{}, "option Deployment"},
		{"slice", OverlayOptions{Deployment: "d", SliceCIDR: cidr("10.200.4.0/24")}, ""},
		{"slice of another cluster", OverlayOptions{Deployment: "d", SliceCIDR: cidr("10.201.4.0/24")}, "option SliceCIDR"},
		{"slice wider than the cluster", OverlayOptions{Deployment: "d", ClusterCIDR: cidr("10.0.0.0/16"), SliceCIDR: cidr("10.0.0.0/8")}, "option SliceCIDR"},
		{"slice of another family", OverlayOptions{Deployment: "d", SliceCIDR: cidr("fd00::/64")}, "option SliceCIDR"},
		{"slice with host bits", OverlayOptions{Deployment: "d", SliceCIDR: cidr("10.200.4.1/24")}, "option SliceCIDR"},
		{"IPv6", OverlayOptions{Deployment: "d", ClusterCIDR: cidr("fd00:200::/48"), SliceCIDR: cidr("fd00:200::/64")}, ""},
		{"cluster with host bits", OverlayOptions{Deployment: "d", ClusterCIDR: cidr("10.200.0.1/16")}, "option ClusterCIDR"},
		{"NAT that makes no sense", OverlayOptions{Deployment: "d", NAT: &NATConfig{}}, "option NAT: hole_punch_timeout_secs"},
		{"DNS without a port", OverlayOptions{Deployment: "d", DNS: DNSConfig{Server: netip.AddrPortFrom(ip("10.200.0.1"), 0)}}, "option DNS"},
		{"DNS without an address", OverlayOptions{Deployment: "d", DNS: DNSConfig{Server: netip.AddrPortFrom(netip.Addr{}, 53)}}, "option DNS"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, err := NewOverlayManager(test.opt)
			if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want an error of %q", err, test.says)
			}
			if (m == nil) != (err != nil) {
				t.Errorf("got a manager %t with %v", m != nil, err)
			}
		})
	}
}

// TestOverlayDefaults pins what ports and documents of the original disagreed on.
func TestOverlayDefaults(t *testing.T) {
	m := newManager(t, OverlayOptions{Deployment: "d"})
	got := []any{m.Deployment(), m.OverlayPort(), m.ClusterCIDR(), m.NATEnabled(), m.NATConfig(), m.opt.Socket}
	want := []any{"d", uint16(51820), cidr("10.200.0.0/16"), true, DefaultNATConfig(), DefaultSocket}
	if diff := cmp.Diff(want, got, compareNetip); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestManagerBeforeSetup(t *testing.T) {
	m := newManager(t, OverlayOptions{SliceCIDR: cidr("10.200.4.0/24"), Port: 4000})
	if m.NodeIP().IsValid() || m.GlobalInterface() != "" || m.HasGlobalTransport() || m.OverlayCIDR().IsValid() {
		t.Errorf("%s on %q is known before it was asked for", m.NodeIP(), m.GlobalInterface())
	}
	if m.SliceCIDR() != cidr("10.200.4.0/24") || m.OverlayPort() != 4000 {
		t.Errorf("slice %s, port %d are not as configured", m.SliceCIDR(), m.OverlayPort())
	}
	if got := m.HCNAttachments(); len(got) > 0 {
		t.Errorf("attached already: %v", got)
	}
}

func TestNATConfigIsACopy(t *testing.T) {
	config := DefaultNATConfig()
	config.STUNServers, config.RelayServer = []STUNServer{{Address: "a:1"}}, &RelayServer{ListenPort: 1, ExternalAddr: netip.MustParseAddrPort("192.0.2.1:1"), MaxSessions: 1}
	m := newManager(t, OverlayOptions{NAT: &config})
	for _, c := range []NATConfig{config, m.NATConfig()} {
		c.STUNServers[0].Address, c.RelayServer.ListenPort = "changed:2", 2
	}
	if got := m.NATConfig(); got.STUNServers[0].Address != "a:1" || got.RelayServer.ListenPort != 1 {
		t.Errorf("changed from outside: %+v", got)
	}
}

func TestDNSConfig(t *testing.T) {
	m := newManager(t, OverlayOptions{})
	if m.DNSServerAddr().IsValid() || m.DNSDomain() != "" {
		t.Errorf("DNS %s %q before it was set", m.DNSServerAddr(), m.DNSDomain())
	}
	server := netip.MustParseAddrPort("10.200.0.1:15353")
	if err := m.SetDNSConfig(DNSConfig{Server: server, Domain: "prod.local"}); err != nil {
		t.Fatal(err)
	}
	if err := m.SetDNSConfig(DNSConfig{Server: netip.AddrPortFrom(ip("10.200.0.1"), 0)}); err == nil {
		t.Error("took a server without a port")
	}
	if m.DNSServerAddr() != server || m.DNSDomain() != "prod.local" {
		t.Errorf("DNS %s %q", m.DNSServerAddr(), m.DNSDomain())
	}
}

// TestSetupGlobalOverlay has number, key, slice and NAT arrive: the original
// sent the number too early or never, no slice, and a boolean of NAT.
func TestSetupGlobalOverlay(t *testing.T) {
	nat := DefaultNATConfig()
	nat.STUNServers = []STUNServer{{Address: "stun.example:3478"}}
	m, r := managed(t, obliging, OverlayOptions{SliceCIDR: cidr("10.200.3.0/24"), NodeID: 7, NAT: &nat, UAPISocketDir: "/run/wg", InstanceID: "blue"})
	if err := m.SetLocalWGPubkey(t.Context(), keyA); err != nil {
		t.Fatal(err)
	}
	r.want(t) // it was not asked to connect yet
	setup := &SetupGlobalOverlay{
		Deployment: "prod", InstanceID: "blue", ClusterCIDR: cidr("10.200.0.0/16"), SliceCIDR: cidr("10.200.3.0/24"), WGPort: 51820,
		NATEnabled: true, NAT: &nat, UAPISocketDir: "/run/wg",
	}
	if err := m.SetupGlobalOverlay(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want(t, &SetLocalNodeID{NodeID: 7}, &SetLocalWGPubkey{Pubkey: keyA}, setup, &Status{})
	if m.GlobalInterface() != "zl-prod-g" || !m.HasGlobalTransport() || m.NodeIP() != ip("10.200.3.1") || m.OverlayCIDR() != cidr("10.200.0.0/16") {
		t.Errorf("%s on %q of %s is not what the daemon tells", m.NodeIP(), m.GlobalInterface(), m.OverlayCIDR())
	}
	r.want(t) // those are remembered
	if err := m.SetupGlobalOverlay(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want(t, setup, &Status{}) // number and key are told once to a connection
	if err := m.TeardownGlobalOverlay(t.Context()); err != nil || m.HasGlobalTransport() {
		t.Errorf("after teardown: %q, %v", m.GlobalInterface(), err)
	}
}

func TestSliceOfTheDaemon(t *testing.T) {
	m, _ := managed(t, obliging, OverlayOptions{})
	if _, err := m.RefreshStatus(t.Context()); err != nil || m.SliceCIDR() != cidr("10.200.3.0/24") {
		t.Errorf("slice %s, %v", m.SliceCIDR(), err)
	}
}

func TestSetupFails(t *testing.T) {
	refused := &Error{Code: CodeConflict, Message: "another port"}
	for _, failing := range []Request{&SetupGlobalOverlay{}, &Status{}, &SetLocalNodeID{}} {
		t.Run(failing.Op(), func(t *testing.T) {
			m, _ := managed(t, func(ctx context.Context, req Request) (Response, error) {
				if req.Op() == failing.Op() {
					return nil, refused
				}
				return obliging(ctx, req)
			}, OverlayOptions{NodeID: 1})
			wantCode(t, m.SetupGlobalOverlay(t.Context()), CodeConflict)
			if m.HasGlobalTransport() {
				t.Error("the device is taken to be there")
			}
		})
	}
}

// TestSetupWithoutADaemon: the original's start stood still for 35 s.
func TestSetupWithoutADaemon(t *testing.T) {
	missing := socketPath(t)
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, OverlayOptions{Socket: missing, NodeID: 1})
		begin := time.Now()
		for _, err := range []error{m.SetLocalNodeID(t.Context(), 2), m.SetLocalWGPubkey(t.Context(), keyA)} {
			if err != nil || time.Since(begin) > 0 {
				t.Errorf("what is said later failed or waited: %v", err)
			}
		}
		if err := m.SetupGlobalOverlay(t.Context()); !errors.Is(err, ErrUnreachable) {
			t.Errorf("got %v, want ErrUnreachable", err)
		}
		if took := time.Since(begin); took != 2500*time.Millisecond {
			t.Errorf("gave up after %s", took)
		}
	})
}

func TestManagerDoesNotWaitForAHungDaemon(t *testing.T) {
	for name, call := range map[string]func(context.Context, *OverlayManager) error{
		"setup":     func(ctx context.Context, m *OverlayManager) error { return m.SetupGlobalOverlay(ctx) },
		"addresses": func(ctx context.Context, m *OverlayManager) error { _, err := m.IPAllocStats(ctx); return err },
		"detach":    func(ctx context.Context, m *OverlayManager) error { return m.DetachContainer(ctx, &LinuxPID{PID: 1}) },
	} {
		for where, opt := range map[string]OverlayOptions{"call": {}, "greeting": {NodeID: 1}} {
			t.Run(name+" in the "+where, func(t *testing.T) {
				release := make(chan struct{})
				opt.Socket, opt.Dial.CallTimeout = scripted(t, func(*rawConn) { <-release }), 20*time.Millisecond
				defer close(release)
				if err := call(context.Background(), newManager(t, opt)); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want DeadlineExceeded", err)
				}
			})
		}
	}
	t.Run("telling the number", func(t *testing.T) {
		release := make(chan struct{})
		path := scripted(t, func(c *rawConn) {
			id, _ := c.request()
			c.respond(id, &StatusSnapshot{})
			<-release
		})
		defer close(release)
		m := newManager(t, OverlayOptions{Socket: path})
		if _, err := m.RefreshStatus(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := m.SetLocalNodeID(ctx, 9); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
	})
}

// TestAFreshDaemon goes over a real socket before anything is set up.
func TestAFreshDaemon(t *testing.T) {
	m, r := managed(t, func(_ context.Context, req Request) (Response, error) {
		if _, ok := req.(*Status); ok {
			return &StatusSnapshot{}, nil
		}
		return nil, nil
	}, OverlayOptions{})
	for range 2 {
		snapshot, err := m.RefreshStatus(t.Context())
		if diff := cmp.Diff(&StatusSnapshot{}, snapshot, compareNetip); err != nil || diff != "" {
			t.Errorf("status %v (-want +got):\n%s", err, diff)
		}
	}
	if err := errors.Join(m.SetLocalNodeID(t.Context(), 7), m.SetLocalWGPubkey(t.Context(), keyA)); err != nil {
		t.Error(err)
	}
	r.want(t, &Status{}, &Status{}, &SetLocalNodeID{NodeID: 7}, &SetLocalWGPubkey{Pubkey: keyA})
}
