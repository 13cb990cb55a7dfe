package main

import (
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

func TestRequestsThatAreRefused(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	client, pod := n.client(), newSandbox(t, "pod")
	taken := newSandbox(t, "taken").attach(t, client)
	with := func(change func(*shim.AttachContainer)) *shim.AttachContainer {
		request := pod.request()
		change(request)
		return request
	}
	bare := *pod.handle
	bare.File = nil
	nameless := *pod.handle
	nameless.ContainerID = ""
	tests := []struct {
		name    string
		request shim.Request
		code    shim.Code
		text    string
	}{
		{"no namespace", with(func(r *shim.AttachContainer) { r.Handle = &bare }), shim.CodeInvalid, "no network namespace came with the request"},
		{"no container ID", with(func(r *shim.AttachContainer) { r.Handle = &nameless }), shim.CodeInvalid, "without container ID"},
		{"MAC of five bytes", with(func(r *shim.AttachContainer) { r.MAC = "02:00:00:00:01" }), shim.CodeInvalid, "not six bytes"},
		{"MAC of a group", with(func(r *shim.AttachContainer) { r.MAC = "03:00:00:00:00:01" }), shim.CodeInvalid, "03:00:00:00:00:01"},
		{"MTU above the overlay's", with(func(r *shim.AttachContainer) { r.MTU = 9000 }), shim.CodeInvalid, "MTU 9000"},
		{"address outside", with(func(r *shim.AttachContainer) { r.IPs = addrs("10.99.0.1") }), shim.CodeInvalid, "10.99.0.1"},
		{"address taken", with(func(r *shim.AttachContainer) { r.IPs = []netip.Addr{taken.IP} }), shim.CodeConflict, taken.IP.String()},
		{"service that is cut off and shared", with(func(r *shim.AttachContainer) { r.Service, r.Mode, r.JoinGlobal = "web", shim.ModeShared, false }), shim.CodeInvalid, "only a dedicated one can"},
		{"cut off without a service", with(func(r *shim.AttachContainer) { r.JoinGlobal = false }), shim.CodeInvalid, "join_global"},
		{"process 0", with(func(r *shim.AttachContainer) { r.Handle = &shim.LinuxPID{} }), shim.CodeInvalid, "process 0"},
		{"process that is not there", with(func(r *shim.AttachContainer) { r.Handle = &shim.LinuxPID{PID: math.MaxInt32} }), shim.CodeNotFound, "open network namespace"},
		{"guest without a name", with(func(r *shim.AttachContainer) { r.Handle = &shim.GuestManaged{} }), shim.CodeInvalid, "name of a guest"},
		{"guest of a dedicated service", with(func(r *shim.AttachContainer) {
			r.Handle, r.Service, r.Mode = &shim.GuestManaged{ID: "g"}, "web", shim.ModeDedicated
		}), shim.CodeInvalid, "dedicated service"},
		{"Windows container", &shim.DetachContainer{Handle: &shim.WindowsContainer{ContainerID: "c"}}, shim.CodeUnsupported, "windows_container"},
		{"check of what is not there", &shim.CheckContainer{Handle: pod.handle}, shim.CodeNotFound, "pod"},
		{"check without a namespace", &shim.CheckContainer{Handle: &bare}, shim.CodeInvalid, "no network namespace"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := client.Call(t.Context(), tt.request)
			if codeOfCall(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("answer %v: %v, want code %s with %q", codeOfCall(err), err, tt.code, tt.text)
			}
		})
	}
	if err := client.Detach(t.Context(), pod.handle); err != nil {
		t.Errorf("detach of what is not there: %v", err)
	}
	if left := n.status().Attachments; len(left) != 1 {
		t.Errorf("attachments after all that: %+v", left)
	}
	n.audit()
}

func TestRequestedAddressAndMAC(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	request := newSandbox(t, "pod").request()
	request.IPs, request.MAC, request.MTU = addrs("fd20:0:0:1::77", "10.20.1.77"), "02:00:00:00:00:77", 1300
	attached, err := n.client().Attach(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if attached.Addresses[0].String() != "10.20.1.77/32" || attached.Addresses[1].String() != "fd20:0:0:1::77/128" || attached.MAC != request.MAC || attached.MTU != 1300 {
		t.Errorf("attached: %+v", attached)
	}
	n.audit()
}

func TestSubscribersAreServed(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	answer, err := n.client().Call(t.Context(), &shim.Subscribe{})
	if err != nil {
		t.Fatal(err)
	}
	if snapshot, ok := answer.(*shim.StatusSnapshot); !ok || snapshot.Node != "node-a" {
		t.Errorf("answer %+v", answer)
	}
}

// peerSpec is a peer that no node is.
func peerSpec(key string, allowed ...string) shim.PeerSpec {
	return shim.PeerSpec{PublicKey: key, Endpoint: "192.0.2.9:1000", AllowedIPs: prefixes(allowed...), PersistentKeepaliveSecs: 25}
}

// TestEveryOperationOfTheOverlay asks for each once or twice as it should be
// asked, and then in a way that has to be refused.
func TestEveryOperationOfTheOverlay(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	client, before := n.client(), n.status()
	node := "10.20.1.1"
	dedicated := shim.Scope{Service: "bank"}
	outside := peerSpec(keyB, "192.0.2.0/24")
	for _, tc := range []struct {
		good   []shim.Request
		bad    shim.Request
		code   shim.Code
		reason string
	}{
		{[]shim.Request{&shim.SetLocalNodeID{NodeID: 7}}, nil, "", ""},
		{
			[]shim.Request{&shim.SetLocalWGPubkey{Pubkey: before.PublicKey}, &shim.SetLocalWGPubkey{Pubkey: keyA}},
			&shim.SetLocalWGPubkey{Pubkey: "key"}, shim.CodeInvalid, "pubkey",
		},
		{
			[]shim.Request{&shim.SetupServiceOverlay{Service: "web", Mode: shim.ModeAuto}, &shim.SetupServiceOverlay{Service: "bank", Mode: shim.ModeDedicated}, &shim.SetupServiceOverlay{Service: "bank", Mode: shim.ModeAuto}},
			&shim.SetupServiceOverlay{Service: "web", Mode: shim.ModeDedicated}, shim.CodeConflict, "it is shared on this node",
		},
		{
			[]shim.Request{&shim.AllocateIP{Service: "bank", Owner: "me"}, &shim.AllocateIP{Service: "web"}},
			&shim.ReleaseIP{IP: netip.MustParseAddr("10.20.1.2"), Owner: "you"}, shim.CodeConflict, "it is reserved for",
		},
		{[]shim.Request{&shim.ReleaseIP{IP: netip.MustParseAddr("10.20.1.2")}, &shim.ReleaseIP{IP: netip.MustParseAddr("192.0.2.1")}}, nil, "", ""},
		{
			[]shim.Request{&shim.AddPeer{PeerSpec: peerSpec(keyA, "10.20.9.0/24")}, &shim.AddPeer{PeerSpec: peerSpec(keyA, "10.20.9.0/24"), Scope: dedicated}},
			&shim.AddPeer{PeerSpec: peerSpec(keyB, "10.20.9.7/32")}, shim.CodeConflict, "overlaps",
		},
		{nil, &shim.AddPeer{PeerSpec: outside}, shim.CodeInvalid, "outside the cluster"},
		{nil, &shim.AddPeer{PeerSpec: peerSpec(keyB)}, shim.CodeInvalid, "no allowed IP"},
		{nil, &shim.AddPeer{PeerSpec: peerSpec(keyB, "10.20.8.0/24"), Scope: shim.Scope{Service: "web"}}, shim.CodeNotFound, "no device"},
		{nil, &shim.AddPeer{PeerSpec: shim.PeerSpec{PublicKey: keyB, AllowedIPs: prefixes("10.20.8.0/24"), PersistentKeepaliveSecs: 65536}}, shim.CodeInvalid, "persistent_keepalive_secs"},
		{
			[]shim.Request{&shim.AddAllowedIP{Pubkey: keyA, CIDR: prefixes("10.20.8.0/24")[0]}, &shim.AddAllowedIP{Pubkey: keyA, CIDR: prefixes("10.20.8.0/24")[0], Scope: dedicated}},
			&shim.AddAllowedIP{Pubkey: keyB, CIDR: prefixes("10.20.7.0/24")[0]}, shim.CodeNotFound, "no such peer",
		},
		{
			[]shim.Request{&shim.RemoveAllowedIP{Pubkey: keyA, CIDR: prefixes("10.20.8.0/24")[0]}, &shim.RemoveAllowedIP{Pubkey: keyB, CIDR: prefixes("10.20.8.0/24")[0]}},
			&shim.AddAllowedIP{Pubkey: keyA, CIDR: prefixes(node + "/32")[0]}, shim.CodeConflict, "overlaps",
		},
		{[]shim.Request{&shim.RemovePeer{Pubkey: keyA}, &shim.RemovePeer{Pubkey: keyA, Scope: dedicated}, &shim.RemovePeer{Pubkey: keyA}}, nil, "", ""},
		{
			[]shim.Request{&shim.RegisterDNS{Name: "web.example", IP: netip.MustParseAddr(node)}},
			&shim.RegisterDNS{Name: "a name", IP: netip.MustParseAddr(node)}, shim.CodeInvalid, "it is no name",
		},
		{[]shim.Request{&shim.UnregisterDNS{Name: "web.example"}, &shim.UnregisterDNS{Name: "web.example"}}, nil, "", ""},
		{[]shim.Request{&shim.TeardownServiceOverlay{Service: "web"}, &shim.TeardownServiceOverlay{Service: "bank"}, &shim.TeardownServiceOverlay{Service: "bank"}}, nil, "", ""},
		{[]shim.Request{&shim.ListGuests{}, &shim.ListDNS{}, &shim.Status{}, &shim.Ready{}, &shim.NATTick{}}, nil, "", ""},
	} {
		for _, request := range tc.good {
			if _, err := client.Call(t.Context(), request); err != nil {
				t.Errorf("%s %+v: %v", request.Op(), request, err)
			}
		}
		if tc.bad != nil {
			wantRefused(t, client, tc.bad, tc.code, tc.reason)
		}
	}
	after := n.status()
	if after.PeerCount != 0 || after.ServiceCount != 0 || len(after.Segments) != 1 {
		t.Errorf("left afterwards: %+v", after)
	}
}

// TestNothingIsAnsweredBeforeTheOverlayIsUp asks a daemon whose agent has not
// spoken yet. Each may be asked again later.
func TestNothingIsAnsweredBeforeTheOverlayIsUp(t *testing.T) {
	client := newAgentNode(t).client()
	addr := netip.MustParseAddr("10.20.1.7")
	for _, request := range []shim.Request{
		&shim.AttachContainer{Handle: &shim.LinuxPID{PID: 1}, JoinGlobal: true}, &shim.DetachContainer{Handle: &shim.LinuxPID{PID: 1}}, &shim.CheckContainer{Handle: &shim.LinuxPID{PID: 1}},
		&shim.AttachContainer{Handle: &shim.GuestManaged{ID: "vm"}, JoinGlobal: true}, &shim.DetachContainer{Handle: &shim.GuestManaged{ID: "vm"}}, &shim.ListGuests{},
		&shim.GCContainers{Valid: []shim.Attachment{}}, &shim.Ready{},
		&shim.SetupServiceOverlay{Service: "web"}, &shim.TeardownServiceOverlay{Service: "web"},
		&shim.AllocateIP{Service: "web"}, &shim.ReleaseIP{IP: addr},
		&shim.AddPeer{PeerSpec: peerSpec(keyA, "10.20.9.0/24")}, &shim.RemovePeer{Pubkey: keyA},
		&shim.AddAllowedIP{Pubkey: keyA, CIDR: prefixes("10.20.9.0/24")[0]}, &shim.RemoveAllowedIP{Pubkey: keyA, CIDR: prefixes("10.20.9.0/24")[0]},
	} {
		wantRefused(t, client, request, shim.CodeUnavailable, "no agent has set the overlay up yet")
	}
	for _, request := range []shim.Request{&shim.Status{}, &shim.ListDNS{}, &shim.SetLocalNodeID{}, &shim.SetLocalWGPubkey{Pubkey: keyA}, &shim.RegisterDNS{Name: "n", IP: addr}} {
		if _, err := client.Call(t.Context(), request); err != nil {
			t.Errorf("%s: %v", request.Op(), err)
		}
	}
}

// TestServicesOverTheWire is among others about services that got one subnet
// elsewhere, and about answers that changed when they were repeated.
func TestServicesOverTheWire(t *testing.T) {
	n := newSingle(t)
	n.startReady()
	client := n.client()
	shared := mustCall[*shim.ServiceOverlay](t, client, &shim.SetupServiceOverlay{Service: "web", Mode: shim.ModeShared})
	if shared.Mode != shim.ModeShared || shared.WGPublicKey != "" || shared.WGPort != 0 || shared.Subnet.IsValid() || shared.OverlayIP.IsValid() {
		t.Errorf("shared service: %+v", shared)
	}
	seen := map[netip.Prefix]string{}
	for _, name := range []string{"bank", "vault", "bank"} {
		set := &shim.SetupServiceOverlay{Service: name, Mode: shim.ModeDedicated}
		first, again := mustCall[*shim.ServiceOverlay](t, client, set), mustCall[*shim.ServiceOverlay](t, client, set)
		if diff := cmp.Diff(first, again, compareConfigs, compareAddrs); diff != "" {
			t.Errorf("service %s set up again (-first +again):\n%s", name, diff)
		}
		if holder, taken := seen[first.Subnet]; taken && holder != name || !first.Subnet.Contains(first.OverlayIP) {
			t.Errorf("service %s has %s in subnet %s, which is also that of %q", name, first.OverlayIP, first.Subnet, holder)
		}
		seen[first.Subnet] = name
	}
	sandboxes := map[string]*shim.Attached{}
	for _, name := range []string{"web", "bank", "vault"} {
		request := newSandbox(t, name).request()
		request.Service, request.JoinGlobal = name, name != "vault"
		sandboxes[name] = mustCall[*shim.Attached](t, client, request)
		if sandboxes[name].Segment != name {
			t.Errorf("sandbox of %s is on segment %s", name, sandboxes[name].Segment)
		}
	}
	status := n.status()
	if status.ServiceCount != 3 || len(status.DedicatedServices) != 2 || status.DedicatedServices[0].Attachments != 1 || !status.DedicatedServices[0].JoinGlobal || status.DedicatedServices[1].JoinGlobal {
		t.Errorf("status: %+v", status.DedicatedServices)
	}
	n.audit()
}
