package shim

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestOverlayRequests pins what each method asks of the daemon.
func TestOverlayRequests(t *testing.T) {
	netns := &LinuxNetns{ContainerID: "c1", IfName: "eth0", Netns: "/run/netns/c1"}
	peer := PeerSpec{PublicKey: keyA, Endpoint: "node-2.example:51820", AllowedIPs: cidrs("10.200.5.0/24", "fd00::/64"), PersistentKeepaliveSecs: 25}
	m, r := managed(t, obliging, OverlayOptions{DNS: DNSConfig{Server: netip.MustParseAddrPort("10.200.3.1:15353"), Domain: "prod.local"}})
	attach := func(handle Handle, joinGlobal bool) *AttachContainer {
		return &AttachContainer{Handle: handle, Service: "web", JoinGlobal: joinGlobal, DNSServer: ip("10.200.3.1"), DNSDomain: "prod.local"}
	}
	for _, test := range []struct {
		name string
		call func(ctx context.Context) (any, error)
		want Request
	}{
		{"attach by namespace", func(ctx context.Context) (any, error) { return m.AttachContainer(ctx, netns, "web", true) }, attach(netns, true)},
		{"attach by process", func(ctx context.Context) (any, error) { return m.AttachContainer(ctx, &LinuxPID{PID: 7}, "web", false) }, attach(&LinuxPID{PID: 7}, false)},
		{"detach by namespace", func(ctx context.Context) (any, error) { return nil, m.DetachContainer(ctx, netns) }, &DetachContainer{Handle: netns}},
		{"detach by process", func(ctx context.Context) (any, error) { return nil, m.DetachContainer(ctx, &LinuxPID{PID: 7}) }, &DetachContainer{Handle: &LinuxPID{PID: 7}}},
		{"attach a guest", func(ctx context.Context) (any, error) { return m.AttachContainerGuest(ctx, "vm-1", "web", true) }, attach(&GuestManaged{ID: "vm-1"}, true)},
		{"detach a guest", func(ctx context.Context) (any, error) { return nil, m.DetachContainerGuest(ctx, "vm-1") }, &DetachContainer{Handle: &GuestManaged{ID: "vm-1"}}},
		{
			"attach on Windows", func(ctx context.Context) (any, error) {
				return m.AttachContainerHCN(ctx, "ctr", "web", ip("10.200.3.5"))
			},
			attach(&WindowsContainer{ContainerID: "ctr", IP: ip("10.200.3.5")}, false),
		},
		{
			"detach on Windows", func(ctx context.Context) (any, error) { return nil, m.DetachContainerHCN(ctx, guidA) },
			&DetachContainer{Handle: &WindowsContainer{ContainerID: guidA, IP: ip("10.200.3.5")}},
		},
		{"add a peer", func(ctx context.Context) (any, error) { return nil, m.AddGlobalPeer(ctx, peer) }, &AddPeer{PeerSpec: peer}},
		{"remove a peer", func(ctx context.Context) (any, error) { return nil, m.RemoveGlobalPeer(ctx, keyA) }, &RemovePeer{Pubkey: keyA}},
		{"add a service's peer", func(ctx context.Context) (any, error) { return nil, m.AddServicePeer(ctx, "web", peer) }, &AddPeer{PeerSpec: peer, Scope: Scope{Service: "web"}}},
		{"remove a service's peer", func(ctx context.Context) (any, error) { return nil, m.RemoveServicePeer(ctx, "web", keyA) }, &RemovePeer{Pubkey: keyA, Scope: Scope{Service: "web"}}},
		// The original had no way to tell a node of another's shared services.
		{"add a prefix", func(ctx context.Context) (any, error) {
			return nil, m.AddGlobalAllowedIP(ctx, keyA, cidr("10.200.9.0/28"))
		}, &AddAllowedIP{Pubkey: keyA, CIDR: cidr("10.200.9.0/28")}},
		{"remove a prefix", func(ctx context.Context) (any, error) {
			return nil, m.RemoveGlobalAllowedIP(ctx, keyA, cidr("10.200.9.0/28"))
		}, &RemoveAllowedIP{Pubkey: keyA, CIDR: cidr("10.200.9.0/28")}},
		{"tear down a service", func(ctx context.Context) (any, error) { return nil, m.TeardownServiceOverlay(ctx, "web") }, &TeardownServiceOverlay{Service: "web"}},
		{"upkeep of NAT", func(ctx context.Context) (any, error) { return nil, m.NATMaintenanceTick(ctx) }, &NATTick{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := test.call(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.want(t, test.want)
		})
	}
}

// TestOverlayRefusesBadInput: nothing of it reaches the daemon. A service
// without a name would be the whole cluster there.
func TestOverlayRefusesBadInput(t *testing.T) {
	m, r := managed(t, obliging, OverlayOptions{})
	for _, test := range []struct {
		name string
		call func(ctx context.Context) error
		says string
	}{
		{"key", func(ctx context.Context) error { return m.SetLocalWGPubkey(ctx, "k") }, "public key"},
		{"peer's key", func(ctx context.Context) error { return m.AddGlobalPeer(ctx, PeerSpec{PublicKey: keyA[1:]}) }, "public key"},
		{"peer of no service", func(ctx context.Context) error { return m.AddServicePeer(ctx, "", PeerSpec{PublicKey: keyA}) }, "service"},
		{"removal from no service", func(ctx context.Context) error { return m.RemoveServicePeer(ctx, "", keyA) }, "service"},
		{"no prefix", func(ctx context.Context) error { return m.AddGlobalAllowedIP(ctx, keyA, netip.Prefix{}) }, "prefix"},
		{"no prefix to remove", func(ctx context.Context) error { return m.RemoveGlobalAllowedIP(ctx, keyA, netip.Prefix{}) }, "prefix"},
		{"setup of no service", func(ctx context.Context) error { _, err := m.SetupServiceOverlay(ctx, "", ModeShared); return err }, "service"},
		{"mode that is none", func(ctx context.Context) error { _, err := m.SetupServiceOverlay(ctx, "web", "public"); return err }, "mode"},
		{"teardown of no service", func(ctx context.Context) error { return m.TeardownServiceOverlay(ctx, "") }, "service"},
		{"no handle", func(ctx context.Context) error { _, err := m.AttachContainer(ctx, nil, "web", true); return err }, "handle"},
		{"no container", func(ctx context.Context) error { return m.DetachContainer(ctx, &LinuxNetns{IfName: "eth0"}) }, "handle"},
		{"no process", func(ctx context.Context) error { return m.DetachContainer(ctx, &LinuxPID{}) }, "handle"},
		{"guest as a sandbox", func(ctx context.Context) error {
			_, err := m.AttachContainer(ctx, &GuestManaged{ID: "g"}, "web", true)
			return err
		}, "guest_managed"},
		{"nameless guest", func(ctx context.Context) error { _, err := m.AttachContainerGuest(ctx, "", "web", true); return err }, "ID"},
		{"nameless guest to detach", func(ctx context.Context) error { return m.DetachContainerGuest(ctx, "") }, "ID"},
		{"nameless Windows container", func(ctx context.Context) error {
			_, err := m.AttachContainerHCN(ctx, "", "web", netip.Addr{})
			return err
		}, "container ID"},
		{"container's name for its namespace", func(ctx context.Context) error { return m.DetachContainerHCN(ctx, "ctr") }, "namespace"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := test.call(t.Context()); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want an error that names the %s", err, test.says)
			}
			r.want(t)
		})
	}
}

// TestFailedAttachIsAnError: the original's agent went on without a network.
func TestFailedAttachIsAnError(t *testing.T) {
	m, _ := managed(t, refuseWith(&Error{Code: CodeExhausted, Message: "pool is full"}), OverlayOptions{})
	attached, err := m.AttachContainer(t.Context(), &LinuxPID{PID: 7}, "web", true)
	wantCode(t, err, CodeExhausted)
	config, err := m.AttachContainerGuest(t.Context(), "vm-1", "web", true)
	wantCode(t, err, CodeExhausted)
	windows, err := m.AttachContainerHCN(t.Context(), "ctr", "web", netip.Addr{})
	wantCode(t, err, CodeExhausted)
	if attached != nil || config != nil || windows != nil || len(m.HCNAttachments()) > 0 {
		t.Error("something is attached all the same")
	}
}

func TestParseNamespaceGUID(t *testing.T) {
	for text, want := range map[string]NamespaceGUID{
		guidA: guidA, "{" + guidA + "}": guidA, strings.ToUpper(guidA): guidA, "{" + strings.ToUpper(guidA) + "}": guidA,
		"": "", "ctr": "", "{" + guidA: "", guidA + "}": "", guidA[1:]: "", guidA + "0": "", strings.ReplaceAll(guidA, "-", ""): "",
		"00000000-0000-0000-0000-000000000000": "", "-----": "",
		strings.Replace(guidA, "a", "g", 1): "", strings.Replace(guidA, "-", "_", 1): "",
	} {
		got, err := ParseNamespaceGUID(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}

// TestHCNAttachments: what is not detached is remembered, also over a detach
// that fails, which the original forgot.
func TestHCNAttachments(t *testing.T) {
	const guidB = "11111111-2222-3333-4444-555555555555"
	var refuse error
	m, r := managed(t, func(_ context.Context, req Request) (Response, error) {
		attach, ok := req.(*AttachContainer)
		switch {
		case !ok:
			return nil, refuse
		case attach.Handle.(*WindowsContainer).ContainerID == "a":
			return &Attached{IP: ip("10.200.3.5"), NamespaceGUID: "{" + strings.ToUpper(guidA) + "}"}, nil
		}
		return &Attached{IP: ip("10.200.3.6"), NamespaceGUID: guidB}, nil
	}, OverlayOptions{})
	for _, id := range []string{"a", "b"} {
		if _, err := m.AttachContainerHCN(t.Context(), id, "svc-"+id, netip.Addr{}); err != nil {
			t.Fatal(err)
		}
	}
	both := map[NamespaceGUID]HCNAttachedSandbox{guidA: {"svc-a", ip("10.200.3.5")}, guidB: {"svc-b", ip("10.200.3.6")}}
	wantHCN := func(want map[NamespaceGUID]HCNAttachedSandbox) {
		t.Helper()
		if diff := cmp.Diff(want, m.HCNAttachments(), compareNetip); diff != "" {
			t.Errorf("attached (-want +got):\n%s", diff)
		}
	}
	wantHCN(both)
	refuse = &Error{Code: CodeUnavailable, Message: "later"}
	wantCode(t, m.DetachContainerHCN(t.Context(), guidA), CodeUnavailable)
	wantHCN(both)
	refuse = nil
	for range 2 { // the second finds nothing to detach, which is fine
		if err := m.DetachContainerHCN(t.Context(), "{"+guidA+"}"); err != nil {
			t.Fatal(err)
		}
		delete(both, guidA)
		wantHCN(both)
	}
	r.take()
	if err := m.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	r.want(t, &DetachContainer{Handle: &WindowsContainer{ContainerID: guidB, IP: ip("10.200.3.6")}})
	wantHCN(map[NamespaceGUID]HCNAttachedSandbox{})
}

func TestWindowsAnswerWithoutANamespace(t *testing.T) {
	m, _ := managed(t, func(context.Context, Request) (Response, error) { return &Attached{IP: ip("10.200.3.5")}, nil }, OverlayOptions{})
	if _, err := m.AttachContainerHCN(t.Context(), "ctr", "web", netip.Addr{}); err == nil || len(m.HCNAttachments()) > 0 {
		t.Errorf("took it: %v, %v", err, m.HCNAttachments())
	}
}

// TestCleanupLeavesTheOverlay: the original took the node's network down with
// each of its agent's restarts.
func TestCleanupLeavesTheOverlay(t *testing.T) {
	m, r := managed(t, obliging, OverlayOptions{})
	if err := m.SetupGlobalOverlay(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.AttachContainer(t.Context(), &LinuxPID{PID: 7}, "web", true); err != nil {
		t.Fatal(err)
	}
	r.take()
	for range 2 {
		if err := m.Cleanup(t.Context()); err != nil {
			t.Error(err)
		}
	}
	r.want(t)
}
