package main

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/zlayer/zlayer-cni/pkg/cni"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// kind says what a key's value looks like in the file.
type kind int

const (
	text kind = iota
	number
	boolean
	list
	numbers // a list of numbers
	servers // a list of texts, or of keys with texts
)

// setting is one key of the configuration, in the file and as a flag.
type setting struct {
	// key stands in the file; a dot separates the levels.
	key string
	// flag is the same as an option of the command.
	flag string
	kind kind
	// fallback is the default, written as the flag would be: a list with commas.
	fallback string
	usage    string
	// set parses a value into its field; a list has any number of values, also one
	// of numbers or servers, the other kinds have one.
	set func(c *Config, values []string) error
}

// settings lists every key once; file, flags, defaults and help follow it.
func settings() []setting {
	return slices.Concat(nodeSettings(), kubernetesSettings(), networkSettings(), natSettings(), relaySettings(), dnsSettings(), daemonSettings())
}

func nodeSettings() []setting {
	return []setting{
		{
			key: "nodeName", flag: "node-name", usage: "name of this node in the nodes file, or of its Node (default: the host name)",
			set: func(c *Config, v []string) error { c.NodeName = v[0]; return nil },
		}, {
			key: "clusterCIDRs", flag: "cluster-cidrs", kind: list, usage: "range of all pods, at most one per family",
			set: func(c *Config, v []string) (err error) { c.ClusterCIDRs, err = parsePrefixes(v); return err },
		}, {
			key: "sliceBits.ipv4", flag: "slice-bits-ipv4", kind: number, fallback: "24", usage: "prefix length of a node's IPv4 slice when it is carved",
			set: func(c *Config, v []string) (err error) { c.SliceBits.IPv4, err = parseInt(v[0], 0, 32); return err },
		}, {
			key: "sliceBits.ipv6", flag: "slice-bits-ipv6", kind: number, fallback: "64", usage: "prefix length of a node's IPv6 slice when it is carved",
			set: func(c *Config, v []string) (err error) { c.SliceBits.IPv6, err = parseInt(v[0], 0, 128); return err },
		}, {
			key: "nodesFile", flag: "nodes-file", usage: "list of the nodes, read again whenever it changes",
			set: func(c *Config, v []string) error { c.NodesFile = v[0]; return nil },
		},
	}
}

func kubernetesSettings() []setting {
	return []setting{
		{
			key: "kubernetes", flag: "kubernetes", kind: boolean, fallback: "false", usage: "find the nodes as Kubernetes' Node objects instead of in a file",
			set: func(c *Config, v []string) (err error) { c.Kubernetes, err = parseBool(v[0]); return err },
		}, {
			key: "kubeconfig", flag: "kubeconfig", usage: "credentials for the API server (default: the pod's own)",
			set: func(c *Config, v []string) error { c.Kubeconfig = v[0]; return nil },
		}, {
			key: "agent", flag: "agent", kind: boolean, fallback: "false", usage: "have the overlay set up over the socket, as ZLayer's agent does",
			set: func(c *Config, v []string) (err error) { c.Agent, err = parseBool(v[0]); return err },
		}, {
			key: "endpoint", flag: "endpoint", usage: "HOST:PORT where other nodes reach this one (default: the Node's InternalIP)",
			set: func(c *Config, v []string) error { c.Endpoint = v[0]; return nil },
		},
	}
}

func networkSettings() []setting {
	return []setting{
		{
			key: "listenPort", flag: "listen-port", kind: number, fallback: "51820", usage: "UDP port of WireGuard",
			set: func(c *Config, v []string) (err error) { c.ListenPort, err = parseInt(v[0], 1, 65535); return err },
		}, {
			key: "backend", flag: "backend", fallback: "auto", usage: "WireGuard by the kernel, by this process, or whichever there is: auto, kernel, userspace",
			set: func(c *Config, v []string) (err error) {
				name, err := oneOf(v[0], string(wireguard.Auto), string(wireguard.Kernel), string(wireguard.Userspace))
				c.Backend = wireguard.Backend(name)
				return err
			},
		}, {
			key: "mtu", flag: "mtu", kind: number, fallback: "0", usage: "MTU of the tunnel and of pods, 0 computes it from the underlay",
			set: func(c *Config, v []string) (err error) { c.MTU, err = parseInt(v[0], 0, maxMTU); return err },
		}, {
			key: "masquerade", flag: "masquerade", kind: boolean, fallback: "true", usage: "hide pods behind the node's address outside the cluster",
			set: func(c *Config, v []string) (err error) { c.Masquerade, err = parseBool(v[0]); return err },
		}, {
			key: "masqueradeExclusions", flag: "masquerade-exclusions", kind: list, usage: "destinations that see a pod's own address",
			set: func(c *Config, v []string) (err error) { c.MasqueradeExclusions, err = parsePrefixes(v); return err },
		},
	}
}

func daemonSettings() []setting {
	return []setting{
		{
			key: "socket", flag: "socket", fallback: shim.DefaultSocket, usage: "socket that the plugin dials",
			set: func(c *Config, v []string) error { c.Socket = v[0]; return nil },
		}, {
			key: "stateDir", flag: "state-dir", fallback: cni.DefaultStateDir, usage: "folder of the key pair and of what plugins leave while this daemon is away",
			set: func(c *Config, v []string) error { c.StateDir = v[0]; return nil },
		}, {
			key: "sysctlDir", flag: "sysctl-dir", fallback: sysctlDir(runtime.GOOS), usage: "where the host's /proc/sys/net is writable, in a container another place than that",
			set: func(c *Config, v []string) error { c.SysctlDir = v[0]; return nil },
		}, {
			key: "hcnAdapter", flag: "hcn-adapter", usage: "on Windows bind the sandboxes' networks to this network adapter (Transparent), which interrupts it; empty binds none (Internal)",
			set: func(c *Config, v []string) error { c.HCNAdapter = v[0]; return nil },
		}, {
			key: "cniBinDir", flag: "cni-bin-dir", usage: "install the plugins in this folder, empty installs none",
			set: func(c *Config, v []string) error { c.CNIBinDir = v[0]; return nil },
		}, {
			key: "cniConfDir", flag: "cni-conf-dir", usage: "write the network's configuration in this folder once it serves, empty writes none",
			set: func(c *Config, v []string) error { c.CNIConfDir = v[0]; return nil },
		}, {
			key: "metricsAddress", flag: "metrics-address", fallback: "127.0.0.1:9551", usage: "address and port of /metrics and /healthz, empty for neither",
			set: func(c *Config, v []string) (err error) { c.MetricsAddress, err = parseAddrPort(v[0]); return err },
		}, {
			key: "handover", flag: "handover", kind: boolean, fallback: "false", usage: "wait until the daemon that runs has ended, then take over at once",
			set: func(c *Config, v []string) (err error) { c.Handover, err = parseBool(v[0]); return err },
		}, {
			key: "logLevel", flag: "log-level", fallback: "info", usage: "lowest level that is logged: debug, info, warn, error",
			set: func(c *Config, v []string) error {
				name, err := oneOf(v[0], "debug", "info", "warn", "error")
				if err != nil {
					return err
				}
				return c.LogLevel.UnmarshalText([]byte(name))
			},
		}, {
			key: "logFormat", flag: "log-format", fallback: "text", usage: "format of the log: text, json",
			set: func(c *Config, v []string) (err error) { c.LogFormat, err = oneOf(v[0], "text", "json"); return err },
		},
	}
}

// defaultConfig is what an empty file and no flag give.
func defaultConfig(hostname string) Config {
	config := Config{NodeName: hostname, LogLevel: slog.LevelInfo}
	for _, s := range settings() {
		if s.fallback == "" {
			continue
		}
		if err := s.set(&config, s.defaults()); err != nil {
			panic(fmt.Sprintf("default of %s: %v", s.key, err)) // a slip of ours: a test walks all of them
		}
	}
	return config
}

// defaults returns the default as set takes it.
func (s setting) defaults() []string {
	if s.kind == numbers {
		return strings.Split(s.fallback, ",")
	}
	return []string{s.fallback}
}

// applyFile sets the keys of a configuration file. A key that is unknown,
// given twice, of the wrong kind or without a value is an error that names it.
func (c *Config) applyFile(data []byte) error {
	tree, err := readTree(data)
	if errors.Is(err, errNoDocument) {
		return nil // nothing to override
	}
	if err != nil {
		return err
	}
	values := map[string]any{}
	if err := flatten(tree, "", values); err != nil {
		return err
	}
	known := map[string]setting{}
	for _, s := range settings() {
		known[s.key] = s
	}
	for _, key := range sortedKeys(values) {
		s, ok := known[key]
		if !ok {
			return unknownKey(key)
		}
		texts, err := s.texts(values[key])
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		if err := s.set(c, texts); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// flatten joins the keys of nested mappings by dots.
func flatten(tree map[string]any, prefix string, into map[string]any) error {
	for _, key := range sortedKeys(tree) {
		if strings.Contains(key, ".") {
			return unknownKey(prefix + key)
		}
		if inner, ok := tree[key].(map[string]any); ok {
			if err := flatten(inner, prefix+key+".", into); err != nil {
				return err
			}
			continue
		}
		into[prefix+key] = tree[key]
	}
	return nil
}

// unknownKey names the key, and the one that was meant when only the case differs.
func unknownKey(key string) error {
	for _, s := range settings() {
		if strings.EqualFold(s.key, key) || strings.EqualFold(s.flag, key) {
			return fmt.Errorf("unknown key %q (it is spelled %q)", key, s.key)
		}
	}
	return fmt.Errorf("unknown key %q", key)
}

// texts returns a file's value as the flag would give it.
func (s setting) texts(value any) ([]string, error) {
	switch s.kind {
	case list:
		return asTexts(value)
	case numbers:
		return asNumbers(value)
	case servers:
		return serverTexts(value)
	case number:
		t, err := asNumber(value)
		return []string{t}, err
	case boolean:
		if b, ok := value.(bool); ok {
			return []string{strconv.FormatBool(b)}, nil
		}
		return nil, fmt.Errorf("want true or false, got %s", kindOf(value))
	default:
		t, err := asText(value)
		return []string{t}, err
	}
}

// addFlags gives the command one flag per key.
func addFlags(flags *pflag.FlagSet) {
	for _, s := range settings() {
		s.addFlag(flags)
	}
}

func (s setting) addFlag(flags *pflag.FlagSet) {
	switch s.kind {
	case list, servers:
		flags.StringSlice(s.flag, nil, s.usage)
	case numbers:
		flags.StringSlice(s.flag, s.defaults(), s.usage)
	case boolean:
		flags.Bool(s.flag, s.fallback == "true", s.usage)
	case number:
		fallback, _ := strconv.Atoi(s.fallback) // defaultConfig parses the same text
		flags.Int(s.flag, fallback, s.usage)
	default:
		flags.String(s.flag, s.fallback, s.usage)
	}
}

// applyFlags sets the keys whose flags were given.
func (c *Config) applyFlags(flags *pflag.FlagSet) error {
	for _, s := range settings() {
		flag := flags.Lookup(s.flag)
		if flag == nil || !flag.Changed {
			continue
		}
		values := []string{flag.Value.String()}
		if many, ok := flag.Value.(pflag.SliceValue); ok {
			values = many.GetSlice()
		}
		if err := s.set(c, values); err != nil {
			return fmt.Errorf("--%s: %w", s.flag, err)
		}
	}
	return nil
}
