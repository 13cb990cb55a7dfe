package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// maxServiceName is the longest name of a service, in bytes.
const maxServiceName = 4096

// parseServices decodes the dedicated services of one node; its errors start with
// the key.
func parseServices(value any) ([]wireguard.NodeService, error) {
	list, ok := value.([]any)
	if !ok {
		return nil, fmt.Errorf("services: want a list, got %s", kindOf(value))
	}
	services := make([]wireguard.NodeService, len(list))
	for i, item := range list {
		var err error
		if services[i], err = parseService(item); err != nil {
			return nil, fmt.Errorf("services[%d].%w", i, err)
		}
		same := func(earlier wireguard.NodeService) bool { return earlier.Name == services[i].Name }
		if first := slices.IndexFunc(services[:i], same); first >= 0 {
			return nil, fmt.Errorf("services[%d].name: %s is services[%d] already", i, services[i].Name, first)
		}
		same = func(earlier wireguard.NodeService) bool { return earlier.Port == services[i].Port }
		if first := slices.IndexFunc(services[:i], same); first >= 0 {
			return nil, fmt.Errorf("services[%d].port: services[%d] has %d already", i, first, services[i].Port)
		}
	}
	return services, nil
}

// parseService decodes one entry, of which nothing may lack; its errors start
// with the key.
func parseService(item any) (wireguard.NodeService, error) {
	var service wireguard.NodeService
	tree, ok := item.(map[string]any)
	if !ok {
		return service, fmt.Errorf("name: want an entry with a name, got %s", kindOf(item))
	}
	for _, key := range sortedKeys(tree) {
		if err := setServiceKey(&service, key, tree[key]); err != nil {
			return service, fmt.Errorf("%s: %w", key, err)
		}
	}
	for _, key := range []string{"name", "publicKey", "port", "blocks"} {
		if _, found := tree[key]; !found {
			return service, fmt.Errorf("%s: not set", key)
		}
	}
	return service, nil
}

func setServiceKey(service *wireguard.NodeService, key string, value any) (err error) {
	switch key {
	case "name":
		service.Name, err = parseServiceName(value)
	case "publicKey":
		service.PublicKey, err = asText(value)
	case "port":
		number, ok := value.(json.Number)
		if !ok {
			return fmt.Errorf("want a number, got %s", kindOf(value))
		}
		service.Port, err = parseInt(number.String(), 1, 65535)
	case "blocks":
		service.Blocks, err = parseBlocks(value)
	default:
		err = errors.New("unknown key")
	}
	return err
}

func parseServiceName(value any) (string, error) {
	name, err := asText(value)
	switch {
	case err != nil:
		return "", err
	case name == "" || len(name) > maxServiceName:
		return "", fmt.Errorf("want 1 to %d bytes, got %d", maxServiceName, len(name))
	case name == dataplane.DefaultSegment:
		return "", fmt.Errorf("%s is the segment of sandboxes without a service", name)
	}
	return name, nil
}

func parseBlocks(value any) ([]netip.Prefix, error) {
	texts, err := asTexts(value)
	if err != nil {
		return nil, err
	}
	if len(texts) == 0 {
		return nil, errors.New("want one at least")
	}
	return parsePrefixes(texts)
}

// checkServices refuses blocks outside the slices of their nodes, and lets the
// planner of the data plane judge keys and blocks. All services are judged as one
// cluster's nodes: no two devices have the same key, and no two services the same
// addresses.
func checkServices(nodes []wireguard.Node) error {
	var judged []wireguard.Node
	for i, node := range nodes {
		for j, service := range node.Services {
			key := fmt.Sprintf("nodes[%d].services[%d]", i, j)
			for _, block := range service.Blocks {
				if !slices.ContainsFunc(node.Slices, func(s netip.Prefix) bool { return s.Contains(block.Addr()) && s.Bits() <= block.Bits() }) {
					return fmt.Errorf("%s.blocks: %s is outside the slices %s of %s", key, block, joinPrefixes(node.Slices), node.Name)
				}
			}
			judged = append(judged, wireguard.Node{Name: key, PublicKey: service.PublicKey, Slices: service.Blocks})
		}
	}
	if _, problems := wireguard.Plan(wireguard.PlanInput{Nodes: judged}); len(problems) > 0 {
		return fmt.Errorf("%s: %w", problems[0].Node, problems[0].Err)
	}
	return nil
}
