//go:build linux

package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// Entry is a node in the nodes file.
type Entry struct {
	Name      string         `json:"name"`
	PublicKey string         `json:"publicKey,omitempty"`
	Endpoint  string         `json:"endpoint,omitempty"`
	Slices    []netip.Prefix `json:"slices,omitempty"`
	Services  []ServiceEntry `json:"services,omitempty"`
	// Candidates are further addresses of the node, and Relay is what it offers.
	Candidates []string `json:"candidates,omitempty"`
	Relay      string   `json:"relay,omitempty"`
}

// daemonConfig is the part of overlayd's configuration that a lab sets.
type daemonConfig struct {
	NodeName     string         `json:"nodeName"`
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"`
	NodesFile    string         `json:"nodesFile,omitempty"`
	Kubernetes   bool           `json:"kubernetes,omitempty"`
	Kubeconfig   string         `json:"kubeconfig,omitempty"`
	Socket       string         `json:"socket"`
	StateDir     string         `json:"stateDir"`
	ListenPort   int            `json:"listenPort"`
	Backend      string         `json:"backend"`
	NAT          *NAT           `json:"nat,omitempty"`
}

func (n *Node) writeConfig(config Config) error {
	backend := config.Backend
	if backend == "" {
		backend = "auto"
	}
	daemon := daemonConfig{
		NodeName:     n.Name,
		ClusterCIDRs: config.ClusterCIDRs,
		Socket:       n.Socket(),
		StateDir:     n.stateDir(),
		ListenPort:   ListenPort,
		Backend:      backend,
	}
	if nat, told := config.NAT[n.Name]; told {
		daemon.NAT = &nat
	}
	if daemon.Kubeconfig = config.Kubeconfig; daemon.Kubeconfig != "" {
		daemon.Kubernetes = true
	} else {
		daemon.NodesFile = n.nodesFile()
	}
	return writeYAML(n.configFile(), daemon)
}

// Socket is the path on which the node's daemon serves.
func (n *Node) Socket() string { return filepath.Join(n.dir, "overlayd.sock") }

// LogFile is what the daemon wrote, over all its starts.
func (n *Node) LogFile() string { return filepath.Join(n.dir, "overlayd.log") }

func (n *Node) stateDir() string   { return filepath.Join(n.dir, "state") }
func (n *Node) configFile() string { return filepath.Join(n.dir, "overlayd.yaml") }
func (n *Node) nodesFile() string  { return filepath.Join(n.dir, "nodes.yaml") }

// Entries lists all nodes, with the keys and services told so far. Where no slice
// is given, every daemon carves the same ones.
func (c *Cluster) Entries() []Entry {
	var entries []Entry
	for _, node := range c.Nodes {
		entries = append(entries, Entry{
			Name:      node.Name,
			PublicKey: node.PublicKey,
			Endpoint:  netip.AddrPortFrom(node.Underlay, ListenPort).String(),
			Slices:    c.config.Slices[node.Name],
			Services:  node.services,

			Candidates: node.candidates,
			Relay:      node.relay,
		})
	}
	return append(entries, c.config.Strangers...)
}

// writeNodes writes every node's own copy of the list of nodes.
func (c *Cluster) writeNodes() error {
	for _, node := range c.Nodes {
		if err := node.WriteNodes(c.Entries()); err != nil {
			return err
		}
	}
	return nil
}

// WriteNodes replaces the node's list of nodes, which its daemon then reads.
func (n *Node) WriteNodes(entries []Entry) error {
	return writeYAML(n.nodesFile(), map[string][]Entry{"nodes": entries})
}

// writeYAML replaces path in one step, so that no daemon reads half a file.
func writeYAML(path string, value any) error {
	text, err := yaml.Marshal(value)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return replaceFile(path, text)
}

func replaceFile(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// NetConf returns the network configuration list that a runtime would read
// from /etc/cni/net.d on this node.
func (n *Node) NetConf() ([]byte, error) {
	return json.Marshal(map[string]any{
		"cniVersion":  "1.0.0",
		"cniVersions": []string{"0.4.0", "1.0.0", "1.1.0"},
		"name":        "zlayer",
		"plugins":     []map[string]any{n.PluginConf()},
	})
}

// PluginConf returns the plugin's entry in that list.
func (n *Node) PluginConf() map[string]any {
	return map[string]any{"type": "zlayer-cni", "socket": n.Socket(), "stateDir": n.stateDir()}
}
