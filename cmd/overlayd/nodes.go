package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/ipam"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// nodesLimit bounds the nodes file, in bytes: 5,000 nodes take about 1 MiB.
const nodesLimit = 16 << 20

// parseNodes turns a nodes file into the whole set of nodes. The file is
//
//	nodes:
//	- name: node-a            # what nodeName says there
//	  publicKey: BASE64       # empty until the node's key is known
//	  endpoint: 192.0.2.1:51820   # or a host name; empty if only the node itself can call
//	  slices: [10.20.1.0/24]  # at most one per family; carved where missing
//	  keepalive: 25s          # 0 or missing sends none
//	  services:               # the dedicated services it hosts, as its status tells
//	  - {name: ns/web, publicKey: BASE64, port: 51821, blocks: [10.20.1.240/28]}
//	  candidates:             # further addresses at which others may reach it through NATs
//	  - server_reflexive/203.0.113.7:40001
//	  relay: udp=203.0.113.1:3478  # how its relay is reached, as its status tells
//
// Slices are carved in the order of the file, so a node that is added at its
// end moves no other. It is strict: one mistake refuses the whole file, with
// one line that names the key.
func parseNodes(data []byte, config Config) ([]wireguard.Node, error) {
	tree, err := readTree(data)
	if err != nil {
		return nil, err
	}
	for _, key := range sortedKeys(tree) {
		if key != "nodes" {
			return nil, fmt.Errorf("unknown key %q", key)
		}
	}
	list, ok := tree["nodes"].([]any)
	if !ok {
		return nil, fmt.Errorf("nodes: want a list, got %s", kindOf(tree["nodes"]))
	}
	nodes := make([]wireguard.Node, len(list))
	for i, item := range list {
		if nodes[i], err = parseNode(item); err != nil {
			return nil, fmt.Errorf("nodes[%d].%w", i, err)
		}
	}
	if err := checkNames(nodes, config.NodeName); err != nil {
		return nil, err
	}
	if err := checkSlices(nodes, config.ClusterCIDRs); err != nil {
		return nil, err
	}
	if err := carveSlices(nodes, config); err != nil {
		return nil, err
	}
	if err := checkCandidates(nodes, config.ClusterCIDRs); err != nil {
		return nil, err
	}
	if err := checkPeers(nodes, config.ClusterCIDRs); err != nil {
		return nil, err
	}
	if err := checkServices(nodes); err != nil {
		return nil, err
	}
	return nodes, nil
}

// parseNode decodes one entry; its errors start with the key.
func parseNode(item any) (wireguard.Node, error) {
	tree, ok := item.(map[string]any)
	if !ok {
		return wireguard.Node{}, fmt.Errorf("name: want an entry with a name, got %s", kindOf(item))
	}
	var node wireguard.Node
	var err error
	for _, key := range sortedKeys(tree) {
		if key == "services" { // says itself which of them is wrong
			node.Services, err = parseServices(tree[key])
		} else if err = setNodeKey(&node, key, tree[key]); err != nil {
			err = fmt.Errorf("%s: %w", key, err)
		}
		if err != nil {
			return wireguard.Node{}, err
		}
	}
	if err := checkNodeName(node.Name); err != nil {
		return wireguard.Node{}, fmt.Errorf("name: %w", err)
	}
	return node, nil
}

func setNodeKey(node *wireguard.Node, key string, value any) error {
	if key == "slices" {
		texts, err := asTexts(value)
		if err != nil {
			return err
		}
		node.Slices, err = parsePrefixes(texts)
		return err
	}
	if key == "candidates" {
		var err error
		node.Candidates, err = parseCandidates(value)
		return err
	}
	if key == "relay" {
		text, err := asText(value)
		if err != nil {
			return err
		}
		offer, err := nat.ParseRelayOffer(text)
		node.Relay = offer.String()
		return err
	}
	if key == "keepalive" {
		var err error
		node.Keepalive, err = parseKeepalive(value)
		return err
	}
	fields := map[string]*string{"name": &node.Name, "publicKey": &node.PublicKey, "endpoint": &node.Endpoint}
	field, known := fields[key]
	if !known {
		return errors.New("unknown key")
	}
	var err error
	*field, err = asText(value)
	return err
}

// parseCandidates decodes the candidates of one node.
func parseCandidates(value any) ([]string, error) {
	texts, err := asTexts(value)
	if err != nil {
		return nil, err
	}
	if len(texts) > nat.MaxCandidates {
		return nil, fmt.Errorf("%d of them, a node has at most %d", len(texts), nat.MaxCandidates)
	}
	for i, text := range texts {
		candidate, err := nat.ParseCandidate(text)
		if err != nil {
			return nil, fmt.Errorf("item %d: %w", i, err)
		}
		texts[i] = candidate.String()
	}
	return texts, nil
}

// checkCandidates refuses addresses in the overlay: packets to them would wind up
// in the tunnel again.
func checkCandidates(nodes []wireguard.Node, clusters []netip.Prefix) error {
	for i, node := range nodes {
		for j, text := range node.Candidates {
			candidate, err := nat.ParseCandidate(text)
			inside := func(cluster netip.Prefix) bool { return cluster.Contains(candidate.Addr.Addr()) }
			if err == nil && slices.ContainsFunc(clusters, inside) {
				err = fmt.Errorf("candidate %q lies in the overlay %s", text, joinPrefixes(clusters))
			}
			if err != nil {
				return fmt.Errorf("nodes[%d].candidates: item %d: %w", i, j, err)
			}
		}
	}
	return nil
}

// maxKeepalive is what WireGuard's u16 of seconds holds.
const maxKeepalive = 65535 * time.Second

// parseKeepalive parses whole seconds such as 25s; the number 0 is fine too.
func parseKeepalive(value any) (time.Duration, error) {
	if n, ok := value.(interface{ String() string }); ok && n.String() == "0" {
		return 0, nil
	}
	text, err := asText(value)
	if err != nil {
		return 0, err
	}
	keepalive, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration such as 25s", text)
	}
	if keepalive < 0 || keepalive > maxKeepalive || keepalive%time.Second != 0 {
		return 0, fmt.Errorf("%s is not whole seconds between 0s and %ds", text, maxKeepalive/time.Second)
	}
	return keepalive, nil
}

// checkNames refuses a name that two entries share, and a list without this
// node: a file that was cut short often lacks it.
func checkNames(nodes []wireguard.Node, self string) error {
	names := map[string]int{}
	for i, node := range nodes {
		if first, twice := names[node.Name]; twice {
			return fmt.Errorf("nodes[%d].name: %s is nodes[%d] already", i, node.Name, first)
		}
		names[node.Name] = i
	}
	if _, found := names[self]; !found {
		return fmt.Errorf("nodes: this node, %s, is not in the list", self)
	}
	return nil
}

// checkSlices refuses slices that nodes cannot have whatever the others have:
// outside the cluster, too small for a pod, or two of one family.
func checkSlices(nodes []wireguard.Node, clusters []netip.Prefix) error {
	for i, node := range nodes {
		for j, slice := range node.Slices {
			if err := checkSlice(slice, clusters); err != nil {
				return fmt.Errorf("nodes[%d].slices: %s: %w", i, node.Name, err)
			}
			if j > 0 && slices.ContainsFunc(node.Slices[:j], func(p netip.Prefix) bool { return p.Addr().Is4() == slice.Addr().Is4() }) {
				return fmt.Errorf("nodes[%d].slices: %s: %s is its second slice of one family", i, node.Name, slice)
			}
		}
	}
	return nil
}

func checkSlice(slice netip.Prefix, clusters []netip.Prefix) error {
	highest := maxSliceBitsV4
	if slice.Addr().Is6() {
		highest = maxSliceBitsV6
	}
	if slice.Bits() > highest {
		return fmt.Errorf("%s is too small, a slice has at most /%d", slice, highest)
	}
	for _, cluster := range clusters {
		if cluster.Contains(slice.Addr()) && cluster.Bits() <= slice.Bits() {
			return nil
		}
	}
	return fmt.Errorf("%s is outside the cluster CIDR %s", slice, joinPrefixes(clusters))
}

// checkPeers lets the planner of the data plane judge keys, endpoints and
// slices: what it would leave out is a mistake in a file, this node's own entry
// included. A key that is not known yet is none.
func checkPeers(nodes []wireguard.Node, clusters []netip.Prefix) error {
	judged := slices.Clone(nodes)
	for i := range judged {
		if judged[i].PublicKey == "" {
			judged[i].PublicKey = standInKey(i)
		}
	}
	_, problems := wireguard.Plan(wireguard.PlanInput{Nodes: judged, Cluster: clusters})
	if len(problems) == 0 {
		return nil
	}
	at := slices.IndexFunc(nodes, func(n wireguard.Node) bool { return n.Name == problems[0].Node })
	return fmt.Errorf("nodes[%d]: %s: %w", at, problems[0].Node, problems[0].Err)
}

// standInKey is a key that no node has: each is another one, and all begin
// with the same text.
func standInKey(index int) string {
	var key wgtypes.Key
	copy(key[:], "no public key yet")
	binary.BigEndian.PutUint64(key[len(key)-8:], uint64(index))
	return key.String()
}

func joinPrefixes(prefixes []netip.Prefix) string {
	texts := make([]string, len(prefixes))
	for i, prefix := range prefixes {
		texts[i] = prefix.String()
	}
	return strings.Join(texts, ", ")
}

// carveSlices gives every node a slice in each family of the cluster.
func carveSlices(nodes []wireguard.Node, config Config) error {
	names := make([]string, len(nodes))
	for i, node := range nodes {
		names[i] = node.Name
	}
	for _, cluster := range config.ClusterCIDRs {
		length := config.SliceBits.IPv4
		if cluster.Addr().Is6() {
			length = config.SliceBits.IPv6
		}
		fixed := map[string]netip.Prefix{}
		for _, node := range nodes {
			for _, slice := range node.Slices {
				if cluster.Overlaps(slice) {
					fixed[node.Name] = slice
				}
			}
		}
		carved, err := ipam.Carve(cluster, length, fixed, names)
		if err != nil {
			return fmt.Errorf("nodes: %w", err)
		}
		for i, node := range nodes {
			if _, has := fixed[node.Name]; !has {
				nodes[i].Slices = append(nodes[i].Slices, carved[node.Name])
			}
		}
	}
	for i := range nodes {
		slices.SortFunc(nodes[i].Slices, netip.Prefix.Compare)
	}
	return nil
}
