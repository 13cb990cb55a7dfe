package attach

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// hcnUpdate makes golden files of what the tests got:
// UPDATE=1 go test ./pkg/dataplane/attach
const hcnUpdate = "UPDATE"

// hcnGolden compares text with a file of testdata.
func hcnGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "hcn", name)
	if os.Getenv(hcnUpdate) != "" {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.ReplaceAll(string(want), "\r\n", "\n"), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// hcnDocuments are what is sent to HCN, by name of their golden file. On Windows
// hcsshim's types have to marshal to the same.
func hcnDocuments() map[string]any {
	const network, endpoint, namespace = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222", podNamespace
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.42.7.0/24"), netip.MustParsePrefix("fd42:0:0:7::/64")}
	segment := hcnSegment{Name: "default", ID: network, Subnets: prefixes[:1]}
	dual := segment
	dual.Subnets = prefixes
	at := hcnAttachment{
		Key: Key{ContainerID: "pod", IfName: "eth0"}, Endpoint: endpoint, Subnets: prefixes, MAC: macText([]byte{2, 0, 0x5e, 0x10, 0, 0xff}),
		Addrs: []netip.Addr{netip.MustParseAddr("10.42.7.2"), netip.MustParseAddr("fd42:0:0:7::2")},
	}
	plain := at
	at.DNS = DNS{Servers: []netip.Addr{netip.MustParseAddr("10.42.7.1")}, Domain: "cluster.local", Search: []string{"svc.cluster.local", "cluster.local"}}
	plain.Addrs, plain.MAC = at.Addrs[:1], ""
	full := HCNConfig{
		NoMasquerade: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/48")},
	}
	return map[string]any{
		"network-internal.json":    networkWanted(segment, ""),
		"network-transparent.json": networkWanted(segment, "Ethernet 2"),
		"network-dual.json":        networkWanted(dual, ""),
		"endpoint-plain.json":      endpointWanted(plain, network, HCNConfig{}),
		"endpoint-full.json":       endpointWanted(at, network, full),
		"namespace.json":           namespaceWanted(namespace),
		"namespace-add.json":       endpointChange(hcnAdd, endpoint),
		"namespace-remove.json":    endpointChange(hcnRemove, endpoint),
	}
}

func indented(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw) + "\n"
}

func TestHCNDocuments(t *testing.T) {
	for name, document := range hcnDocuments() {
		hcnGolden(t, name, indented(t, document))
	}
}

// What an Attach, the same again, a Detach and a ReleaseSegment ask of HCN, in
// that order. Ids are numbered.
func TestHCNCalls(t *testing.T) {
	n, spec := newHCNNode(t), ownSpec()
	n.attachHCN(t, spec)
	n.attachHCN(t, spec)
	if err := n.Detach(t.Context(), spec.Key); err != nil {
		t.Fatal(err)
	}
	if err := n.ReleaseSegment(t.Context(), "default"); err != nil {
		t.Fatal(err)
	}
	numbers := map[string]string{}
	guid := regexp.MustCompile(`[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}`)
	text := guid.ReplaceAllStringFunc(strings.Join(n.fake.calls, "\n")+"\n", func(id string) string {
		id = strings.ToLower(id)
		if numbers[id] == "" {
			numbers[id] = fmt.Sprintf("<%d>", len(numbers)+1)
		}
		return numbers[id]
	})
	hcnGolden(t, "calls.txt", text)
}
