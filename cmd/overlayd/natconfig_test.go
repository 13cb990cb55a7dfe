package main

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

func TestCredentialsAreReadFromFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"good": " s3cret \n", "empty": "\n", "large": strings.Repeat("s", credentialLimit+1)} {
		write(t, filepath.Join(dir, name), text)
	}
	for _, tc := range []struct{ file, want, refused string }{
		{file: "good", want: "s3cret"},
		{file: "empty", refused: "it is empty"},
		{file: "large", refused: "more than 4096 bytes"},
		{file: "none", refused: "credential_file: open "},
	} {
		t.Run(tc.file, func(t *testing.T) {
			path := filepath.Join(dir, tc.file)
			config, err := load(t, agentKeys, "--nat-turn-servers=address=192.0.2.9:3478;username=us,address=turn.example:3478;username=me;credential_file="+path)
			if tc.refused != "" {
				if err == nil || !strings.Contains(err.Error(), "nat.turn_servers[1].credential_file: ") || !strings.Contains(err.Error(), tc.refused) || strings.Contains(err.Error(), "sss") {
					t.Errorf("error %v, want one that says %s", err, tc.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := []shim.TURNServer{{Address: "192.0.2.9:3478", Username: "us"}, {Address: "turn.example:3478", Username: "me", Credential: shim.Secret(tc.want)}}
			if diff := cmp.Diff(want, config.NAT.TURNServers); diff != "" {
				t.Errorf("servers (-want +got):\n%s", diff)
			}
		})
	}
}

// everyNAT sets all that the wire has.
func everyNAT() shim.NATConfig {
	return shim.NATConfig{
		Enabled: true, STUNServers: []shim.STUNServer{{Address: "stun.example:3478", Label: "ours"}},
		TURNServers:          []shim.TURNServer{{Address: "turn.example:3478", Username: "me", Credential: "s3cret", Region: "eu"}},
		HolePunchTimeoutSecs: 5, STUNRefreshIntervalSecs: 30, MaxCandidatePairs: 4,
		RelayServer: &shim.RelayServer{ListenPort: 3478, ExternalAddr: netip.MustParseAddrPort("[::ffff:192.0.2.1]:3479"), MaxSessions: 7},
	}
}

func TestNATConfigOf(t *testing.T) {
	want := dataplane.NATConfig{
		Enabled: true, STUNServers: []string{"stun.example:3478"},
		TURNServers:      []dataplane.TURNServer{{Address: "turn.example:3478", Username: "me", Credential: "s3cret", Region: "eu"}},
		HolePunchTimeout: 5 * time.Second, STUNRefresh: 30 * time.Second, MaxCandidatePairs: 4,
		Relay: &dataplane.RelayConfig{ListenPort: 3478, External: netip.MustParseAddrPort("192.0.2.1:3479"), MaxSessions: 7},
	}
	if diff := cmp.Diff(want, natConfigOf(everyNAT()), compareConfigs); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	beyond := everyNAT()
	beyond.HolePunchTimeoutSecs, beyond.STUNRefreshIntervalSecs, beyond.MaxCandidatePairs, beyond.RelayServer.MaxSessions = 1<<32-1, 1<<32-1, 1<<32-1, 1<<32-1
	want.HolePunchTimeout, want.STUNRefresh, want.MaxCandidatePairs, want.Relay.MaxSessions = 24*time.Hour, 24*time.Hour, maxPairs, maxRelaySessions
	if diff := cmp.Diff(want, natConfigOf(beyond), compareConfigs); diff != "" {
		t.Errorf("beyond all bounds (-want +got):\n%s", diff)
	}
	want = dataplane.NATConfig{Enabled: true, HolePunchTimeout: 15 * time.Second, STUNRefresh: time.Minute, MaxCandidatePairs: 10}
	if diff := cmp.Diff(want, natConfigOf(shim.DefaultNATConfig())); diff != "" {
		t.Errorf("defaults, which ask no server (-want +got):\n%s", diff)
	}
}

func TestNATUnderAnAgent(t *testing.T) {
	said := shim.DefaultNATConfig()
	said.HolePunchTimeoutSecs, said.STUNServers = 9, []shim.STUNServer{{Address: "agent.example:1"}}
	for _, tc := range []struct {
		name  string
		setup agentSetup
		want  func(*shim.NATConfig) // of what the node's own configuration says
	}{
		{"says nothing", agentSetup{}, func(*shim.NATConfig) {}},
		{"says no", agentSetup{NATOff: true}, func(c *shim.NATConfig) { c.Enabled = false }},
		{"names no servers", agentSetup{NAT: new(shim.DefaultNATConfig())}, func(c *shim.NATConfig) {
			c.HolePunchTimeoutSecs, c.STUNRefreshIntervalSecs, c.MaxCandidatePairs = 15, 60, 10
		}},
		{"names one", agentSetup{NAT: &said}, func(c *shim.NATConfig) {
			c.HolePunchTimeoutSecs, c.STUNRefreshIntervalSecs, c.MaxCandidatePairs, c.STUNServers = 9, 60, 10, said.STUNServers
		}},
		{"names one, and says no", agentSetup{NAT: &said, NATOff: true}, func(c *shim.NATConfig) {
			c.HolePunchTimeoutSecs, c.STUNRefreshIntervalSecs, c.MaxCandidatePairs, c.STUNServers, c.Enabled = 9, 60, 10, said.STUNServers, false
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := everyNAT()
			tc.want(&want)
			if diff := cmp.Diff(want, Config{NAT: everyNAT()}.natOf(tc.setup), compareConfigs); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
		})
	}
}

// TestExternalAddressWithoutAPort is what deploy/relay.yaml gives: a node's address
// as Kubernetes writes it.
func TestExternalAddressWithoutAPort(t *testing.T) {
	for name, test := range map[string]struct{ external, want string }{
		"IPv4":             {"192.0.2.1", "192.0.2.1:3478"},
		"IPv6":             {"2001:db8::1", "[2001:db8::1]:3478"},
		"another port":     {"192.0.2.1:99", "192.0.2.1:99"},
		"another for IPv6": {"[2001:db8::1]:99", "[2001:db8::1]:99"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := load(t, everyKey, "--nat-relay-external-addr="+test.external, "--nat-relay-listen-port=3478")
			if err != nil {
				t.Fatal(err)
			}
			if got := got.NAT.RelayServer.ExternalAddr.String(); got != test.want {
				t.Errorf("others reach the relay at %s, want %s", got, test.want)
			}
		})
	}
}
