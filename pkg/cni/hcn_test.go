package cni

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

func TestHCNSandbox(t *testing.T) {
	const guid = "aabbccdd-eeff-0011-2233-445566778899"
	tests := []struct {
		name, netns string
		wantErr     string
	}{
		{name: "containerd's", netns: guid},
		{name: "in braces", netns: "{" + guid + "}"},
		{name: "in upper case", netns: strings.ToUpper(guid)},
		{name: "nothing", wantErr: "not the GUID"},
		{name: "a path of Linux", netns: "/var/run/netns/cni-1", wantErr: "not the GUID"},
		{name: "zeros", netns: "00000000-0000-0000-0000-000000000000", wantErr: "not the GUID"},
		{name: "the first container of an old runtime", netns: "none", wantErr: "HNS version 1"},
		{name: "the second container of an old runtime", netns: "container:" + strings.Repeat("a", 64), wantErr: "HNS version 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := hcnSandbox(&skel.CmdArgs{ContainerID: "c", IfName: "eth0", Netns: tt.netns})
			if tt.wantErr == "" {
				want := &shim.WindowsContainer{ContainerID: "c", IfName: "eth0", Namespace: guid}
				if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
					t.Errorf("%v, handle (-want +got)\n%s", err, diff)
				}
				return
			}
			var e *types.Error
			if !errors.As(err, &e) || e.Code != types.ErrInvalidNetNS || !strings.Contains(e.Msg, tt.wantErr) || !strings.Contains(e.Msg, tt.netns) {
				t.Errorf("error %v, want code %d with %q and what was given", err, types.ErrInvalidNetNS, tt.wantErr)
			}
		})
	}
}

// TestHCNKeyNamesNoNamespace: the DEL of a pod's second container must not take
// the first one's attachment.
func TestHCNKeyNamesNoNamespace(t *testing.T) {
	got := hcnKey(&skel.CmdArgs{ContainerID: "c", IfName: "eth0", Netns: "aabbccdd-eeff-0011-2233-445566778899"})
	want := &shim.WindowsContainer{ContainerID: "c", IfName: "eth0"}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("handle (-want +got)\n%s", diff)
	}
}
