package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// Config is what `overlayd run` obeys, parsed and checked.
type Config struct {
	// NodeName is this node's name in the nodes file, or that of its Node.
	NodeName string
	// ClusterCIDRs hold every slice: at most one prefix per family. With
	// Kubernetes there may be none, and the cluster tells.
	ClusterCIDRs []netip.Prefix
	// SliceBits is the prefix length of a carved slice per family.
	SliceBits SliceBits
	// NodesFile is the absolute path of the list of nodes; empty with Kubernetes.
	NodesFile string
	// Kubernetes finds the nodes as Node objects instead of in a file.
	Kubernetes bool
	// Agent has the overlay set up over the socket, as ZLayer's agent does.
	Agent bool
	// Kubeconfig is the absolute path of the credentials for the API server; empty
	// takes those of the pod.
	Kubeconfig string
	// Endpoint is where the other nodes reach this one, HOST:PORT; empty takes the
	// Node's InternalIP and ListenPort with Kubernetes, and none with Agent.
	Endpoint string
	// Socket is the absolute path that plugins dial; on Windows a named pipe's.
	Socket string
	// StateDir is the absolute path of the key pair and the tombstones.
	StateDir string
	// SysctlDir is where the host's /proc/sys/net is writable; empty on Windows.
	SysctlDir string
	// HCNAdapter is the network adapter that Windows' networks of sandboxes are bound to; empty is none.
	HCNAdapter string
	// CNIBinDir is the host's folder of plugins, empty to install none there.
	CNIBinDir string
	// CNIConfDir is the runtime's folder of networks, empty to write none there.
	CNIConfDir string
	// ListenPort is WireGuard's UDP port.
	ListenPort int
	// Backend chooses between the kernel's WireGuard and our own process.
	Backend wireguard.Backend
	// MTU of tunnel and pods in bytes; 0 computes it from the underlay.
	MTU int
	// Masquerade hides pods behind the node when they leave the cluster.
	Masquerade bool
	// MasqueradeExclusions are destinations that see the pod's own address.
	MasqueradeExclusions []netip.Prefix
	// NAT says how ways to other nodes through NATs are found. The credentials of
	// its TURN servers are in TURNCredentialFiles until loadConfig has read them.
	NAT shim.NATConfig
	// TURNCredentialFiles are the paths of the files for NAT.TURNServers, in their
	// order; empty is none.
	TURNCredentialFiles []string
	// DNS says how names are served; its Pods follows from Kubernetes.
	DNS dataplane.DNSConfig
	// MetricsAddress serves /metrics and /healthz; the zero value serves neither.
	MetricsAddress netip.AddrPort
	// Handover waits for the daemon in charge to end instead of refusing to start.
	Handover bool
	// LogLevel is the lowest level that is written.
	LogLevel slog.Level
	// LogFormat is "text" or "json".
	LogFormat string
}

// SliceBits is the prefix length of a carved slice per family.
type SliceBits struct {
	IPv4, IPv6 int
}

// configLimit bounds the configuration file, in bytes.
const configLimit = 1 << 20

// maxMTU is what a UDP datagram over IPv6 holds less what WireGuard and the
// headers take.
const maxMTU = 65535 - 80

// A slice must hold more than its reserved addresses and the node's own one:
// a /30 leaves one address for pods after network, broadcast and node, a /126
// two after subnet-router anycast and node.
const (
	maxSliceBitsV4 = 30
	maxSliceBitsV6 = 126
)

// loadConfig reads the file (if path is not empty) over the defaults, sets the
// flags that were given over that, and checks the whole. hostname is the
// default for the node's name. An error names file and key, in one line.
func loadConfig(path string, flags *pflag.FlagSet, hostname string) (Config, error) {
	config, err := readConfig(path, flags, hostname)
	if err != nil {
		return Config{}, err
	}
	if err := config.validate(); err != nil {
		return Config{}, fmt.Errorf("config: %w", err)
	}
	if err := config.readCredentials(); err != nil {
		return Config{}, fmt.Errorf("config: %w", err)
	}
	return config, nil
}

// readConfig is loadConfig without the checks of the whole: keys may be
// missing.
func readConfig(path string, flags *pflag.FlagSet, hostname string) (Config, error) {
	config := defaultConfig(hostname)
	if path != "" {
		data, err := readBounded(path, configLimit)
		if err != nil {
			return Config{}, fmt.Errorf("config: %w", err)
		}
		if err := config.applyFile(data); err != nil {
			return Config{}, fmt.Errorf("config %s: %w", path, err)
		}
	}
	if err := config.applyFlags(flags); err != nil {
		return Config{}, err
	}
	return config, nil
}

// readBounded reads a file of at most limit bytes, however much more there is.
func readBounded(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return data, nil
}

// validate checks what needs more than one key to be known, and makes paths
// absolute.
func (c *Config) validate() error {
	if err := checkNodeName(c.NodeName); err != nil {
		return fmt.Errorf("nodeName: %w", err)
	}
	if err := c.validateCluster(); err != nil {
		return err
	}
	if c.MTU != 0 && c.MTU < wireguard.MinMTU {
		return fmt.Errorf("mtu: %d is not between %d and %d (0 computes it)", c.MTU, wireguard.MinMTU, maxMTU)
	}
	if err := c.validateSource(); err != nil {
		return err
	}
	completeRelay(c.NAT.RelayServer)
	if err := c.NAT.Validate(); err != nil {
		return fmt.Errorf("nat.%w", err)
	}
	if err := checkRelayPort(c.NAT.RelayServer, c.ListenPort); err != nil {
		return fmt.Errorf("nat.%w", err)
	}
	if err := c.validateDNS(); err != nil {
		return fmt.Errorf("dns.%w", err)
	}
	for _, path := range []struct {
		key      string
		value    *string
		optional bool
	}{
		{key: "nodesFile", value: &c.NodesFile, optional: true}, {key: "kubeconfig", value: &c.Kubeconfig, optional: true},
		{key: "socket", value: &c.Socket}, {key: "stateDir", value: &c.StateDir},
		{key: "sysctlDir", value: &c.SysctlDir, optional: sysctlDir(runtime.GOOS) == ""}, {key: "dns.hostRoot", value: &c.DNS.HostRoot, optional: hostRoot(runtime.GOOS) == ""},
		{key: "cniBinDir", value: &c.CNIBinDir, optional: true},
		{key: "cniConfDir", value: &c.CNIConfDir, optional: true},
	} {
		if *path.value == "" && path.optional {
			continue
		}
		if *path.value == "" {
			return fmt.Errorf("%s: not set", path.key)
		}
		absolute, err := filepath.Abs(*path.value)
		if err != nil {
			return fmt.Errorf("%s: %w", path.key, err)
		}
		*path.value = absolute
	}
	if err := shim.CheckSocket(c.Socket); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	return checkHCNAdapter(runtime.GOOS, c.HCNAdapter)
}

// checkHCNAdapter wants the name of an adapter as Windows shows it. A blank one,
// which somebody may have meant to be none, is a mistake.
func checkHCNAdapter(goos, name string) error {
	switch {
	case name != "" && goos != "windows":
		return errors.New("hcnAdapter: of no use but on Windows")
	case strings.TrimSpace(name) != name:
		return fmt.Errorf("hcnAdapter: %q is blank, or has spaces around it", name)
	}
	return nil
}

// validateSource wants one source of nodes, and no key of another.
func (c *Config) validateSource() error {
	switch {
	case c.NodesFile != "" && c.Kubernetes:
		return errors.New("nodesFile: the nodes come from kubernetes already")
	case c.Agent && c.Kubernetes:
		return errors.New("agent: the nodes come from kubernetes already")
	case c.Agent && c.NodesFile != "":
		return errors.New("agent: the nodes come from nodesFile already")
	case c.NodesFile == "" && !c.Kubernetes && !c.Agent:
		return errors.New("nodesFile: not set (or else kubernetes: true, or agent: true)")
	case c.Kubeconfig != "" && !c.Kubernetes:
		return errors.New("kubeconfig: of no use without kubernetes: true")
	case c.Kubernetes || c.Agent:
		return c.validateEndpoint()
	case c.Endpoint != "":
		return errors.New("endpoint: of no use with nodesFile, which names endpoints")
	}
	return nil
}

// validateEndpoint lets the planner judge: what it would refuse of another
// node's endpoint, the others would of ours.
func (c *Config) validateEndpoint() error {
	slices := c.ClusterCIDRs
	if len(slices) == 0 {
		slices = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")} // any that is a slice
	}
	_, problems := wireguard.Plan(wireguard.PlanInput{Cluster: c.ClusterCIDRs, Nodes: []wireguard.Node{{
		Name: c.NodeName, PublicKey: standInKey(0), Endpoint: c.Endpoint, Slices: slices,
	}}})
	if len(problems) > 0 {
		return fmt.Errorf("endpoint: %w", problems[0].Err)
	}
	return nil
}

func (c *Config) validateCluster() error {
	if len(c.ClusterCIDRs) == 0 && !c.Kubernetes && !c.Agent {
		return errors.New("clusterCIDRs: not set")
	}
	if len(c.ClusterCIDRs) > 0 && c.Agent {
		return errors.New("clusterCIDRs: of no use with agent: true, whose agent tells it")
	}
	for i, cluster := range c.ClusterCIDRs {
		for _, earlier := range c.ClusterCIDRs[:i] {
			if earlier.Addr().Is4() == cluster.Addr().Is4() {
				return fmt.Errorf("clusterCIDRs: %s and %s are of one family", earlier, cluster)
			}
		}
		if err := checkUnicast(cluster); err != nil {
			return fmt.Errorf("clusterCIDRs: %w", err)
		}
		if c.Kubernetes {
			continue // slices come with the nodes
		}
		if err := c.validateSliceBits(cluster); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) validateSliceBits(cluster netip.Prefix) error {
	key, length, highest := "sliceBits.ipv4", c.SliceBits.IPv4, maxSliceBitsV4
	if cluster.Addr().Is6() {
		key, length, highest = "sliceBits.ipv6", c.SliceBits.IPv6, maxSliceBitsV6
	}
	if length < cluster.Bits() || length > highest {
		return fmt.Errorf("%s: %d is not between %d (cluster CIDR %s) and %d", key, length, cluster.Bits(), cluster, highest)
	}
	return nil
}

// maxNodeName is Kubernetes' limit for the name of a Node.
const maxNodeName = 253

// checkNodeName refuses names that could not be told apart in a log or table.
func checkNodeName(name string) error {
	switch {
	case name == "":
		return errors.New("not set")
	case len(name) > maxNodeName:
		return fmt.Errorf("%d bytes, a node's name may have %d", len(name), maxNodeName)
	case !utf8.ValidString(name):
		return fmt.Errorf("%q is not valid UTF-8", name)
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }):
		return fmt.Errorf("%q holds a space or a control character", name)
	}
	return nil
}

// checkUnicast refuses ranges whose addresses no pod may have: the ranges
// below stand in RFC 6890 as not usable for hosts.
func checkUnicast(prefix netip.Prefix) error {
	for _, special := range []string{
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3",
		"::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8",
	} {
		if prefix.Overlaps(netip.MustParsePrefix(special)) {
			return fmt.Errorf("%s overlaps %s, which is not for hosts", prefix, special)
		}
	}
	return nil
}
