package main

import (
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// update makes golden files of what the tests got: UPDATE=1 go test ./cmd/overlayd
const update = "UPDATE"

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv(update) != "" {
		write(t, path, got)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// noon is the moment at which the snapshots below are looked at.
var noon = time.Unix(1_800_000_000, 0)

func addrs(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// busy is a node in full swing, with everything that a table can show.
func busy() *shim.StatusSnapshot {
	return &shim.StatusSnapshot{
		Node: "node-a", Version: "v1.2.3", Ready: true,
		Waiting:   []string{"/etc/zlayer/nodes.yaml: nodes[1]: node-b: its endpoint is not HOST:PORT"},
		Interface: "zl-cluster-g", Backend: "kernel", ListenPort: 51820, MTU: 1420, PublicKey: keyA,
		NodeIPs: addrs("10.20.1.1", "fd20:0:0:1::1"), SliceCIDRs: prefixes("10.20.1.0/24", "fd20:0:0:1::/64"),
		OverlayCIDRs: prefixes("10.20.0.0/16", "fd20::/48"),
		Peers: []shim.PeerStatus{
			{Node: "node-b", PublicKey: keyB, Endpoint: "192.0.2.2:51820", AllowedIPs: prefixes("10.20.2.0/24", "fd20:0:0:2::/64"), LastHandshakeUnixSecs: noon.Unix() - 72, RxBytes: 5 << 30, TxBytes: 1536, Health: shim.HealthHealthy},
			{Node: "a-node-with-a-long-name.example.net", PublicKey: keyA, Endpoint: "[2001:db8::3]:51820", AllowedIPs: prefixes("10.20.3.0/24"), Health: shim.HealthUnhealthy},
			{Node: "node-d", Problem: "it has published no public key yet"},
		},
		Segments: []shim.SegmentStatus{{Name: "default", Bridge: "zl-default-b", Ports: 2}},
		Attachments: []shim.AttachmentStatus{
			{ContainerID: strings.Repeat("0f", 32), IfName: "eth0", Segment: "default", Addresses: addrs("10.20.1.2", "fd20:0:0:1::2"), HostInterface: "zl-3f09aa51b2-p"},
			{Key: strings.Repeat("ab", 32), Segment: "default", Addresses: addrs("10.20.1.3"), HostInterface: "zl-77aa00ffee-p"},
		},
		Pools: []shim.PoolStatus{
			{Prefix: netip.MustParsePrefix("10.20.1.0/24"), Capacity: 253, Used: 2, Resting: 1},
			{Prefix: netip.MustParsePrefix("fd20:0:0:1::/64"), Capacity: math.MaxUint64, Used: 1},
		},
	}
}

// hosting is a busy node that also hosts services and has guests.
func hosting() *shim.StatusSnapshot {
	s := busy()
	s.Segments = append(s.Segments,
		shim.SegmentStatus{Name: "shop/web", Bridge: "zl-5e0b9a1c07-b", Ports: 4, Mode: shim.ModeShared},
		shim.SegmentStatus{Name: "bank/vault", Bridge: "zl-91c2d3e4f5-b", Ports: 12, Mode: shim.ModeDedicated})
	s.Guests = []shim.GuestStatus{
		{ID: "Anna's laptop", Addresses: addrs("10.20.1.9", "fd20:0:0:1::9"), PublicKey: keyA, Endpoint: "203.0.113.7:40123", LastHandshakeUnixSecs: noon.Unix() - 5, RxBytes: 2048, TxBytes: 1},
		{ID: "vm-1", Addresses: addrs("10.20.1.10", "fd20:0:0:1::a"), PublicKey: keyB},
	}
	s.DedicatedServices = []shim.DedicatedServiceStatus{
		{
			Service: "bank/vault", Interface: "zl-91c2d3e4f5-d", PublicKey: keyA, ListenPort: 51821, PeerCount: 1, Table: 122001, Bridge: "zl-91c2d3e4f5-b",
			Subnets: prefixes("10.20.1.240/28", "fd20:0:0:1:ffff:ffff:ffff:ff00/120"), Attachments: 12,
			Peers: []shim.PeerStatus{
				{Node: "node-b", PublicKey: keyB, Endpoint: "192.0.2.2:51823", AllowedIPs: prefixes("10.20.2.240/28"), LastHandshakeUnixSecs: noon.Unix() - 72, RxBytes: 5 << 30, TxBytes: 1536},
				{Node: "node-d", Problem: "its block 10.99.0.0/28 is outside its slices [10.20.4.0/24]"},
			},
		},
		{Service: "shop/cart", Interface: "zl-shop-cart-d", Subnets: prefixes("10.20.1.224/28"), ListenPort: 51822, JoinGlobal: true, Problem: "open WireGuard device: UDP port 51822 is in use"},
	}
	return s
}

func TestStatusTable(t *testing.T) {
	tests := []struct {
		file     string
		snapshot *shim.StatusSnapshot
	}{
		{"status-busy.txt", busy()},
		{"status-services.txt", hosting()},
		{"status-nat.txt", behindNAT()},
		{"status-dns.txt", naming()},
		{"status-starting.txt", &shim.StatusSnapshot{
			Node: "node-a", Version: "v1.2.3", PublicKey: keyA, OverlayCIDRs: prefixes("10.20.0.0/16"),
			Waiting: []string{"the node set gives this node no slice", "link zl-cluster-g: permission denied\nand another line"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			var out strings.Builder
			if err := printStatus(&out, tt.snapshot, noon); err != nil {
				t.Fatal(err)
			}
			golden(t, tt.file, out.String())
		})
	}
}

func TestAge(t *testing.T) {
	tests := []struct {
		seconds int64
		want    string
	}{
		{-5, "0s ago"}, {0, "0s ago"}, {59, "59s ago"}, {60, "1m0s ago"}, {3599, "59m59s ago"}, {3600, "1h0m ago"},
		{86399, "23h59m ago"}, {86400, "1d0h ago"}, {40 * 86400, "40d0h ago"},
	}
	for _, tt := range tests {
		if got := age(noon.Unix()-tt.seconds, noon); got != tt.want {
			t.Errorf("age of %d s: %s, want %s", tt.seconds, got, tt.want)
		}
	}
	if got := age(0, noon); got != "never" {
		t.Errorf("age of no handshake: %s", got)
	}
}

func TestTraffic(t *testing.T) {
	tests := []struct {
		bytes uint64
		want  string
	}{
		{0, "0 B"}, {1023, "1023 B"}, {1024, "1.0 KiB"}, {1536, "1.5 KiB"}, {1 << 20, "1.0 MiB"}, {5 << 30, "5.0 GiB"},
		{1 << 40, "1.0 TiB"}, {1 << 50, "1.0 PiB"}, {math.MaxUint64, "16.0 EiB"},
	}
	for _, tt := range tests {
		if got := traffic(tt.bytes); got != tt.want {
			t.Errorf("%d bytes: %s, want %s", tt.bytes, got, tt.want)
		}
	}
}
