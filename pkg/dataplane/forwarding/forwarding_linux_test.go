package forwarding_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/forwarding"
)

// TestEnable works on a tree of files as /proc/sys/net has them.
func TestEnable(t *testing.T) {
	tests := []struct {
		name         string
		before, want map[string]string
	}{
		{
			name:   "both off, and an interface that listens to routers",
			before: map[string]string{"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0", "ipv6/conf/eth0/accept_ra": "1", "ipv6/conf/eth1/accept_ra": "0"},
			want:   map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/eth0/accept_ra": "2", "ipv6/conf/eth1/accept_ra": "0"},
		},
		{
			name:   "on already: who listens is not our business",
			before: map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/eth0/accept_ra": "1"},
			want:   map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/eth0/accept_ra": "1"},
		},
		{
			name:   "a kernel without IPv6",
			before: map[string]string{"ipv4/ip_forward": "0"},
			want:   map[string]string{"ipv4/ip_forward": "1"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sysctls := t.TempDir()
			for name, value := range tt.before {
				path := filepath.Join(sysctls, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := forwarding.Enable(sysctls); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for name := range tt.before {
				value, err := os.ReadFile(filepath.Join(sysctls, name))
				if err != nil {
					t.Fatal(err)
				}
				got[name] = strings.TrimSpace(string(value))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEnableSaysWhatToMount(t *testing.T) {
	err := forwarding.Enable(filepath.Join(t.TempDir(), "missing"))
	if err == nil || !strings.Contains(err.Error(), "missing/ipv4/ip_forward") {
		t.Errorf("error %v does not name the file", err)
	}
}
