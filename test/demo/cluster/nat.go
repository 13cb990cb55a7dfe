//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// Machine is a network namespace that is a node without being on the fabric.
type Machine struct {
	// NS is the namespace.
	NS *netlab.NS
	// Addr is its own address, which the nodes file tells as the node's endpoint.
	Addr netip.Addr
}

// NAT is what a daemon is told of ways through NATs.
type NAT struct {
	// Enabled is whether it looks for them at all; nil is the daemon's default.
	Enabled *bool `json:"enabled,omitempty"`
	// STUNServers are HOST:PORT each.
	STUNServers []string `json:"stun_servers,omitempty"`
	// RefreshSeconds is how often they are asked; 0 is the daemon's default.
	RefreshSeconds int `json:"stun_refresh_interval_secs,omitempty"`
	// Relay makes the node a relay for others.
	Relay *Relay `json:"relay_server,omitempty"`
}

// Relay is a node's relay.
type Relay struct {
	// ListenPort is its port, by UDP and by TCP.
	ListenPort uint16 `json:"listen_port"`
	// External is where others reach it.
	External netip.AddrPort `json:"external_addr"`
}

// NATStatus asks the node's daemon what it knows of ways through NATs, over its
// socket.
func (n *Node) NATStatus(ctx context.Context) (shim.NATStatus, error) {
	client, err := n.Dial(ctx)
	if err != nil {
		return shim.NATStatus{}, err
	}
	status, err := client.Status(ctx)
	if err = errors.Join(err, client.Close()); err != nil {
		return shim.NATStatus{}, fmt.Errorf("ask overlayd on %s: %w", n.Name, err)
	}
	if status.NAT == nil {
		return shim.NATStatus{}, nil
	}
	return *status.NAT, nil
}

// TellCandidates tells every node at which addresses the others say they may be
// reached, and their relays, as Kubernetes would. What a node said last holds
// while it says nothing. It returns what each node knows, by name.
func (c *Cluster) TellCandidates(ctx context.Context) (map[string]shim.NATStatus, error) {
	known := map[string]shim.NATStatus{}
	changed := false
	for _, node := range c.Nodes {
		status, err := node.NATStatus(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil { // its daemon is away
			continue
		}
		known[node.Name] = status
		if !status.Enabled { // its data plane is not up
			continue
		}
		candidates, relay := candidatesOf(status), relayOf(status)
		changed = changed || !slices.Equal(candidates, node.candidates) || relay != node.relay
		node.candidates, node.relay = candidates, relay
	}
	if !changed {
		return known, nil
	}
	return known, c.writeNodes()
}

// candidatesOf are a node's candidates as the nodes file has them.
func candidatesOf(status shim.NATStatus) []string {
	var texts []string
	for _, candidate := range status.Candidates {
		texts = append(texts, fmt.Sprintf("%s/%s", candidate.Type, candidate.Address))
	}
	return texts
}

// relayOf is how a node's relay is reached as the nodes file has it, empty for
// none.
func relayOf(status shim.NATStatus) string {
	if status.Relay == nil {
		return ""
	}
	return status.Relay.Offer
}
