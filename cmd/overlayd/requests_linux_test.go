package main

import (
	"net/netip"
	"strings"
	"testing"

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
		{"service", with(func(r *shim.AttachContainer) { r.Service = "web" }), shim.CodeUnsupported, `service "web"`},
		{"process", with(func(r *shim.AttachContainer) { r.Handle = &shim.LinuxPID{PID: 1} }), shim.CodeUnsupported, "linux_pid"},
		{"guest", with(func(r *shim.AttachContainer) { r.Handle = &shim.GuestManaged{ID: "g"} }), shim.CodeUnsupported, "guest_managed"},
		{"Windows container", &shim.DetachContainer{Handle: &shim.WindowsContainer{ContainerID: "c"}}, shim.CodeUnsupported, "windows_container"},
		{"check of what is not there", &shim.CheckContainer{Handle: pod.handle}, shim.CodeNotFound, "pod"},
		{"check without a namespace", &shim.CheckContainer{Handle: &bare}, shim.CodeInvalid, "no network namespace"},
	}
	for _, request := range []shim.Request{
		&shim.SetLocalNodeID{}, &shim.SetLocalWGPubkey{}, &shim.SetupGlobalOverlay{ClusterCIDR: netip.MustParsePrefix("10.0.0.0/8")},
		&shim.TeardownGlobalOverlay{}, &shim.SetupServiceOverlay{Service: "s"}, &shim.TeardownServiceOverlay{Service: "s"},
		&shim.AllocateIP{Service: "s"}, &shim.ReleaseIP{IP: taken.IP}, &shim.AddPeer{}, &shim.RemovePeer{},
		&shim.AddAllowedIP{CIDR: netip.MustParsePrefix("10.0.0.0/8")}, &shim.RemoveAllowedIP{CIDR: netip.MustParsePrefix("10.0.0.0/8")},
		&shim.RegisterDNS{Name: "n", IP: taken.IP}, &shim.UnregisterDNS{Name: "n"}, &shim.NATTick{},
	} {
		tests = append(tests, struct {
			name    string
			request shim.Request
			code    shim.Code
			text    string
		}{request.Op(), request, shim.CodeUnsupported, request.Op()})
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
