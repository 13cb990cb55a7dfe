package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

const (
	keyA = "5qgZMTXnZBHT1lFPJCLgJEW9JdxAEBFcOQrKBAIyE0g="
	keyC = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
	keyB = "QH0rLxzLhZWuwLtfVbQoJAqF1iT4cJzSZ2jKDWW0BGY="
)

// dualStack is the configuration that node files are read under here.
func dualStack() Config {
	config := defaultConfig("a")
	config.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd20::/48")}
	return config
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func TestParseNodes(t *testing.T) {
	got, err := parseNodes([]byte(`
nodes:
- name: a
  slices: [10.20.7.0/24]
- name: b
  publicKey: `+keyB+`
  endpoint: b.example.net:51820
  slices: ["fd20:0:0:9::/64", 10.20.8.0/25]
  keepalive: 25s
  services:
  - {name: shop/web, publicKey: `+keyA+`, port: 51821, blocks: [10.20.8.16/28, "fd20:0:0:9::100/120", 10.20.8.32/28]}
  - {name: bank, publicKey: `+keyC+`, port: 51900, blocks: [10.20.8.48/28]}
- name: c
  publicKey: ""
  endpoint: "[2001:db8::3]:7"
  keepalive: 0
  services: []
  candidates: [server_reflexive/203.0.113.7:40001, "relay/[2001:db8::1]:49152", "host/[::ffff:192.0.2.3]:7"]
`), dualStack())
	if err != nil {
		t.Fatal(err)
	}
	want := []wireguard.Node{
		// Slots of FNV-1a 64: a is 0xaf63dc4c8601ec8c, c is 0xaf63de4c8601eff2.
		{Name: "a", Slices: prefixes("10.20.7.0/24", "fd20:0:0:ec8c::/64")},
		{
			Name: "b", PublicKey: keyB, Endpoint: "b.example.net:51820", Slices: prefixes("10.20.8.0/25", "fd20:0:0:9::/64"), Keepalive: 25 * time.Second,
			Services: []wireguard.NodeService{
				{Name: "shop/web", PublicKey: keyA, Port: 51821, Blocks: prefixes("10.20.8.16/28", "fd20:0:0:9::100/120", "10.20.8.32/28")},
				{Name: "bank", PublicKey: keyC, Port: 51900, Blocks: prefixes("10.20.8.48/28")},
			},
		},
		{
			Name: "c", Endpoint: "[2001:db8::3]:7", Slices: prefixes("10.20.242.0/24", "fd20:0:0:eff2::/64"), Services: []wireguard.NodeService{},
			Candidates: []string{"server_reflexive/203.0.113.7:40001", "relay/[2001:db8::1]:49152", "host/192.0.2.3:7"},
		},
	}
	if diff := cmp.Diff(want, got, compareConfigs); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
}

// nodesWithServices is a nodes file in which node a, whose slices are 10.20.1.0/24 and
// one of IPv6, hosts services.
func nodesWithServices(services string) string {
	return "nodes:\n- name: a\n  slices: [10.20.1.0/24]\n  services: " + services + "\n"
}

func TestBadServiceIsOneLineThatNamesTheKey(t *testing.T) {
	web := "name: web, publicKey: " + keyA + ", port: 51821, blocks: [10.20.1.16/28]"
	tests := []struct{ name, services, want string }{
		{"no list", "{web: {}}", "nodes[0].services: want a list, got keys with values"},
		{"nothing", "", "nodes[0].services: want a list, got nothing"},
		{"cut short", "[{" + web + "}, ]\n  -", "did not find expected key"},
		{"a name alone", "[web]", "nodes[0].services[0].name: want an entry with a name, got text"},
		{"unknown key", "[{" + web + ", mode: dedicated}]", "nodes[0].services[0].mode: unknown key"},
		{"no name", "[{publicKey: x, port: 1, blocks: [10.20.1.16/28]}]", "nodes[0].services[0].name: not set"},
		{"empty name", "[{name: ''}]", "nodes[0].services[0].name: want 1 to 4096 bytes, got 0"},
		{"long name", "[{name: " + strings.Repeat("x", 4097) + "}]", "nodes[0].services[0].name: want 1 to 4096 bytes, got 4097"},
		{"name of no service", "[{name: default}]", "nodes[0].services[0].name: default is the segment of sandboxes without a service"},
		{"name of the wrong kind", "[{name: 7}]", "nodes[0].services[0].name: want text, got a number"},
		{"name twice", "[{" + web + "}, {name: web, publicKey: " + keyB + ", port: 2, blocks: [10.20.1.32/28]}]", "nodes[0].services[1].name: web is services[0] already"},
		{"no key", "[{name: web, port: 51821, blocks: [10.20.1.16/28]}]", "nodes[0].services[0].publicKey: not set"},
		{"empty key", "[{name: web, publicKey: '', port: 51821, blocks: [10.20.1.16/28]}]", "nodes[0].services[0]: it has published no public key yet"},
		{"short key", "[{name: web, publicKey: YWJj, port: 51821, blocks: [10.20.1.16/28]}]", "nodes[0].services[0]: its public key is not 32 bytes in base64"},
		{"key twice", "[{" + web + "}, {name: api, publicKey: " + keyA + ", port: 2, blocks: [10.20.1.32/28]}]", "nodes[0].services[1]: node nodes[0].services[0] has the same public key"},
		{"no port", "[{name: web, publicKey: " + keyA + ", blocks: [10.20.1.16/28]}]", "nodes[0].services[0].port: not set"},
		{"port in quotes", "[{name: web, port: '51821'}]", "nodes[0].services[0].port: want a number, got text"},
		{"port zero", "[{name: web, port: 0}]", "nodes[0].services[0].port: 0 is not between 1 and 65535"},
		{"port too high", "[{name: web, port: 65536}]", "nodes[0].services[0].port: 65536 is not between 1 and 65535"},
		{"half a port", "[{name: web, port: 1.5}]", `nodes[0].services[0].port: "1.5" is not a whole number`},
		{"port twice", "[{" + web + "}, {name: api, publicKey: " + keyB + ", port: 51821, blocks: [10.20.1.32/28]}]", "nodes[0].services[1].port: services[0] has 51821 already"},
		{"no blocks", "[{name: web, publicKey: " + keyA + ", port: 51821}]", "nodes[0].services[0].blocks: not set"},
		{"empty blocks", "[{name: web, blocks: []}]", "nodes[0].services[0].blocks: want one at least"},
		{"blocks not a list", "[{name: web, blocks: 10.20.1.16/28}]", "nodes[0].services[0].blocks: want a list, got text"},
		{"bad block", "[{name: web, blocks: [x]}]", `nodes[0].services[0].blocks: "x" is not a CIDR`},
		{"block outside the slices", "[{name: web, publicKey: " + keyA + ", port: 1, blocks: [10.20.2.16/28]}]", "nodes[0].services[0].blocks: 10.20.2.16/28 is outside the slices 10.20.1.0/24, fd20:0:0:ec8c::/64 of a"},
		{"block around a slice", "[{name: web, publicKey: " + keyA + ", port: 1, blocks: [10.20.0.0/23]}]", "nodes[0].services[0].blocks: 10.20.0.0/23 is outside the slices"},
		{"blocks overlap", "[{name: web, blocks: [10.20.1.16/28, 10.20.1.16/29]}]", "nodes[0].services[0].blocks: 10.20.1.16/28 and 10.20.1.16/29 overlap"},
		{"block of another service", "[{" + web + "}, {name: api, publicKey: " + keyB + ", port: 2, blocks: [10.20.1.24/29]}]", "nodes[0].services[1]: its slice 10.20.1.24/29 overlaps 10.20.1.16/28 of node nodes[0].services[0]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseNodes([]byte(nodesWithServices(tt.services)), dualStack())
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error:\n%v\nwant one line with:\n%s", err, tt.want)
			}
		})
	}
}

func TestANodeAtTheEndMovesNoOther(t *testing.T) {
	list := "nodes:\n- name: a\n"
	before, err := parseNodes([]byte(list), dualStack())
	if err != nil {
		t.Fatal(err)
	}
	const step, total = 25, 200 // of 256 slices: many collide
	for i := 0; i < total; i += step {
		for j := range step {
			list += fmt.Sprintf("- name: node-%d\n", i+j)
		}
		after, err := parseNodes([]byte(list), dualStack())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, after[:len(before)], compareConfigs); diff != "" {
			t.Fatalf("earlier nodes (-before +after):\n%s", diff)
		}
		before = after
	}
	checkNodesInvariants(t, before, dualStack())
}

func TestOneKeyHasOneSpelling(t *testing.T) {
	// The last character before "=" carries two bits that no byte holds.
	other := keyB[:42] + "Z="
	_, err := parseNodes([]byte("nodes:\n- {name: a, publicKey: "+keyB+"}\n- {name: b, publicKey: "+other+"}"), dualStack())
	if err == nil || !strings.Contains(err.Error(), "nodes[1]: b: node a has the same public key") {
		t.Errorf("error %v", err)
	}
}

func TestBadNodesFileIsOneLineThatNamesTheKey(t *testing.T) {
	tests := []struct{ name, file, want string }{
		{"empty", "", "the file is empty"},
		{"not YAML", "nodes: {", "did not find expected node content"},
		{"unknown key at the top", "nodes: [{name: a}]\npeers: []", `unknown key "peers"`},
		{"no list", "nodes:", "nodes: want a list, got nothing"},
		{"cut short before a value", "nodes:\n- name: a\n- name:", "nodes[1].name: want text, got nothing"},
		{"cut short before a name", "nodes:\n- name: a\n-", "nodes[1].name: want an entry with a name, got nothing"},
		{"without this node", "nodes: [{name: b}]", "nodes: this node, a, is not in the list"},
		{"unknown key", "nodes: [{name: a, pubkey: x}]", "nodes[0].pubkey: unknown key"},
		{"key in other case", "nodes: [{name: a, publickey: x}]", "nodes[0].publickey: unknown key"},
		{"key twice", "nodes:\n- name: a\n  name: b", `key "name" already set`},
		{"no name", "nodes: [{publicKey: ''}]", "nodes[0].name: not set"},
		{"name of the wrong kind", "nodes: [{name: 7}]", "nodes[0].name: want text, got a number (put it in quotes)"},
		{"name twice", "nodes: [{name: a}, {name: b}, {name: a}]", "nodes[2].name: a is nodes[0] already"},
		{"short key", "nodes: [{name: a, publicKey: YWJj}]", "nodes[0]: a: its public key is not 32 bytes in base64"},
		{"zero key", "nodes: [{name: a, publicKey: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}]", "nodes[0]: a: its public key is one that no private key belongs to"},
		{"key twice on two nodes", "nodes: [{name: a, publicKey: " + keyA + "}, {name: b, publicKey: " + keyA + "}]", "nodes[1]: b: node a has the same public key"},
		{"endpoint without port", "nodes: [{name: a, endpoint: 192.0.2.1}]", "nodes[0]: a: its endpoint is not HOST:PORT"},
		{"endpoint with port zero", "nodes: [{name: a, endpoint: '192.0.2.1:0'}]", "its endpoint is not HOST:PORT with a port between 1 and 65535"},
		{"endpoint with a large port", "nodes: [{name: a, endpoint: '192.0.2.1:65536'}]", "its endpoint is not HOST:PORT with a port between 1 and 65535"},
		{"endpoint nobody has", "nodes: [{name: a, endpoint: '0.0.0.0:1'}]", "no node can be reached at its endpoint 0.0.0.0"},
		{"endpoint mistyped", "nodes: [{name: a, endpoint: '192.0.2.256:1'}]", "its endpoint is neither an address nor a host name"},
		{"endpoint with a space", "nodes: [{name: a, endpoint: 'my host:1'}]", "its endpoint is neither an address nor a host name"},
		{"endpoint in the overlay", "nodes: [{name: a, endpoint: '10.20.3.4:1'}]", "its endpoint 10.20.3.4 lies in the overlay"},
		{"endpoint without a host", "nodes: [{name: a, endpoint: ':1'}]", "its endpoint is neither an address nor a host name"},
		{"keepalive without a unit", "nodes: [{name: a, keepalive: 25}]", "nodes[0].keepalive: want text, got a number"},
		{"keepalive in words", "nodes: [{name: a, keepalive: often}]", `nodes[0].keepalive: "often" is not a duration such as 25s`},
		{"keepalive negative", "nodes: [{name: a, keepalive: -1s}]", "nodes[0].keepalive: -1s is not whole seconds"},
		{"keepalive too long", "nodes: [{name: a, keepalive: 65536s}]", "is not whole seconds between 0s and 65535s"},
		{"keepalive with parts", "nodes: [{name: a, keepalive: 1500ms}]", "is not whole seconds"},
		{"candidates not a list", "nodes: [{name: a, candidates: 'host/192.0.2.1:1'}]", "nodes[0].candidates: want a list, got text"},
		{"candidate of another kind", "nodes: [{name: a, candidates: ['host/192.0.2.1:1', 'guess/192.0.2.1:1']}]", "nodes[0].candidates: item 1: candidate \"guess/192.0.2.1:1\""},
		{"candidate that is a name", "nodes: [{name: a, candidates: ['host/a.example:1']}]", "nodes[0].candidates: item 0: candidate \"host/a.example:1\""},
		{"candidate nobody reaches", "nodes: [{name: a, candidates: ['host/127.0.0.1:1']}]", "nodes[0].candidates: item 0: candidate \"host/127.0.0.1:1\""},
		{"candidate in the overlay", "nodes: [{name: a, candidates: ['relay/10.20.9.1:1']}]", "nodes[0].candidates: item 0: candidate \"relay/10.20.9.1:1\" lies in the overlay 10.20.0.0/16, fd20::/48"},
		{"too many candidates", "nodes: [{name: a, candidates: [" + strings.Repeat("x,", 17) + "]}]", "nodes[0].candidates: 17 of them, a node has at most 16"},
		{"slices not a list", "nodes: [{name: a, slices: 10.20.1.0/24}]", "nodes[0].slices: want a list, got text"},
		{"bad slice", "nodes: [{name: a, slices: [x]}]", `nodes[0].slices: "x" is not a CIDR`},
		{"slice outside the cluster", "nodes: [{name: a, slices: [10.21.1.0/24]}]", "nodes[0].slices: a: 10.21.1.0/24 is outside the cluster CIDR 10.20.0.0/16, fd20::/48"},
		{"slice around the cluster", "nodes: [{name: a, slices: [10.0.0.0/8]}]", "nodes[0].slices: a: 10.0.0.0/8 is outside the cluster CIDR"},
		{"slice without room", "nodes: [{name: a, slices: [10.20.1.0/31]}]", "nodes[0].slices: a: 10.20.1.0/31 is too small, a slice has at most /30"},
		{"slice without room, IPv6", "nodes: [{name: a, slices: ['fd20::/127']}]", "nodes[0].slices: a: fd20::/127 is too small, a slice has at most /126"},
		{"two slices of a family", "nodes: [{name: a, slices: [10.20.1.0/24, 10.20.2.0/24]}]", "nodes[0].slices: a: 10.20.2.0/24 is its second slice of one family"},
		{"slices overlap", "nodes: [{name: a, slices: [10.20.1.0/24]}, {name: b, slices: [10.20.0.0/20]}]", "nodes[1]: b: its slice 10.20.0.0/20 overlaps 10.20.1.0/24 of node a"},
		{"same slice", "nodes: [{name: a, slices: [10.20.1.0/24]}, {name: b, slices: [10.20.1.0/24]}]", "nodes[1]: b: its slice 10.20.1.0/24 overlaps 10.20.1.0/24 of node a"},
		{"no slice left", "nodes: [{name: a}, {name: b, slices: [10.20.0.0/16]}]", "nodes: carve 10.20.0.0/16 into /24 for a: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseNodes([]byte(tt.file), dualStack())
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error:\n%v\nwant one line with:\n%s", err, tt.want)
			}
		})
	}
}

// checkNodesInvariants says what holds for every list that is accepted.
func checkNodesInvariants(t *testing.T, nodes []wireguard.Node, config Config) {
	t.Helper()
	names := map[string]bool{}
	var all []netip.Prefix
	for _, node := range nodes {
		if names[node.Name] || node.Name == "" {
			t.Errorf("name %q is empty or there twice", node.Name)
		}
		names[node.Name] = true
		if len(node.Slices) != len(config.ClusterCIDRs) {
			t.Errorf("node %s has slices %v", node.Name, node.Slices)
		}
		for i, slice := range node.Slices {
			if !config.ClusterCIDRs[i].Contains(slice.Addr()) || slice.Bits() < config.ClusterCIDRs[i].Bits() || slice != slice.Masked() {
				t.Errorf("node %s: slice %s of cluster %s", node.Name, slice, config.ClusterCIDRs[i])
			}
			for _, other := range all {
				if slice.Overlaps(other) {
					t.Errorf("slices %s and %s overlap", slice, other)
				}
			}
			all = append(all, slice)
		}
		checkServicesInvariants(t, node)
		for _, text := range node.Candidates {
			if candidate, err := nat.ParseCandidate(text); err != nil || candidate.String() != text {
				t.Errorf("node %s: candidate %q: %v", node.Name, text, err)
			}
		}
	}
	if !names[config.NodeName] {
		t.Errorf("accepted without this node")
	}
}

// checkServicesInvariants says what holds for the services of every node that is
// accepted.
func checkServicesInvariants(t *testing.T, node wireguard.Node) {
	t.Helper()
	named := map[string]bool{}
	var blocks []netip.Prefix
	for _, service := range node.Services {
		if named[service.Name] || service.Name == "" || service.Port < 1 || service.Port > 65535 || len(service.Blocks) == 0 {
			t.Errorf("node %s: service %+v", node.Name, service)
		}
		named[service.Name] = true
		for _, block := range service.Blocks {
			if !slices.ContainsFunc(node.Slices, func(s netip.Prefix) bool { return s.Contains(block.Addr()) && s.Bits() <= block.Bits() }) {
				t.Errorf("node %s: block %s is outside its slices %v", node.Name, block, node.Slices)
			}
			if slices.ContainsFunc(blocks, block.Overlaps) {
				t.Errorf("node %s: block %s overlaps one of %v", node.Name, block, blocks)
			}
			blocks = append(blocks, block)
		}
	}
}

func FuzzNodes(f *testing.F) {
	f.Add("nodes:\n- name: a\n  publicKey: " + keyA + "\n  endpoint: h:1\n  keepalive: 25s\n  slices: [10.20.1.0/24, 'fd20:0:0:1::/64']\n- name: b\n")
	f.Add("nodes: [{name: a}, {name: b, slices: [10.20.0.0/17]}, {name: c, slices: [10.20.128.0/18]}]")
	f.Add("nodes: &n [{name: a, slices: &s [10.20.0.0/30]}, {name: b, slices: *s}]")
	f.Add("nodes:\n- name: a\n  endpoint: '[fe80::1%eth0]:1'\n  keepalive: 0\n")
	f.Add(nodesWithServices("[{name: web, publicKey: " + keyA + ", port: 51821, blocks: [10.20.1.16/28, 'fd20:0:0:ec8c::100/120']}, {name: api, publicKey: " + keyB + ", port: 1, blocks: [10.20.1.32/29]}]"))
	f.Add(nodesWithServices("&s [{name: web, publicKey: "+keyA+", port: 65535, blocks: [10.20.1.0/24]}]") + "- {name: b, services: *s}\n")
	f.Add("nodes: [{name: a, candidates: [host/192.0.2.1:1, 'relay/[2001:db8::1]:65535', 'server_reflexive/[::ffff:203.0.113.7]:1']}]")
	f.Add("{\"nodes\": [{\"name\": \"a\"}]}")
	f.Fuzz(func(t *testing.T, text string) {
		nodes, err := parseNodes([]byte(text), dualStack())
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("error of several lines: %q", err)
			}
			return
		}
		checkNodesInvariants(t, nodes, dualStack())
	})
}
