package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/zlayer/zlayer-cni/internal/durable"
	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

const (
	// stateVersion is the format of the file; another is not read.
	stateVersion = 1
	// stateLimit bounds the file, in bytes: 5,000 nodes take 2 MiB.
	stateLimit = 64 << 20
)

// savedSet is a node set as it lies on disk, so that a start without an API
// server connects this node's pods all the same.
type savedSet struct {
	Version int `json:"version"`
	// UID is that of this node's Node.
	UID     types.UID      `json:"uid"`
	Cluster []netip.Prefix `json:"cluster"`
	// Services are the prefixes of services, where they are known.
	Services []netip.Prefix `json:"serviceCIDRs,omitempty"`
	Nodes    []savedNode    `json:"nodes"`
}

type savedNode struct {
	Name      string         `json:"name"`
	UID       types.UID      `json:"uid"`
	PublicKey string         `json:"publicKey"`
	Endpoint  string         `json:"endpoint,omitempty"`
	Slices    []netip.Prefix `json:"slices"`
	// Keepalive is in nanoseconds.
	Keepalive  time.Duration           `json:"keepalive,omitempty"`
	Services   []wireguard.NodeService `json:"services,omitempty"`
	Candidates []string                `json:"candidates,omitempty"`
	Relay      string                  `json:"relay,omitempty"`
	Guests     guestBook               `json:"guests,omitempty"`
}

func (s savedSet) nodes() []dataplane.Node {
	nodes := make([]dataplane.Node, len(s.Nodes))
	for i, n := range s.Nodes {
		nodes[i] = dataplane.Node{
			Name: n.Name, PublicKey: n.PublicKey, Endpoint: n.Endpoint, Slices: n.Slices, Keepalive: n.Keepalive, Services: n.Services, Candidates: n.Candidates, Relay: n.Relay,
		}
	}
	return nodes
}

// guests are those of all nodes.
func (s savedSet) guests() []dataplane.NodeGuest {
	var guests []dataplane.NodeGuest
	for _, n := range s.Nodes {
		guests = append(guests, n.Guests.of(n.Name)...)
	}
	return guests
}

// parseSaved decodes what save wrote for the node self.
func parseSaved(data []byte, self string) (*savedSet, error) {
	var set savedSet
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, err
	}
	if set.Version != stateVersion {
		return nil, fmt.Errorf("version %d, want %d", set.Version, stateVersion)
	}
	if len(set.Cluster) == 0 {
		return nil, errors.New("no cluster prefix")
	}
	for _, node := range set.Nodes {
		if node.Name == self && node.UID == set.UID && len(node.Slices) > 0 {
			return &set, nil
		}
	}
	return nil, fmt.Errorf("node %s with a slice is not in it", self)
}

// readState reads a file of at most limit bytes, nil if there is none. Of a longer
// one the rest is missing.
func readState(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, limit))
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// load reads the last set, nil if there is none.
func (k *Kube) load() (*savedSet, error) {
	path := StateFile(k.cfg.StateDir)
	data, err := readState(path, stateLimit)
	if err != nil || data == nil {
		return nil, err
	}
	set, err := parseSaved(data, k.cfg.Node)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	k.set.saved = data
	return set, nil
}

// save writes a set down if it is another than what lies there.
func (k *Kube) save(set savedSet) error {
	if len(set.Nodes) == 0 {
		return nil
	}
	set.Version = stateVersion
	data, err := json.Marshal(set)
	if err != nil {
		return fmt.Errorf("keep node set: %w", err)
	}
	if bytes.Equal(data, k.set.saved) {
		return nil
	}
	if err := durable.Replace(StateFile(k.cfg.StateDir), bytes.NewReader(data), 0o600); err != nil {
		return fmt.Errorf("keep node set: %w", err)
	}
	k.set.saved = data
	return nil
}
