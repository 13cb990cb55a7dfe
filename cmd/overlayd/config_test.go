package main

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// load runs loadConfig on a file with the given text (none if empty) and the
// given command line.
func load(t testing.TB, text string, args ...string) (Config, error) {
	t.Helper()
	path := ""
	if text != "" {
		path = filepath.Join(t.TempDir(), "overlayd.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	addFlags(flags)
	if err := flags.Parse(args); err != nil {
		return Config{}, err
	}
	return loadConfig(path, flags, "host-name")
}

// pathHere is an absolute path of Unix as it is on this system, and socketHere a
// socket called name.
func pathHere(path string) string {
	if runtime.GOOS == "windows" {
		return "C:" + filepath.FromSlash(path)
	}
	return path
}

func socketHere(name string) string {
	if runtime.GOOS == "windows" {
		return `\\.\pipe\` + name
	}
	return "/run/" + name + ".sock"
}

var compareConfigs = cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})

// windowsStateDir is the default of stateDir on Windows.
const windowsStateDir = `C:\ProgramData\zlayer`

func TestConfigDefaults(t *testing.T) {
	got, err := load(t, "", "--cluster-cidrs=10.20.0.0/16", "--nodes-file="+pathHere("/n"))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		NodeName: "host-name", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
		SliceBits: SliceBits{IPv4: 24, IPv6: 64}, NodesFile: pathHere("/n"),
		Socket: "/run/zlayer/overlayd.sock", StateDir: "/var/lib/zlayer", SysctlDir: sysctlDir(runtime.GOOS),
		ListenPort: 51820, Backend: wireguard.Auto, Masquerade: true, NAT: shim.DefaultNATConfig(),
		DNS:            dataplane.DNSConfig{Enabled: true, Zone: "overlay.local", Ports: []int{53, 15353}, HostRoot: hostRoot(runtime.GOOS), RateLimit: 10000},
		MetricsAddress: netip.MustParseAddrPort("127.0.0.1:9551"),
		LogLevel:       slog.LevelInfo, LogFormat: "text",
	}
	if runtime.GOOS == "windows" {
		want.Socket, want.StateDir = `\\.\pipe\zlayer-overlayd`, windowsStateDir
	}
	if diff := cmp.Diff(want, got, compareConfigs); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

// everyKey sets every key of the file to something else than its default.
var everyKey = `
nodeName: node-a
clusterCIDRs: [10.20.0.0/16, "fd20::/48"]
sliceBits:
  ipv4: 26
  ipv6: 72
nodesFile: ` + pathHere("/etc/zlayer/nodes.yaml") + `
socket: ` + socketHere("a") + `
stateDir: ` + pathHere("/state") + `
sysctlDir: ` + pathHere("/host/proc/sys/net") + `
cniBinDir: ` + pathHere("/opt/cni/bin") + `
cniConfDir: ` + pathHere("/etc/cni/net.d") + `
listenPort: 40000
backend: userspace
mtu: 1300
masquerade: false
masqueradeExclusions: [192.168.0.0/16]
nat:
  enabled: false
  stun_servers: ["stun.example:3478", {address: "[2001:db8::1]:3478", label: ours}]
  turn_servers:
  - {address: "turn.example:3478", username: me, region: eu}
  - {address: "192.0.2.9:3478", username: us}
  hole_punch_timeout_secs: 5
  stun_refresh_interval_secs: 30
  max_candidate_pairs: 4
  relay_server:
    listen_port: 3478
    external_addr: 198.51.100.1:3479
    tls_port: 5349
    max_sessions: 7
    forbidden: [10.96.0.0/12]
dns:
  enabled: false
  zone: Names.Example.
  ports: [1053]
  upstreams: [192.0.2.53, "[2001:db8::53]:5353"]
  hostRoot: ` + pathHere("/host") + `
  rateLimit: 0
metricsAddress: "[::1]:9000"
handover: true
logLevel: debug
logFormat: json
`

// kubernetesKeys sets the keys that exclude the nodes file.
var kubernetesKeys = `
nodeName: node-a
kubernetes: true
kubeconfig: ` + pathHere("/etc/zlayer/kubeconfig") + `
endpoint: "[2001:db8::1]:51820"
`

func TestConfigOfKubernetes(t *testing.T) {
	got, err := load(t, kubernetesKeys, "--socket="+socketHere("s"))
	if err != nil {
		t.Fatal(err)
	}
	want := defaultConfig("node-a")
	want.Kubernetes, want.Kubeconfig, want.Endpoint, want.Socket = true, pathHere("/etc/zlayer/kubeconfig"), "[2001:db8::1]:51820", socketHere("s")
	if diff := cmp.Diff(want, got, compareConfigs); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

// agentKeys sets the key that excludes the nodes file and a cluster of our own.
const agentKeys = `
nodeName: node-a
agent: true
endpoint: 192.0.2.1:51820
`

func TestConfigOfAnAgent(t *testing.T) {
	for _, args := range [][]string{nil, {"--endpoint="}} {
		got, err := load(t, agentKeys, append(args, "--socket="+socketHere("s"))...)
		if err != nil {
			t.Fatal(err)
		}
		want := defaultConfig("node-a")
		want.Agent, want.Socket = true, socketHere("s")
		if args == nil {
			want.Endpoint = "192.0.2.1:51820"
		}
		if diff := cmp.Diff(want, got, compareConfigs); diff != "" {
			t.Errorf("config (-want +got):\n%s", diff)
		}
	}
}

func TestConfigFileSetsEveryKey(t *testing.T) {
	got, err := load(t, everyKey)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		NodeName: "node-a", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd20::/48")},
		SliceBits: SliceBits{IPv4: 26, IPv6: 72}, NodesFile: pathHere("/etc/zlayer/nodes.yaml"),
		Socket: socketHere("a"), StateDir: pathHere("/state"),
		SysctlDir: pathHere("/host/proc/sys/net"), CNIBinDir: pathHere("/opt/cni/bin"), CNIConfDir: pathHere("/etc/cni/net.d"),
		ListenPort: 40000, Backend: wireguard.Userspace, MTU: 1300,
		MasqueradeExclusions: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")},
		NAT: shim.NATConfig{
			STUNServers:          []shim.STUNServer{{Address: "stun.example:3478"}, {Address: "[2001:db8::1]:3478", Label: "ours"}},
			TURNServers:          []shim.TURNServer{{Address: "turn.example:3478", Username: "me", Region: "eu"}, {Address: "192.0.2.9:3478", Username: "us"}},
			HolePunchTimeoutSecs: 5, STUNRefreshIntervalSecs: 30, MaxCandidatePairs: 4,
			RelayServer: &shim.RelayServer{ListenPort: 3478, ExternalAddr: netip.MustParseAddrPort("198.51.100.1:3479"), TLSPort: 5349, MaxSessions: 7, Forbidden: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}},
		},
		TURNCredentialFiles: []string{"", ""},
		DNS: dataplane.DNSConfig{
			Zone: "names.example", Ports: []int{1053},
			Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("[2001:db8::53]:5353")},
			HostRoot:  pathHere("/host"),
		},
		MetricsAddress: netip.MustParseAddrPort("[::1]:9000"),
		Handover:       true,
		LogLevel:       slog.LevelDebug, LogFormat: "json",
	}
	if diff := cmp.Diff(want, got, compareConfigs); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestFlagsOverrideTheFile(t *testing.T) {
	got, err := load(t, everyKey,
		"--node-name=flagged", "--cluster-cidrs=10.30.0.0/16", "--cluster-cidrs=fd30::/48", "--slice-bits-ipv4=25", "--slice-bits-ipv6=80",
		"--nodes-file="+pathHere("/f"), "--socket="+socketHere("f"), "--state-dir="+pathHere("/fs"), "--sysctl-dir="+pathHere("/s"), "--cni-bin-dir=", "--cni-conf-dir="+pathHere("/c"), "--listen-port=4", "--backend=kernel", "--mtu=1400", "--masquerade=true",
		"--nat-enabled=true", "--nat-stun-servers=a.example:1,address=b.example:2;label=b", "--nat-turn-servers=address=c.example:3;username=you", "--nat-hole-punch-timeout-secs=6",
		"--nat-stun-refresh-interval-secs=31", "--nat-max-candidate-pairs=5", "--nat-relay-listen-port=1", "--nat-relay-external-addr=[2001:db8::2]:2", "--nat-relay-tls-port=9", "--nat-relay-max-sessions=8", "--nat-relay-forbidden=fd96::/112",
		"--dns-enabled=true", "--dns-zone=flagged.example", "--dns-ports=5300,5301", "--dns-ports=5302", "--dns-upstreams=", "--dns-host-root="+pathHere("/h"), "--dns-rate-limit=7",
		"--masquerade-exclusions=", "--metrics-address=", "--handover=false", "--log-level=warn", "--log-format=text")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		NodeName: "flagged", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.30.0.0/16"), netip.MustParsePrefix("fd30::/48")},
		SliceBits: SliceBits{IPv4: 25, IPv6: 80}, NodesFile: pathHere("/f"), Socket: socketHere("f"), StateDir: pathHere("/fs"), SysctlDir: pathHere("/s"), CNIConfDir: pathHere("/c"),
		ListenPort: 4, Backend: wireguard.Kernel, MTU: 1400, Masquerade: true, MasqueradeExclusions: []netip.Prefix{},
		NAT: shim.NATConfig{
			Enabled: true, STUNServers: []shim.STUNServer{{Address: "a.example:1"}, {Address: "b.example:2", Label: "b"}},
			TURNServers:          []shim.TURNServer{{Address: "c.example:3", Username: "you"}},
			HolePunchTimeoutSecs: 6, STUNRefreshIntervalSecs: 31, MaxCandidatePairs: 5,
			RelayServer: &shim.RelayServer{ListenPort: 1, ExternalAddr: netip.MustParseAddrPort("[2001:db8::2]:2"), TLSPort: 9, MaxSessions: 8, Forbidden: []netip.Prefix{netip.MustParsePrefix("fd96::/112")}},
		},
		TURNCredentialFiles: []string{""},
		DNS:                 dataplane.DNSConfig{Enabled: true, Zone: "flagged.example", Ports: []int{5300, 5301, 5302}, Upstreams: []netip.AddrPort{}, HostRoot: pathHere("/h"), RateLimit: 7},
		LogLevel:            slog.LevelWarn, LogFormat: "text",
	}
	if diff := cmp.Diff(want, got, compareConfigs); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

// windowsKeys are of no use elsewhere.
const windowsKeys = `
hcnAdapter: Ethernet 2
`

func TestWindowsKeys(t *testing.T) {
	got, err := load(t, "clusterCIDRs: [10.20.0.0/16]\nnodesFile: /n\n"+windowsKeys)
	switch {
	case runtime.GOOS == "windows" && (err != nil || got.HCNAdapter != "Ethernet 2"):
		t.Errorf("%v, %+v", err, got)
	case runtime.GOOS != "windows" && (err == nil || !strings.Contains(err.Error(), "hcnAdapter: of no use")):
		t.Errorf("elsewhere: %v", err)
	}
	var config Config
	for _, s := range settings() {
		if s.key == "hcnAdapter" {
			err = s.set(&config, []string{"Ethernet 2"})
		}
	}
	if err != nil || config.HCNAdapter != "Ethernet 2" {
		t.Errorf("%v, adapter %q", err, config.HCNAdapter)
	}
}

func TestEveryKeyHasAFlagAndIsInTheExample(t *testing.T) {
	flags := map[string]bool{}
	for _, s := range settings() {
		if flags[s.flag] {
			t.Errorf("flag --%s belongs to two keys", s.flag)
		}
		flags[s.flag] = true
		last := s.key[strings.LastIndex(s.key, ".")+1:]
		if all := everyKey + kubernetesKeys + agentKeys + windowsKeys; !strings.Contains(all, "\n"+last+":") && !strings.Contains(all, "\n  "+last+":") && !strings.Contains(all, "\n    "+last+":") {
			t.Errorf("no test sets key %s", s.key)
		}
	}
}

func TestBadConfigIsOneLineThatNamesTheKey(t *testing.T) {
	good := "clusterCIDRs: [10.20.0.0/16]\nnodesFile: /n\n"
	longSocket := "socket: path of 310 bytes, at most 107"
	if runtime.GOOS == "windows" {
		longSocket = "socket: path of 309 characters, at most 256"
	}
	tests := []struct {
		name, file string
		args       []string
		want       string
	}{
		{name: "unknown key", file: good + "clusterCidr: x", want: `unknown key "clusterCidr"`},
		{name: "unknown key in other case", file: good + "listenport: 1", want: `unknown key "listenport" (it is spelled "listenPort")`},
		{name: "key spelled as a flag", file: good + "log-level: warn", want: `unknown key "log-level" (it is spelled "logLevel")`},
		{name: "unknown inner key", file: good + "sliceBits: {ipv5: 1}", want: `unknown key "sliceBits.ipv5"`},
		{name: "dotted key", file: good + "sliceBits.ipv4: 25", want: `unknown key "sliceBits.ipv4"`},
		{name: "key without inner keys", file: good + "mtu: {ipv4: 1400}", want: `unknown key "mtu.ipv4"`},
		{name: "key twice", file: good + "mtu: 1400\nmtu: 1300", want: `key "mtu" already set`},
		{name: "two documents", file: good + "---\nmtu: 1400", want: "more than one YAML document"},
		{name: "not YAML", file: "a: [", want: "did not find expected node content"},
		{name: "not keys with values", file: "- a\n- b", want: "want keys with values, got a list"},
		{name: "key without value", file: good + "mtu:", want: "mtu: want a number, got nothing"},
		{name: "number in quotes", file: good + `mtu: "1400"`, want: "mtu: want a number, got text"},
		{name: "text without quotes", file: good + "nodeName: 12", want: "nodeName: want text, got a number (put it in quotes)"},
		{name: "not a switch", file: good + "masquerade: maybe", want: "masquerade: want true or false, got text"},
		{name: "not a list", file: "nodesFile: /n\nclusterCIDRs: 10.20.0.0/16", want: "clusterCIDRs: want a list, got text"},
		{name: "item of the wrong kind", file: "nodesFile: /n\nclusterCIDRs: [10]", want: "clusterCIDRs: item 0: want text, got a number"},

		{name: "no cluster", file: "nodesFile: /n", want: "clusterCIDRs: not set"},
		{name: "empty cluster", file: "nodesFile: /n\nclusterCIDRs: []", want: "clusterCIDRs: not set"},
		{name: "bad CIDR", file: "nodesFile: /n\nclusterCIDRs: [10.20.0.0/33]", want: `clusterCIDRs: "10.20.0.0/33" is not a CIDR`},
		{name: "bits beyond the length", file: "nodesFile: /n\nclusterCIDRs: [10.20.1.0/16]", want: "clusterCIDRs: 10.20.1.0/16 has bits beyond its length, the range is 10.20.0.0/16"},
		{name: "IPv4 in IPv6 writing", file: "nodesFile: /n\nclusterCIDRs: ['::ffff:10.0.0.0/104']", want: "clusterCIDRs: ::ffff:10.0.0.0/104 is an IPv4 range in IPv6 writing"},
		{name: "two of a family", file: "nodesFile: /n\nclusterCIDRs: [10.20.0.0/16, 10.30.0.0/16]", want: "clusterCIDRs: 10.20.0.0/16 and 10.30.0.0/16 are of one family"},
		{name: "overlapping", file: "nodesFile: /n\nclusterCIDRs: [10.20.0.0/16, 10.20.0.0/24]", want: "clusterCIDRs: 10.20.0.0/16 and 10.20.0.0/24 overlap"},
		{name: "link-local cluster", file: "nodesFile: /n\nclusterCIDRs: [169.254.0.0/16]", want: "clusterCIDRs: 169.254.0.0/16 overlaps 169.254.0.0/16, which is not for hosts"},
		{name: "everything", file: "nodesFile: /n\nclusterCIDRs: ['::/0']", want: "clusterCIDRs: ::/0 overlaps"},
		{name: "slices longer than the cluster", file: good + "sliceBits: {ipv4: 15}", want: "sliceBits.ipv4: 15 is not between 16 (cluster CIDR 10.20.0.0/16) and 30"},
		{name: "slices without room", file: good + "sliceBits: {ipv4: 31}", want: "sliceBits.ipv4: 31 is not between"},
		{name: "slices without room, IPv6", file: "nodesFile: /n\nclusterCIDRs: ['fd20::/48']\nsliceBits: {ipv6: 127}", want: "sliceBits.ipv6: 127 is not between 48"},

		{name: "no nodes file", file: "clusterCIDRs: [10.20.0.0/16]", want: "nodesFile: not set"},
		{name: "two sources of nodes", file: good + "kubernetes: true", want: "nodesFile: the nodes come from kubernetes already"},
		{name: "agent and nodes file", file: "nodesFile: /n\nagent: true", want: "agent: the nodes come from nodesFile already"},
		{name: "agent and cluster of nodes", file: "kubernetes: true\nagent: true", want: "agent: the nodes come from kubernetes already"},
		{name: "agent with a cluster", file: "clusterCIDRs: [10.20.0.0/16]\nagent: true", want: "clusterCIDRs: of no use with agent: true"},
		{name: "agent with a kubeconfig", file: "agent: true\nkubeconfig: /k", want: "kubeconfig: of no use"},
		{name: "agent that is no switch", file: "agent: maybe", want: "agent: want true or false, got text"},
		{name: "endpoint of an agent without a port", file: "agent: true\nendpoint: 192.0.2.1", want: "endpoint: its endpoint is not HOST:PORT"},
		{name: "endpoint of an agent that nobody reaches", file: "agent: true\nendpoint: 127.0.0.1:51820", want: "endpoint: no node can be reached at its endpoint 127.0.0.1"},
		{name: "kubeconfig for nothing", file: good + "kubeconfig: /k", want: "kubeconfig: of no use"},
		{name: "endpoint for nothing", file: good + "endpoint: 192.0.2.1:51820", want: "endpoint: of no use"},
		{name: "endpoint without a port", file: "kubernetes: true\nendpoint: 192.0.2.1", want: "endpoint: its endpoint is not HOST:PORT"},
		{name: "endpoint in the overlay", file: "kubernetes: true\nclusterCIDRs: [10.20.0.0/16]\nendpoint: 10.20.0.1:51820", want: "endpoint: its endpoint 10.20.0.1 lies in the overlay"},
		{name: "no socket", file: good + "socket: ''", want: "socket: not set"},
		{name: "socket too long", file: good + "socket: " + socketHere(strings.Repeat("s", 300)), want: longSocket},
		{name: "no state folder", file: good + "stateDir: ''", want: "stateDir: not set"},
		{name: "no node name", file: good + "nodeName: ''", want: "nodeName: not set"},
		{name: "long node name", file: good + "nodeName: " + strings.Repeat("n", 254), want: "nodeName: 254 bytes, a node's name may have 253"},
		{name: "node name with a line end", file: good + `nodeName: "a\nb"`, want: `nodeName: "a\nb" holds a space or a control character`},

		{name: "MTU too small", file: good + "mtu: 1279", want: "mtu: 1279 is not between 1280 and 65455"},
		{name: "MTU too large", file: good + "mtu: 65456", want: "mtu: 65456 is not between 0 and 65455"},
		{name: "negative MTU", file: good + "mtu: -1", want: "mtu: -1 is not between 0 and 65455"},
		{name: "fractional MTU", file: good + "mtu: 1400.5", want: `mtu: "1400.5" is not a whole number`},
		{name: "port zero", file: good + "listenPort: 0", want: "listenPort: 0 is not between 1 and 65535"},
		{name: "port too large", file: good + "listenPort: 65536", want: "listenPort: 65536 is not between 1 and 65535"},
		{name: "port beyond any integer", file: good + "listenPort: 99999999999999999999", want: "listenPort: "},
		{name: "unknown backend", file: good + "backend: magic", want: `backend: "magic" is none of auto, kernel, userspace`},
		{name: "bad exclusion", file: good + "masqueradeExclusions: [nowhere]", want: `masqueradeExclusions: "nowhere" is not a CIDR`},
		{name: "metrics without port", file: good + "metricsAddress: 127.0.0.1", want: `metricsAddress: "127.0.0.1" is not an IP address with a port`},
		{name: "metrics on port zero", file: good + "metricsAddress: 127.0.0.1:0", want: "metricsAddress: 127.0.0.1:0: the port may not be 0"},
		{name: "unknown log level", file: good + "logLevel: loud", want: `logLevel: "loud" is none of debug, info, warn, error`},
		{name: "unknown log format", file: good + "logFormat: xml", want: `logFormat: "xml" is none of text, json`},

		{name: "unknown key of NAT", file: good + "nat: {stunServers: []}", want: `unknown key "nat.stunServers"`},
		{name: "STUN server without a port", file: good + "nat: {stun_servers: ['a.example:1', b.example]}", want: `nat.stun_servers[1].address: "b.example" is not host:port`},
		{name: "STUN server with another key", file: good + "nat: {stun_servers: [{address: 'a:1', username: me}]}", want: `nat.stun_servers: item 0: unknown key "username"`},
		{name: "STUN server without an address", file: good + "nat: {stun_servers: [{label: x}]}", want: "nat.stun_servers: item 0: address: not set"},
		{name: "STUN server of nothing", file: good + "nat: {stun_servers: ['']}", want: "nat.stun_servers: item 0: address: not set"},
		{name: "STUN servers not a list", file: good + "nat: {stun_servers: 'a:1'}", want: "nat.stun_servers: want a list, got text"},
		{name: "STUN server of the wrong kind", file: good + "nat: {stun_servers: [7]}", want: "nat.stun_servers: item 0: want text, got a number"},
		{name: "TURN server with a number", file: good + "nat: {turn_servers: [{address: 'a:1', username: 7}]}", want: "nat.turn_servers: item 0: username: want text, got a number"},
		{name: "TURN server with its credential", file: good + "nat: {turn_servers: [{address: 'a:1', credential: x}]}", want: `nat.turn_servers: item 0: unknown key "credential"`},
		{name: "TURN server with a semicolon", file: good + "nat: {turn_servers: [{address: 'a:1', username: 'a;region=b'}]}", want: "nat.turn_servers: item 0: username: it holds a semicolon"},
		{name: "TURN server with an odd key", file: good + "nat: {turn_servers: [{address=a: 'a:1'}]}", want: `nat.turn_servers: item 0: unknown key "address=a"`},
		{name: "no time for NAT", file: good + "nat: {hole_punch_timeout_secs: 0}", want: "nat.hole_punch_timeout_secs: 0 is not between 1 and 86400"},
		{name: "no pairs", file: good + "nat: {max_candidate_pairs: 0}", want: "nat.max_candidate_pairs: 0 is not between 1 and"},
		{name: "relay without an address", file: good + "nat: {relay_server: {listen_port: 1}}", want: "nat.relay_server.external_addr: want an address and a port"},
		{name: "relay without a port", file: good + "nat: {relay_server: {external_addr: '192.0.2.1:1'}}", want: "nat.relay_server.listen_port: must not be 0"},
		{name: "relay by name", file: good + "nat: {relay_server: {external_addr: 'a.example:1'}}", want: `nat.relay_server.external_addr: "a.example:1" is not an IP address with a port`},
		{name: "relay at loopback", file: good + "nat: {relay_server: {listen_port: 1, external_addr: '127.0.0.1:1'}}", want: "nat.relay_server.external_addr: others do not reach this node at 127.0.0.1"},
		{name: "relay at WireGuard's port", file: good + "nat: {relay_server: {listen_port: 51820, external_addr: '192.0.2.1:1'}}", want: "nat.relay_server.listen_port: 51820 is WireGuard's"},
		{name: "TURN server without a user name", file: good + "nat: {turn_servers: ['a:1']}", want: "nat.turn_servers[0].username: not set"},
		{name: "relay for nobody", file: good + "nat: {relay_server: {max_sessions: 0}}", want: "nat.relay_server.max_sessions: 0 is not between 1 and"},
		{name: "relay of nothing", file: good + "nat: {relay_server: {}}", args: []string{"--nat-relay-max-sessions=3"}, want: "nat.relay_server.listen_port: must not be 0"},
		{name: "credential that is nowhere", file: good + "nat: {turn_servers: [{address: 'a:1', username: u, credential_file: /nowhere/turn}]}", want: "nat.turn_servers[0].credential_file: open /nowhere/turn"},

		{name: "key of a flag's server twice", file: good, args: []string{"--nat-stun-servers=address=a:1;address=b:1"}, want: "--nat-stun-servers: item 0: address: given twice"},
		{name: "bad flag", file: good, args: []string{"--listen-port=70000"}, want: "--listen-port: 70000 is not between 1 and 65535"},
		{name: "flag of the wrong kind", file: good, args: []string{"--mtu=much"}, want: `"--mtu" flag`},
		{name: "bad list in a flag", file: good, args: []string{"--cluster-cidrs=10.0.0.0/8,x"}, want: `--cluster-cidrs: "x" is not a CIDR`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.file, tt.args...)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error:\n%v\nwant one line with:\n%s", err, tt.want)
			}
		})
	}
}

func TestMissingConfigFileIsNamed(t *testing.T) {
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	addFlags(flags)
	_, err := loadConfig("/nowhere/overlayd.yaml", flags, "h")
	if err == nil || !strings.Contains(err.Error(), "/nowhere/overlayd.yaml") {
		t.Errorf("error %v does not name the file", err)
	}
}

func TestConfigFileWithoutEnd(t *testing.T) {
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	addFlags(flags)
	_, err := loadConfig("/dev/zero", flags, "h")
	if err == nil || err.Error() != "config: /dev/zero: more than 1048576 bytes" {
		t.Errorf("error %v", err)
	}
}

func TestConfigFileOfComments(t *testing.T) {
	if _, err := load(t, "# nothing yet\n", "--cluster-cidrs=10.20.0.0/16", "--nodes-file=/n"); err != nil {
		t.Error(err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add(everyKey)
	f.Add(agentKeys)
	f.Add("sliceBits: {ipv4: 1e3}")
	f.Add("nat: {turn_servers: [{address: 'a:1', username: u, credential_file: x}, 'b:2', {a=b: c}, {address: ';'}], relay_server: {max_sessions: 1}}")
	f.Add("agent: true\ndns: {zone: a.b., ports: [53, 0x35], upstreams: ['::1', '[fe80::1%eth0]:53'], rateLimit: 1}")
	f.Add("a: &a [*a, *a]")
	f.Add("---\nmtu: 0x580\n...\n")
	f.Add("? [a]\n: b")
	f.Fuzz(func(t *testing.T, text string) {
		config := defaultConfig("h")
		err := config.applyFile([]byte(text))
		if err == nil {
			err = config.validate()
		}
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("error of several lines: %q", err)
			}
			return
		}
		clusterless := len(config.ClusterCIDRs) == 0 && !config.Kubernetes && !config.Agent
		if config.ListenPort < 1 || config.ListenPort > 65535 || clusterless || config.MTU != 0 && config.MTU < wireguard.MinMTU || config.NAT.Validate() != nil || len(config.TURNCredentialFiles) != len(config.NAT.TURNServers) || !goodDNS(config.DNS) {
			t.Errorf("accepted %+v", config)
		}
	})
}
