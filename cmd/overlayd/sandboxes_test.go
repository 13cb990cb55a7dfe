package main

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

func TestHCNSandbox(t *testing.T) {
	const guid = "aabbccdd-eeff-0011-2233-445566778899"
	tests := []struct {
		name   string
		handle shim.WindowsContainer
		want   *shim.LinuxNetns
		err    error
	}{
		{
			name: "to attach", handle: shim.WindowsContainer{ContainerID: "c", IfName: "eth0", Namespace: guid},
			want: &shim.LinuxNetns{ContainerID: "c", IfName: "eth0", Netns: guid},
		},
		{name: "to detach", handle: shim.WindowsContainer{ContainerID: "c", IfName: "eth0"}, want: &shim.LinuxNetns{ContainerID: "c", IfName: "eth0"}},
		{name: "no container", handle: shim.WindowsContainer{IfName: "eth0", Namespace: guid}, err: dataplane.ErrInvalid},
		{name: "ZLayer's agent", handle: shim.WindowsContainer{ContainerID: "c"}, want: &shim.LinuxNetns{ContainerID: "c", IfName: "eth0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := hcnSandbox(&tt.handle)
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreFields(shim.LinuxNetns{}, "File")); diff != "" || !errors.Is(err, tt.err) {
				t.Errorf("%v, want %v, sandbox (-want +got)\n%s", err, tt.err, diff)
			}
		})
	}
}

// ZLayer's agent detaches by the GUID of a namespace, in the field of a container's
// ID; a runtime's key is never taken for one.
func TestHCNNamespace(t *testing.T) {
	const guid = "aabbccdd-eeff-0011-2233-445566778899"
	tests := []struct {
		name   string
		handle shim.Handle
		want   string
	}{
		{"ZLayer's agent", &shim.WindowsContainer{ContainerID: guid}, guid},
		{"braces and upper case", &shim.WindowsContainer{ContainerID: "{AABBCCDD-EEFF-0011-2233-445566778899}"}, guid},
		{"no GUID", &shim.WindowsContainer{ContainerID: "c"}, ""},
		{"a runtime's", &shim.WindowsContainer{ContainerID: guid, IfName: "eth0"}, ""},
		{"another system's", &shim.LinuxNetns{ContainerID: guid}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, is := hcnNamespace(tt.handle); is != (tt.want != "") || is && got != tt.want {
				t.Errorf("%q, %t; want %q", got, is, tt.want)
			}
		})
	}
}

// What is asked for and answered of a Windows container.
func TestWindowsContainerOnTheWire(t *testing.T) {
	const guid = "aabbccdd-eeff-0011-2233-445566778899"
	reserved := netip.MustParseAddr("10.42.7.9")
	handle := &shim.WindowsContainer{ContainerID: "c", IP: reserved}
	netns, err := hcnSandbox(handle)
	if err != nil {
		t.Fatal(err)
	}
	request, err := attachRequest(netns, &shim.AttachContainer{Handle: handle})
	if err != nil || len(request.IPs) != 1 || request.IPs[0] != reserved {
		t.Errorf("%v; asks for %v", err, request.IPs)
	}
	answer := attachedAnswer(netns, dataplane.Attachment{
		Attachment: attach.Attachment{Addrs: []netip.Addr{reserved}, Namespace: guid},
		Prefixes:   []netip.Prefix{netip.PrefixFrom(reserved, 25)}, Gateways: []netip.Addr{netip.MustParseAddr("10.42.7.1")},
	})
	if answer.NamespaceGUID != guid || answer.Sandbox != guid || answer.IP != reserved || len(answer.Routes) != 1 {
		t.Errorf("answer: %+v", answer)
	}
}

func TestEndpointDNS(t *testing.T) {
	server := netip.MustParseAddr("10.96.0.10")
	d := &daemon{config: Config{Kubernetes: true}}
	asked := &shim.AttachContainer{DNS: &shim.DNSSettings{Nameservers: []netip.Addr{server}, Domain: "d", Search: []string{"default.svc"}}}
	want := attach.DNS{Servers: []netip.Addr{server}, Domain: "d", Search: []string{"default.svc"}}
	if diff := cmp.Diff(want, d.endpointDNS(asked, "default"), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("what the runtime says (-want +got):\n%s", diff)
	}
	if got := d.endpointDNS(&shim.AttachContainer{}, "default"); got.Servers != nil || got.Domain != "" {
		t.Errorf("in Kubernetes, without a word of the runtime's: %+v", got)
	}
}

func TestReach(t *testing.T) {
	tests := []struct {
		name string
		r    shim.AttachContainer
		want dataplane.Reach
	}{
		{"joined", shim.AttachContainer{Handle: &shim.LinuxNetns{}, JoinGlobal: true}, dataplane.All},
		{"cut off", shim.AttachContainer{Handle: &shim.LinuxNetns{}}, dataplane.Itself},
		{"a runtime's on Windows, cut off", shim.AttachContainer{Handle: &shim.WindowsContainer{IfName: "eth0"}}, dataplane.Itself},
		{"ZLayer's agent on Windows", shim.AttachContainer{Handle: &shim.WindowsContainer{}}, dataplane.Anything},
	}
	for _, tt := range tests {
		if got := reachOf(&tt.r); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
