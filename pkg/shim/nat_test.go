package shim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNATConfigDefaults(t *testing.T) {
	want := NATConfig{Enabled: true, HolePunchTimeoutSecs: 15, STUNRefreshIntervalSecs: 60, MaxCandidatePairs: 10}
	if diff := cmp.Diff(want, DefaultNATConfig()); diff != "" {
		t.Errorf("defaults, which ask no server (-want +got):\n%s", diff)
	}
	var read NATConfig
	if err := json.Unmarshal([]byte(`{}`), &read); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, read); diff != "" {
		t.Errorf("an empty document (-want +got):\n%s", diff)
	}
	if err := json.Unmarshal([]byte(`{"enabled":false}`), &read); err != nil || read.Enabled {
		t.Errorf("switched off: %+v, %v", read, err)
	}
	if err := read.Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
}

func TestNATConfigValidate(t *testing.T) {
	relay := func(port uint16, external string, sessions uint32) func(*NATConfig) {
		return func(c *NATConfig) {
			addr, _ := netip.ParseAddrPort(external)
			c.RelayServer = &RelayServer{ListenPort: port, ExternalAddr: addr, MaxSessions: sessions}
		}
	}
	stun := func(addresses ...string) func(*NATConfig) {
		return func(c *NATConfig) {
			for _, address := range addresses {
				c.STUNServers = append(c.STUNServers, STUNServer{Address: address})
			}
		}
	}
	for _, test := range []struct {
		name   string
		change func(*NATConfig)
		says   string // empty: valid
	}{
		{"name, IPv4 and IPv6", stun("stun.example:3478", "192.0.2.1:3478", "[2001:db8::1]:3478"), ""},
		{"no port", stun("stun.example:3478", "stun.example"), "stun_servers[1].address"},
		{"empty port", stun("stun.example:"), "stun_servers[0].address"},
		{"port is no number", stun("stun.example:stun"), "stun_servers[0].address"},
		{"port 0", stun("stun.example:0"), "stun_servers[0].address"},
		{"port beyond 16 bits", stun("stun.example:65536"), "stun_servers[0].address"},
		{"no host", stun(":3478"), "stun_servers[0].address"},
		{"IPv6 without brackets", stun("2001:db8::1:3478"), "stun_servers[0].address"},
		{"TURN without port", func(c *NATConfig) { c.TURNServers = []TURNServer{{Address: "x"}} }, "turn_servers[0].address"},
		{"TURN without a name for us", func(c *NATConfig) { c.TURNServers = []TURNServer{{Address: "x:1"}} }, "turn_servers[0].username"},
		{"no patience", func(c *NATConfig) { c.HolePunchTimeoutSecs = 0 }, "hole_punch_timeout_secs"},
		{"no interval", func(c *NATConfig) { c.STUNRefreshIntervalSecs = 0 }, "stun_refresh_interval_secs"},
		{"no candidates", func(c *NATConfig) { c.MaxCandidatePairs = 0 }, "max_candidate_pairs"},
		{"relay", relay(3478, "192.0.2.1:3478", 1), ""},
		{"relay without port", relay(0, "192.0.2.1:3478", 1), "relay_server.listen_port"},
		{"relay without address", relay(3478, "", 1), "relay_server.external_addr"},
		{"relay without external port", relay(3478, "192.0.2.1:0", 1), "relay_server.external_addr"},
		{"relay at IPv6", relay(3478, "[2001:db8::1]:3478", 1), ""},
		{"relay in IPv6's clothes", relay(3478, "[::ffff:192.0.2.1]:3478", 1), ""},
		{"relay at loopback", relay(3478, "127.0.0.1:3478", 1), "relay_server.external_addr"},
		{"relay at loopback in IPv6's clothes", relay(3478, "[::ffff:127.0.0.1]:3478", 1), "relay_server.external_addr"},
		{"relay everywhere", relay(3478, "0.0.0.0:3478", 1), "relay_server.external_addr"},
		{"relay on a link", relay(3478, "169.254.1.1:3478", 1), "relay_server.external_addr"},
		{"relay on a link by IPv6", relay(3478, "[fe80::1%eth0]:3478", 1), "relay_server.external_addr"},
		{"relay for a group", relay(3478, "224.0.0.1:3478", 1), "relay_server.external_addr"},
		{"relay at a reserved address", relay(3478, "240.0.0.1:3478", 1), "relay_server.external_addr"},
		{"relay on this network", relay(3478, "0.1.2.3:3478", 1), "relay_server.external_addr"},
		{"relay with one port for all", func(c *NATConfig) {
			c.RelayServer = &RelayServer{ListenPort: 443, TLSPort: 443, ExternalAddr: netip.MustParseAddrPort("192.0.2.1:443"), MaxSessions: 1}
		}, "relay_server.tls_port"},
		{"relay for nobody", relay(3478, "192.0.2.1:3478", 0), "relay_server.max_sessions"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := DefaultNATConfig()
			test.change(&config)
			err := config.Validate()
			if (err == nil) != (test.says == "") || err != nil && !strings.HasPrefix(err.Error(), test.says) {
				t.Errorf("got %v, want an error of %q", err, test.says)
			}
		})
	}
}

func TestCredentialIsNotShown(t *testing.T) {
	const secret = "s3cret-of-the-relay"
	config := DefaultNATConfig()
	config.TURNServers = []TURNServer{{Address: "192.0.2.9:3478", Username: "u", Credential: secret}}
	var shown bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		fmt.Fprintf(&shown, verb+verb+verb+"\n", config, &config, config.TURNServers[0].Credential)
	}
	slog.New(slog.NewTextHandler(&shown, nil)).Info("m", "nat", config, "pointer", &config, "secret", config.TURNServers[0].Credential)
	slog.New(slog.NewJSONHandler(&shown, nil)).Info("m", "nat", config, "pointer", &config, "secret", config.TURNServers[0].Credential)
	if strings.Contains(shown.String(), secret) || strings.Contains(shown.String(), fmt.Sprintf("%x", secret)) {
		t.Errorf("the credential shows:\n%s", &shown)
	}
	if string(config.TURNServers[0].Credential) != secret {
		t.Error("the credential is not in the value either")
	}
}

// FuzzNATConfig reads configurations. What is valid must stay so, and the same,
// when it is written and read again.
func FuzzNATConfig(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"enabled":false}`, `{"stun_servers":[{"address":"a:1"},{"address":"[::1]:2","label":"l"}]}`,
		`{"turn_servers":[{"address":"a:1","username":"u","credential":"c"}]}`,
		`{"relay_server":{"listen_port":1,"external_addr":"[::1]:1"}}`, `{"max_candidate_pairs":0}`, `null`, `[]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		var config, again NATConfig
		if json.Unmarshal(doc, &config) != nil || config.Validate() != nil {
			return
		}
		text, err := encode(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if second, err := encode(again); err != nil || !bytes.Equal(text, second) {
			t.Errorf("%s became %s, %v", text, second, err)
		}
		if err := again.Validate(); err != nil {
			t.Errorf("%s is valid once only: %v", text, err)
		}
	})
}
