package forwarding_test

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/forwarding"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

// settings are files below /proc/sys/net.
type settings map[string]string

// write makes a tree of files as /proc/sys/net has them.
func (s settings) write(t *testing.T, sysctls string) {
	t.Helper()
	for name, value := range s {
		path := filepath.Join(sysctls, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, sysctls string) settings {
	t.Helper()
	got := settings{}
	err := filepath.WalkDir(sysctls, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		value, err := os.ReadFile(path)
		got[strings.TrimPrefix(path, sysctls+"/")] = strings.TrimSpace(string(value))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// with returns the settings with some changed.
func (s settings) with(changes settings) settings {
	changed := maps.Clone(s)
	maps.Copy(changed, changes)
	return changed
}

// TestEnable works on a tree of files, where nothing follows a toggle.
func TestEnable(t *testing.T) {
	both := settings{"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0", "ipv6/conf/eth0/accept_ra": "1", "ipv6/conf/eth1/accept_ra": "0", "ipv4/conf/eth0/forwarding": "0"}
	on := settings{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/eth0/accept_ra": "1"}
	tests := []struct {
		name         string
		before, want settings
	}{
		{
			name:   "both off, and an interface that listens to routers",
			before: both, want: both.with(settings{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/eth0/accept_ra": "2"}),
		},
		{name: "on already: who listens is not our business", before: on, want: on},
		{name: "a kernel without IPv6", before: settings{"ipv4/ip_forward": "0"}, want: settings{"ipv4/ip_forward": "1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sysctls, state := t.TempDir(), t.TempDir()
			tt.before.write(t, sysctls)
			for range 2 {
				if err := forwarding.Enable(forwarding.Config{Sysctls: sysctls, StateDir: state}); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(tt.want, read(t, sysctls)); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			for range 2 {
				if _, err := forwarding.Restore(sysctls, state); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(tt.before, read(t, sysctls)); diff != "" {
				t.Errorf("settings after Restore (-before +after):\n%s", diff)
			}
			if _, err := os.Stat(forwarding.RecordFile(state)); !os.IsNotExist(err) {
				t.Errorf("the record after Restore: %v", err)
			}
		})
	}
}

// TestRestore changes something between Enable and Restore.
func TestRestore(t *testing.T) {
	before := settings{"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0", "ipv6/conf/eth0/accept_ra": "1"}
	tests := []struct {
		name     string
		meddle   func(t *testing.T, sysctls, state string)
		want     settings
		restored []string
	}{
		{
			name: "nothing", meddle: func(*testing.T, string, string) {}, want: before,
			restored: []string{"net/ipv4/ip_forward = 0", "net/ipv6/conf/all/forwarding = 0", "net/ipv6/conf/eth0/accept_ra = 1"},
		},
		{
			name:     "somebody else's value stays",
			meddle:   func(t *testing.T, sysctls, _ string) { settings{"ipv6/conf/eth0/accept_ra": "0"}.write(t, sysctls) },
			want:     before.with(settings{"ipv6/conf/eth0/accept_ra": "0"}),
			restored: []string{"net/ipv4/ip_forward = 0", "net/ipv6/conf/all/forwarding = 0"},
		},
		{
			name: "what was before the first change counts",
			meddle: func(t *testing.T, sysctls, state string) {
				settings{"ipv6/conf/all/forwarding": "0", "ipv6/conf/eth0/accept_ra": "0", "ipv6/conf/later/forwarding": "0"}.write(t, sysctls)
				if err := forwarding.Enable(forwarding.Config{Sysctls: sysctls, StateDir: state}); err != nil {
					t.Fatal(err)
				}
				settings{"ipv6/conf/eth0/accept_ra": "2", "ipv6/conf/later/forwarding": "1"}.write(t, sysctls)
			},
			want:     before.with(settings{"ipv6/conf/later/forwarding": "1"}),
			restored: []string{"net/ipv4/ip_forward = 0", "net/ipv6/conf/all/forwarding = 0", "net/ipv6/conf/eth0/accept_ra = 1"},
		},
		{
			name: "an interface is gone",
			meddle: func(t *testing.T, sysctls, _ string) {
				if err := os.RemoveAll(filepath.Join(sysctls, "ipv6/conf/eth0")); err != nil {
					t.Fatal(err)
				}
			},
			want:     settings{"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0"},
			restored: []string{"net/ipv4/ip_forward = 0", "net/ipv6/conf/all/forwarding = 0"},
		},
		{
			name: "the machine was started again, with forwarding configured",
			meddle: func(t *testing.T, _, state string) {
				record := `{"boot":"another","settings":[{"name":"ipv4/ip_forward","was":"0","is":"1"}]}`
				if err := os.WriteFile(forwarding.RecordFile(state), []byte(record), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			want: settings{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/eth0/accept_ra": "2"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sysctls, state := t.TempDir(), t.TempDir()
			before.write(t, sysctls)
			if err := forwarding.Enable(forwarding.Config{Sysctls: sysctls, StateDir: state}); err != nil {
				t.Fatal(err)
			}
			tt.meddle(t, sysctls, state)
			restored, err := forwarding.Restore(sysctls, state)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.restored, restored); diff != "" {
				t.Errorf("restored (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, read(t, sysctls)); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKernelAsItWas works on the kernel's own settings, of which a toggle changes
// more than itself: after Restore all of them are what they were.
func TestKernelAsItWas(t *testing.T) {
	tests := []struct {
		name   string
		before settings
	}{
		{name: "a host that forwards nothing"},
		{
			name: "interfaces that differ",
			before: settings{
				"ipv4/conf/one/forwarding": "1", "ipv6/conf/two/forwarding": "1", "ipv4/conf/all/accept_redirects": "0",
				"ipv6/conf/one/accept_ra": "0", "ipv6/conf/two/accept_ra": "2",
			},
		},
		{name: "one family only", before: settings{"ipv6/conf/all/forwarding": "1"}},
		{name: "a host that forwards", before: settings{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ns, state := netlab.TestNS(t, fmt.Sprint("host-", i)), t.TempDir()
			out, err := ns.Command(t.Context(), "sh", "-c", "ip link add one type veth peer two; sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0").CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			err = ns.Do(func() error {
				const sysctls = "/proc/sys/net"
				tt.before.write(t, sysctls)
				before := kernelSettings(t)
				if err := forwarding.Enable(forwarding.Config{Sysctls: sysctls, StateDir: state}); err != nil {
					return err
				}
				if now := kernelSettings(t); now["ipv4/conf/one/forwarding"] != "1" || now["ipv6/conf/one/forwarding"] != "1" {
					t.Error("it does not forward")
				}
				if _, err := forwarding.Restore(sysctls, state); err != nil {
					return err
				}
				if diff := cmp.Diff(before, kernelSettings(t)); diff != "" {
					t.Errorf("settings (-before +after):\n%s", diff)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// kernelSettings reads the thread's network namespace.
func kernelSettings(t *testing.T) settings {
	t.Helper()
	found := settings{}
	for _, pattern := range []string{"ipv4/ip_forward", "ipv4/conf/*/*", "ipv6/conf/*/*"} {
		paths, err := filepath.Glob("/proc/sys/net/" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if value, err := os.ReadFile(path); err == nil { // stable_secret cannot be read before it is set
				found[strings.TrimPrefix(path, "/proc/sys/net/")] = strings.TrimSpace(string(value))
			}
		}
	}
	return found
}

// Without a record nothing may be changed: what was could not be put back.
func TestEnableChangesNothingWithoutARecord(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		spoil      func(state string) error
	}{
		{name: "no state directory", want: "keep the host's kernel settings: ", spoil: os.Remove},
		{name: "a record that is cut short", want: "sysctls.json: unexpected end", spoil: func(state string) error {
			return os.WriteFile(forwarding.RecordFile(state), []byte(`{"boot":`), 0o600)
		}},
		{name: "a record of something else", want: `"core/somaxconn" is no setting`, spoil: func(state string) error {
			return os.WriteFile(forwarding.RecordFile(state), []byte(`{"settings":[{"name":"core/somaxconn"}]}`), 0o600)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sysctls, state := t.TempDir(), t.TempDir()
			before := settings{"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0"}
			before.write(t, sysctls)
			if err := tt.spoil(state); err != nil {
				t.Fatal(err)
			}
			if err := forwarding.Enable(forwarding.Config{Sysctls: sysctls, StateDir: state}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if diff := cmp.Diff(before, read(t, sysctls)); diff != "" {
				t.Errorf("settings (-before +after):\n%s", diff)
			}
		})
	}
}

func TestEnableSaysWhatToMount(t *testing.T) {
	err := forwarding.Enable(forwarding.Config{Sysctls: filepath.Join(t.TempDir(), "missing"), StateDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "missing/ipv4/ip_forward") {
		t.Errorf("error %v does not name the file", err)
	}
}
