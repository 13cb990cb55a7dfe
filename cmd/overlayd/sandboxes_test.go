package main

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
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
		{name: "ZLayer's agent", handle: shim.WindowsContainer{ContainerID: "c"}, err: errors.ErrUnsupported},
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
