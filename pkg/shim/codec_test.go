package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	keyA = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
	keyB = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
)

func ip(s string) netip.Addr           { return netip.MustParseAddr(s) }
func cidr(s string) netip.Prefix       { return netip.MustParsePrefix(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
func cidrs(s ...string) AllowedIPs     { return apply(s, netip.MustParsePrefix) }
func ips(s ...string) []netip.Addr     { return apply(s, netip.MustParseAddr) }

func apply[T any](texts []string, parse func(string) T) []T {
	var result []T
	for _, text := range texts {
		result = append(result, parse(text))
	}
	return result
}

var compareNetip = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})

// requestVectors holds what the serde of ZLayer's agent writes for every
// operation, and below it what our additions look like. Each must decode to
// the request, and the request encode to the very bytes.
func requestVectors() []struct {
	name, json string
	req        Request
} {
	return []struct {
		name, json string
		req        Request
	}{
		{"node id", `{"op":"set_local_node_id","node_id":18446744073709551615}`, &SetLocalNodeID{NodeID: 1<<64 - 1}},
		{"pubkey", `{"op":"set_local_wg_pubkey","pubkey":"` + keyA + `"}`, &SetLocalWGPubkey{Pubkey: keyA}},
		{
			"setup global",
			`{"op":"setup_global_overlay","deployment":"prod","instance_id":"42","cluster_cidr":"10.200.0.0/16","slice_cidr":"10.200.0.0/28","wg_port":51820,"nat_enabled":true}`,
			&SetupGlobalOverlay{Deployment: "prod", InstanceID: "42", ClusterCIDR: cidr("10.200.0.0/16"), SliceCIDR: cidr("10.200.0.0/28"), WGPort: 51820, NATEnabled: true},
		},
		{
			"setup global without a slice, v6",
			`{"op":"setup_global_overlay","deployment":"<a & b>","instance_id":"","cluster_cidr":"fd00:200::/48","wg_port":0,"nat_enabled":false}`,
			&SetupGlobalOverlay{Deployment: "<a & b>", ClusterCIDR: cidr("fd00:200::/48")},
		},
		{"teardown global", `{"op":"teardown_global_overlay"}`, &TeardownGlobalOverlay{}},
		{"setup service auto", `{"op":"setup_service_overlay","service":"web","mode":"auto"}`, &SetupServiceOverlay{Service: "web", Mode: ModeAuto}},
		{"setup service shared", `{"op":"setup_service_overlay","service":"web","mode":"shared"}`, &SetupServiceOverlay{Service: "web", Mode: ModeShared}},
		{"setup service dedicated", `{"op":"setup_service_overlay","service":"größe","mode":"dedicated"}`, &SetupServiceOverlay{Service: "größe", Mode: ModeDedicated}},
		{"teardown service", `{"op":"teardown_service_overlay","service":"web"}`, &TeardownServiceOverlay{Service: "web"}},
		{"allocate", `{"op":"allocate_ip","service":"web","join_global":true}`, &AllocateIP{Service: "web", JoinGlobal: true}},
		{"release", `{"op":"release_ip","ip":"10.200.0.5"}`, &ReleaseIP{IP: ip("10.200.0.5")}},
		{"release v6", `{"op":"release_ip","ip":"fd00:200::5"}`, &ReleaseIP{IP: ip("fd00:200::5")}},
		{
			"attach by pid",
			`{"op":"attach_container","handle":{"platform":"linux_pid","pid":4242},"service":"web","join_global":true}`,
			&AttachContainer{Handle: &LinuxPID{PID: 4242}, Service: "web", JoinGlobal: true},
		},
		{
			"attach on Windows",
			`{"op":"attach_container","handle":{"platform":"windows_container","container_id":"ctr-abc","ip":"10.200.0.5"},"service":"web","join_global":false,"dns_server":"10.200.0.1","dns_domain":"overlay"}`,
			&AttachContainer{Handle: &WindowsContainer{ContainerID: "ctr-abc", IP: ip("10.200.0.5")}, Service: "web", DNSServer: ip("10.200.0.1"), DNSDomain: "overlay"},
		},
		{
			"attach on Windows without an address",
			`{"op":"attach_container","handle":{"platform":"windows_container","container_id":"ctr-abc"},"service":"web","join_global":false}`,
			&AttachContainer{Handle: &WindowsContainer{ContainerID: "ctr-abc"}, Service: "web"},
		},
		{
			"attach on Windows, with a namespace",
			`{"op":"attach_container","handle":{"platform":"windows_container","container_id":"ctr-abc","ifname":"eth0","namespace":"` + guidA + `"},"service":"","join_global":true,"dns":{"nameservers":["10.96.0.10"],"search":["default.svc"]}}`,
			&AttachContainer{
				Handle: &WindowsContainer{ContainerID: "ctr-abc", IfName: "eth0", Namespace: guidA}, JoinGlobal: true,
				DNS: &DNSSettings{Nameservers: []netip.Addr{ip("10.96.0.10")}, Search: []string{"default.svc"}},
			},
		},
		{
			"attach a guest",
			`{"op":"attach_container","handle":{"platform":"guest_managed","id":"vm-1"},"service":"web","join_global":true}`,
			&AttachContainer{Handle: &GuestManaged{ID: "vm-1"}, Service: "web", JoinGlobal: true},
		},
		{"detach by pid", `{"op":"detach_container","handle":{"platform":"linux_pid","pid":1}}`, &DetachContainer{Handle: &LinuxPID{PID: 1}}},
		{"detach a guest", `{"op":"detach_container","handle":{"platform":"guest_managed","id":"vm-1"}}`, &DetachContainer{Handle: &GuestManaged{ID: "vm-1"}}},
		{
			"add peer",
			`{"op":"add_peer","public_key":"` + keyA + `","endpoint":"node-2.example:51820","allowed_ips":"10.200.0.5/32,10.200.1.0/24,fd00::/64","persistent_keepalive_secs":25,"scope":{"scope":"global"}}`,
			&AddPeer{PeerSpec: PeerSpec{PublicKey: keyA, Endpoint: "node-2.example:51820", AllowedIPs: cidrs("10.200.0.5/32", "10.200.1.0/24", "fd00::/64"), PersistentKeepaliveSecs: 25}},
		},
		{
			"add peer of a service",
			`{"op":"add_peer","public_key":"` + keyA + `","endpoint":"[fd00::1]:51820","allowed_ips":"","persistent_keepalive_secs":0,"scope":{"scope":"service","service":"web"}}`,
			&AddPeer{PeerSpec: PeerSpec{PublicKey: keyA, Endpoint: "[fd00::1]:51820"}, Scope: Scope{Service: "web"}},
		},
		{
			"add peer, with all additions",
			`{"op":"add_peer","public_key":"` + keyA + `","endpoint":"192.168.1.2:51820","allowed_ips":"10.200.1.0/24","persistent_keepalive_secs":0,` +
				`"candidates":["host/192.168.1.2:51820","server_reflexive/203.0.113.7:40001"],"relay":"udp=192.0.2.1:3478","scope":{"scope":"global"}}`,
			&AddPeer{PeerSpec: PeerSpec{
				PublicKey: keyA, Endpoint: "192.168.1.2:51820", AllowedIPs: cidrs("10.200.1.0/24"),
				Candidates: []string{"host/192.168.1.2:51820", "server_reflexive/203.0.113.7:40001"}, Relay: "udp=192.0.2.1:3478",
			}},
		},
		{"remove peer", `{"op":"remove_peer","pubkey":"` + keyA + `","scope":{"scope":"global"}}`, &RemovePeer{Pubkey: keyA}},
		{"remove peer of a service", `{"op":"remove_peer","pubkey":"` + keyA + `","scope":{"scope":"service","service":"web"}}`, &RemovePeer{Pubkey: keyA, Scope: Scope{Service: "web"}}},
		{"add allowed ip", `{"op":"add_allowed_ip","pubkey":"` + keyA + `","cidr":"10.200.7.0/28","scope":{"scope":"global"}}`, &AddAllowedIP{Pubkey: keyA, CIDR: cidr("10.200.7.0/28")}},
		{"remove allowed ip", `{"op":"remove_allowed_ip","pubkey":"` + keyA + `","cidr":"fd00::/120","scope":{"scope":"service","service":"web"}}`, &RemoveAllowedIP{Pubkey: keyA, CIDR: cidr("fd00::/120"), Scope: Scope{Service: "web"}}},
		{"register dns", `{"op":"register_dns","name":"web.prod.local.","ip":"10.200.0.9"}`, &RegisterDNS{Name: "web.prod.local.", IP: ip("10.200.0.9")}},
		{"unregister dns", `{"op":"unregister_dns","name":"web.prod.local."}`, &UnregisterDNS{Name: "web.prod.local."}},
		{"status", `{"op":"status"}`, &Status{}},
		{"nat tick", `{"op":"nat_tick"}`, &NATTick{}},
		{"shutdown", `{"op":"shutdown"}`, &Shutdown{}},

		{
			"attach by namespace, with all additions",
			`{"op":"attach_container","handle":{"platform":"linux_netns","container_id":"c1","ifname":"eth0","netns":"/run/netns/c1"},"service":"","join_global":true,` +
				`"pod":{"namespace":"default","name":"web-0","uid":"u-1"},"ips":["10.200.0.9","fd00::9"],"mac":"02:00:00:00:00:01","mtu":1400,"network":"pods"}`,
			&AttachContainer{
				Handle: &LinuxNetns{ContainerID: "c1", IfName: "eth0", Netns: "/run/netns/c1"}, JoinGlobal: true,
				Pod: &Pod{Namespace: "default", Name: "web-0", UID: "u-1"}, IPs: ips("10.200.0.9", "fd00::9"), MAC: "02:00:00:00:00:01", MTU: 1400, Network: "pods",
			},
		},
		{"detach by namespace", `{"op":"detach_container","handle":{"platform":"linux_netns","container_id":"c1","ifname":"eth0"}}`, &DetachContainer{Handle: &LinuxNetns{ContainerID: "c1", IfName: "eth0"}}},
		{"check", `{"op":"check_container","handle":{"platform":"linux_netns","container_id":"c1","ifname":"eth0"}}`, &CheckContainer{Handle: &LinuxNetns{ContainerID: "c1", IfName: "eth0"}}},
		{"gc", `{"op":"gc_containers","valid":[{"container_id":"c1","ifname":"eth0"}]}`, &GCContainers{Valid: []Attachment{{"c1", "eth0"}}}},
		{"gc of a network", `{"op":"gc_containers","network":"pods","valid":[{"container_id":"c1","ifname":"eth0"}]}`, &GCContainers{Network: "pods", Valid: []Attachment{{"c1", "eth0"}}}},
		{"gc all", `{"op":"gc_containers","valid":[]}`, &GCContainers{Valid: []Attachment{}}},
		{
			"setup global, with all additions",
			`{"op":"setup_global_overlay","deployment":"prod","instance_id":"","cluster_cidr":"10.200.0.0/16","wg_port":51820,"nat_enabled":true,` +
				`"nat":{"enabled":true,"stun_servers":[{"address":"stun.example:3478","label":"own"}],"turn_servers":[{"address":"192.0.2.9:3478","username":"u","credential":"c","region":"eu"}],` +
				`"hole_punch_timeout_secs":5,"stun_refresh_interval_secs":30,"max_candidate_pairs":4,"relay_server":{"listen_port":3478,"external_addr":"192.0.2.1:3478","max_sessions":7}},` +
				`"uapi_socket_dir":"/run/wireguard"}`,
			&SetupGlobalOverlay{
				Deployment: "prod", ClusterCIDR: cidr("10.200.0.0/16"), WGPort: 51820, NATEnabled: true,
				NAT: &NATConfig{
					Enabled: true, STUNServers: []STUNServer{{"stun.example:3478", "own"}}, TURNServers: []TURNServer{{"192.0.2.9:3478", "u", "c", "eu"}},
					HolePunchTimeoutSecs: 5, STUNRefreshIntervalSecs: 30, MaxCandidatePairs: 4,
					RelayServer: &RelayServer{ListenPort: 3478, ExternalAddr: netip.MustParseAddrPort("192.0.2.1:3478"), MaxSessions: 7},
				},
				UAPISocketDir: "/run/wireguard",
			},
		},
		{"allocate for an owner", `{"op":"allocate_ip","service":"web","join_global":false,"owner":"vm-1"}`, &AllocateIP{Service: "web", Owner: "vm-1"}},
		{"release of an owner's", `{"op":"release_ip","ip":"10.200.0.5","owner":"vm-1"}`, &ReleaseIP{IP: ip("10.200.0.5"), Owner: "vm-1"}},
		{
			"attach with a mode",
			`{"op":"attach_container","handle":{"platform":"linux_netns","container_id":"c1","ifname":"eth0"},"service":"web","join_global":false,"mode":"dedicated"}`,
			&AttachContainer{Handle: &LinuxNetns{ContainerID: "c1", IfName: "eth0"}, Service: "web", Mode: ModeDedicated},
		},
		{"list guests", `{"op":"list_guests"}`, &ListGuests{}},
		{"list names", `{"op":"list_dns"}`, &ListDNS{}},
		{"list names behind one", `{"op":"list_dns","after":"web.prod.svc.overlay.local."}`, &ListDNS{After: "web.prod.svc.overlay.local."}},
		{"ready", `{"op":"ready"}`, &Ready{}},
		{"subscribe", `{"op":"subscribe"}`, &Subscribe{}},
		{"hello", `{"op":"hello","protocol_version":1,"capabilities":["events"]}`, &Hello{ProtocolVersion: 1, Capabilities: []string{"events"}}},
	}
}

func responseVectors() []struct {
	name, json string
	resp       Response
} {
	return []struct {
		name, json string
		resp       Response
	}{
		{"ok", `{"result":"ok"}`, &OK{}},
		{"ip", `{"result":"ip","ip":"10.200.0.5"}`, &AllocatedIP{IP: ip("10.200.0.5")}},
		{"attached", `{"result":"attached","ip":"10.200.0.5"}`, &Attached{IP: ip("10.200.0.5")}},
		{"attached on Windows", `{"result":"attached","ip":"10.200.0.5","namespace_guid":"aabbccdd-eeff-0011-2233-445566778899"}`, &Attached{IP: ip("10.200.0.5"), NamespaceGUID: "aabbccdd-eeff-0011-2233-445566778899"}},
		{
			"guest",
			`{"result":"guest_config","overlay_ip":"10.200.0.7","prefix_len":28,"private_key":"` + keyB + `","public_key":"` + keyA + `","listen_port":51820,` +
				`"peers":[{"public_key":"` + keyB + `","endpoint":"192.0.2.1:51820","allowed_ips":"10.200.0.0/16","persistent_keepalive_secs":25}],"dns_server":"10.200.0.1","dns_domain":"prod.local."}`,
			&GuestConfig{
				OverlayIP: ip("10.200.0.7"), PrefixLen: 28, PrivateKey: keyB, PublicKey: keyA, ListenPort: 51820,
				Peers:     []PeerSpec{{PublicKey: keyB, Endpoint: "192.0.2.1:51820", AllowedIPs: cidrs("10.200.0.0/16"), PersistentKeepaliveSecs: 25}},
				DNSServer: ip("10.200.0.1"), DNSDomain: "prod.local.",
			},
		},
		{
			"guest without peers",
			`{"result":"guest_config","overlay_ip":"fd00::7","prefix_len":120,"private_key":"` + keyB + `","public_key":"` + keyA + `","listen_port":1,"peers":[]}`,
			&GuestConfig{OverlayIP: ip("fd00::7"), PrefixLen: 120, PrivateKey: keyB, PublicKey: keyA, ListenPort: 1, Peers: []PeerSpec{}},
		},
		{"bridge name", `{"result":"bridge_name","name":"zl-prod-42-g"}`, &BridgeName{Name: "zl-prod-42-g"}},
		{"empty status", `{"result":"status","peer_count":0,"service_count":0}`, &StatusSnapshot{}},
		{
			"status",
			`{"result":"status","interface":"zl-overlay0","node_ip":"10.200.0.1","public_key":"` + keyA + `","overlay_cidr":"10.200.0.0/16","slice_cidr":"10.200.0.0/28","peer_count":2,"service_count":1,` +
				`"peers":[{"public_key":"` + keyB + `","endpoint":"1.2.3.4:51820","allowed_ips":"10.200.0.2/32","last_handshake_unix_secs":0}],` +
				`"dedicated_services":[{"service":"web","interface":"zl-web-d","public_key":"` + keyB + `","listen_port":51821,"overlay_ip":"10.200.9.1","subnet":"10.200.9.0/28","peer_count":3}]}`,
			&StatusSnapshot{
				Interface: "zl-overlay0", NodeIP: ip("10.200.0.1"), PublicKey: keyA, OverlayCIDR: cidr("10.200.0.0/16"), SliceCIDR: cidr("10.200.0.0/28"), PeerCount: 2, ServiceCount: 1,
				Peers:             []PeerStatus{{PublicKey: keyB, Endpoint: "1.2.3.4:51820", AllowedIPs: cidrs("10.200.0.2/32")}},
				DedicatedServices: []DedicatedServiceStatus{{Service: "web", Interface: "zl-web-d", PublicKey: keyB, ListenPort: 51821, OverlayIP: ip("10.200.9.1"), Subnet: cidr("10.200.9.0/28"), PeerCount: 3}},
			},
		},
		{"service overlay, shared", `{"result":"service_overlay","name":"zl-web-b","mode":"shared"}`, &ServiceOverlay{Name: "zl-web-b", Mode: ModeShared}},
		{
			"service overlay, dedicated",
			`{"result":"service_overlay","name":"zl-web-d","mode":"dedicated","wg_public_key":"` + keyA + `","wg_port":51821,"overlay_ip":"10.200.9.1","subnet":"10.200.9.0/28"}`,
			&ServiceOverlay{Name: "zl-web-d", Mode: ModeDedicated, WGPublicKey: keyA, WGPort: 51821, OverlayIP: ip("10.200.9.1"), Subnet: cidr("10.200.9.0/28")},
		},

		{"error", `{"result":"err","message":"pool 10.0.0.0/30 is full","code":"exhausted","retryable":true}`, &Error{Message: "pool 10.0.0.0/30 is full", Code: CodeExhausted, Retryable: true}},
		{
			"attached, with all additions",
			`{"result":"attached","ip":"10.200.0.5","addresses":["10.200.0.5/32","fd00::5/128"],"gateways":["169.254.1.1","fe80::1"],"routes":[{"dst":"169.254.1.1/32"},{"dst":"0.0.0.0/0","gateway":"169.254.1.1"}],` +
				`"mtu":1420,"mac":"02:00:00:00:00:01","host_mac":"02:00:00:00:00:02","interface":"eth0","host_interface":"zl-abc","bridge":"zl-default-b","sandbox":"/run/netns/c1","segment":"default"}`,
			&Attached{
				IP: ip("10.200.0.5"), Addresses: cidrs("10.200.0.5/32", "fd00::5/128"), Gateways: ips("169.254.1.1", "fe80::1"),
				Routes: []Route{{Dst: cidr("169.254.1.1/32")}, {Dst: cidr("0.0.0.0/0"), Gateway: ip("169.254.1.1")}}, MTU: 1420,
				MAC: "02:00:00:00:00:01", HostMAC: "02:00:00:00:00:02", Interface: "eth0", HostInterface: "zl-abc", Bridge: "zl-default-b", Sandbox: "/run/netns/c1", Segment: "default",
			},
		},
		{
			"attached, with DNS", `{"result":"attached","ip":"10.200.0.5","dns":{"nameservers":["10.200.0.1","fd00::1"],"domain":"overlay.local","search":["prod.svc.overlay.local","overlay.local"]}}`,
			&Attached{IP: ip("10.200.0.5"), DNS: &DNSSettings{Nameservers: ips("10.200.0.1", "fd00::1"), Domain: "overlay.local", Search: []string{"prod.svc.overlay.local", "overlay.local"}}},
		},
		{
			"status, with all additions",
			`{"result":"status","peer_count":1,"service_count":0,"peers":[{"public_key":"` + keyB + `","endpoint":"","allowed_ips":"","last_handshake_unix_secs":1700000000,"node":"n2","rx_bytes":1,"tx_bytes":2,"problem":"no endpoint"}],` +
				`"node":"n1","version":"v1","ready":true,"waiting":["peers"],"backend":"kernel","listen_port":51820,"mtu":1420,"node_ips":["10.200.0.1","fd00::1"],"overlay_cidrs":["10.200.0.0/16"],"slice_cidrs":["10.200.0.0/24"],` +
				`"segments":[{"name":"default","bridge":"zl-default-b","ports":1}],` +
				`"attachments":[{"container_id":"c1","ifname":"eth0","key":"ab","segment":"default","addresses":["10.200.0.5"],"mac":"02:00:00:00:00:01","host_interface":"zl-abc","network":"pods"}],` +
				`"pools":[{"prefix":"fd00::/64","capacity":18446744073709551615,"used":1,"resting":2}]}`,
			&StatusSnapshot{
				PeerCount: 1, Peers: []PeerStatus{{PublicKey: keyB, LastHandshakeUnixSecs: 1700000000, Node: "n2", RxBytes: 1, TxBytes: 2, Problem: "no endpoint"}},
				Node: "n1", Version: "v1", Ready: true, Waiting: []string{"peers"}, Backend: "kernel", ListenPort: 51820, MTU: 1420,
				NodeIPs: ips("10.200.0.1", "fd00::1"), OverlayCIDRs: cidrs("10.200.0.0/16"), SliceCIDRs: cidrs("10.200.0.0/24"),
				Segments:    []SegmentStatus{{Name: "default", Bridge: "zl-default-b", Ports: 1}},
				Attachments: []AttachmentStatus{{ContainerID: "c1", IfName: "eth0", Key: "ab", Segment: "default", Addresses: ips("10.200.0.5"), MAC: "02:00:00:00:00:01", HostInterface: "zl-abc", Network: "pods"}},
				Pools:       []PoolStatus{{Prefix: cidr("fd00::/64"), Capacity: 1<<64 - 1, Used: 1, Resting: 2}},
			},
		},
		{
			"status, with services and NAT",
			`{"result":"status","peer_count":1,"service_count":1,` +
				`"peers":[{"public_key":"` + keyB + `","endpoint":"","allowed_ips":"","last_handshake_unix_secs":0,"health":"unhealthy","health_reason":"3 probes lost","rtt_micros":420}],` +
				`"dedicated_services":[{"service":"web","interface":"zl-web-d","public_key":"` + keyB + `","listen_port":51821,"overlay_ip":"10.200.9.1","subnet":"10.200.9.0/28","peer_count":1,` +
				`"subnets":["10.200.9.0/28","fd00::/120"],"table":200,"bridge":"zl-web-b","join_global":true,"attachments":3,` +
				`"peers":[{"public_key":"` + keyA + `","endpoint":"","allowed_ips":"","last_handshake_unix_secs":0,"health":"healthy"}],"problem":"port in use"}],` +
				`"segments":[{"name":"web","bridge":"zl-web-b","ports":3,"mode":"dedicated"}],` +
				`"nat":{"enabled":true,"nat_type":"symmetric","candidates":[{"candidate_type":"server_reflexive","address":"[2001:db8::1]:51820","priority":50,"discovered_at":1700000000}],` +
				`"peers":[{"public_key":"` + keyB + `","node":"n2","connection_type":"hole-punched","endpoint":"192.0.2.2:4000","rtt_micros":23000,"since_unix_secs":1700000100}],` +
				`"relay":{"offer":"udp=192.0.2.1:3478","sessions":2,"bytes":4096,"refused":1,"refused_for":{"stranger":1}}}}`,
			&StatusSnapshot{
				PeerCount: 1, ServiceCount: 1, Peers: []PeerStatus{{PublicKey: keyB, Health: HealthUnhealthy, HealthReason: "3 probes lost", RTTMicros: 420}},
				DedicatedServices: []DedicatedServiceStatus{{
					Service: "web", Interface: "zl-web-d", PublicKey: keyB, ListenPort: 51821, OverlayIP: ip("10.200.9.1"), Subnet: cidr("10.200.9.0/28"), PeerCount: 1,
					Subnets: cidrs("10.200.9.0/28", "fd00::/120"), Table: 200, Bridge: "zl-web-b", JoinGlobal: true, Attachments: 3,
					Peers: []PeerStatus{{PublicKey: keyA, Health: HealthHealthy}}, Problem: "port in use",
				}},
				Segments: []SegmentStatus{{Name: "web", Bridge: "zl-web-b", Ports: 3, Mode: ModeDedicated}},
				NAT: &NATStatus{
					Enabled: true, NATType: "symmetric",
					Candidates: []NATCandidate{{Type: CandidateServerReflexive, Address: netip.MustParseAddrPort("[2001:db8::1]:51820"), Priority: 50, DiscoveredUnixSecs: 1700000000}},
					Peers:      []NATPeer{{PublicKey: keyB, Node: "n2", Connection: ConnectionHolePunched, Endpoint: "192.0.2.2:4000", RTTMicros: 23000, SinceUnixSecs: 1700000100}},
					Relay:      &NATRelay{Offer: "udp=192.0.2.1:3478", Sessions: 2, Bytes: 4096, Refused: 1, RefusedFor: map[string]uint64{"stranger": 1}},
				},
			},
		},
		{
			"status, with DNS",
			`{"result":"status","peer_count":0,"service_count":0,"dns":{"enabled":true,"zone":"overlay.local","listeners":[{"address":"10.200.0.1:53"},{"address":"[fe80::1%zl-default-b]:53","problem":"address already in use"}],` +
				`"upstreams":["192.0.2.53:53","[2001:db8::53]:5353"],"names":3,"waiting":["pods"],"down":["n2"],"problems":["node c d has no name"]}}`,
			&StatusSnapshot{DNS: &DNSStatus{
				Enabled: true, Zone: "overlay.local", Names: 3, Waiting: []string{"pods"}, Down: []string{"n2"}, Problems: []string{"node c d has no name"},
				Listeners: []DNSListener{{Address: addrPort("10.200.0.1:53")}, {Address: addrPort("[fe80::1%zl-default-b]:53"), Problem: "address already in use"}},
				Upstreams: []netip.AddrPort{addrPort("192.0.2.53:53"), addrPort("[2001:db8::53]:5353")},
			}},
		},
		{"status, with DNS off", `{"result":"status","peer_count":0,"service_count":0,"dns":{"enabled":false,"names":0}}`, &StatusSnapshot{DNS: &DNSStatus{}}},
		{
			"service overlay, with all additions",
			`{"result":"service_overlay","name":"zl-web-d","mode":"dedicated","overlay_ip":"10.200.9.1","subnet":"10.200.9.0/28","subnets":["10.200.9.0/28","fd00::/120"],"addresses":["10.200.9.1","fd00::1"]}`,
			&ServiceOverlay{
				Name: "zl-web-d", Mode: ModeDedicated, OverlayIP: ip("10.200.9.1"), Subnet: cidr("10.200.9.0/28"),
				Subnets: cidrs("10.200.9.0/28", "fd00::/120"), Addresses: ips("10.200.9.1", "fd00::1"),
			},
		},
		{
			"guest, with all additions",
			`{"result":"guest_config","overlay_ip":"10.200.0.7","prefix_len":32,"private_key":"` + keyB + `","public_key":"` + keyA + `","listen_port":51820,"peers":[],"addresses":["10.200.0.7/32","fd00::7/128"],"mtu":1420}`,
			&GuestConfig{
				OverlayIP: ip("10.200.0.7"), PrefixLen: 32, PrivateKey: keyB, PublicKey: keyA, ListenPort: 51820,
				Addresses: cidrs("10.200.0.7/32", "fd00::7/128"), MTU: 1420,
			},
		},
		{
			"guests",
			`{"result":"guests","guests":[{"id":"vm-1","addresses":["10.200.0.7","fd00::7"],"public_key":"` + keyA + `","endpoint":"192.0.2.3:51820","last_handshake_unix_secs":1700000000,"rx_bytes":1,"tx_bytes":2}]}`,
			&Guests{Guests: []GuestStatus{{
				ID: "vm-1", Addresses: ips("10.200.0.7", "fd00::7"), PublicKey: keyA, Endpoint: "192.0.2.3:51820", LastHandshakeUnixSecs: 1700000000, RxBytes: 1, TxBytes: 2,
			}}},
		},
		{"no guests", `{"result":"guests","guests":[]}`, &Guests{Guests: []GuestStatus{}}},
		{
			"names",
			`{"result":"dns_names","names":[{"name":"web.prod.svc.overlay.local.","addresses":["10.200.0.5","10.200.1.5","fd00::5"],"down":["10.200.1.5"],"ttl_secs":5,"sources":["attachments","pods"]}],"more":true}`,
			&DNSNames{More: true, Names: []DNSName{{
				Name: "web.prod.svc.overlay.local.", Addresses: ips("10.200.0.5", "10.200.1.5", "fd00::5"), Down: ips("10.200.1.5"), TTLSecs: 5, Sources: []string{"attachments", "pods"},
			}}},
		},
		{"no names", `{"result":"dns_names","names":[]}`, &DNSNames{Names: []DNSName{}}},
		{"hello", `{"result":"hello","protocol_version":1,"capabilities":["ready"],"boot_id":"b-1"}`, &Welcome{ProtocolVersion: 1, Capabilities: []string{"ready"}, BootID: "b-1"}},
	}
}

func eventVectors() []struct {
	name, json string
	event      Event
} {
	return []struct {
		name, json string
		event      Event
	}{
		{"peer health", `{"frame":"event","event":"peer_health_changed","pubkey":"` + keyA + `","healthy":false}`, &PeerHealthChanged{Pubkey: keyA}},
		{"nat endpoint", `{"frame":"event","event":"nat_endpoint_changed","pubkey":"` + keyA + `","endpoint":"1.2.3.4:5"}`, &NATEndpointChanged{Pubkey: keyA, Endpoint: "1.2.3.4:5"}},
		{"nat endpoint, with all additions", `{"frame":"event","event":"nat_endpoint_changed","pubkey":"` + keyA + `","endpoint":"1.2.3.4:5","connection_type":"relayed"}`, &NATEndpointChanged{Pubkey: keyA, Endpoint: "1.2.3.4:5", Connection: ConnectionRelayed}},
		{
			"nat candidates", `{"frame":"event","event":"nat_candidates_changed","candidates":["host/192.168.1.2:51820"],"relay":"udp=192.0.2.1:3478"}`,
			&NATCandidatesChanged{Candidates: []string{"host/192.168.1.2:51820"}, Relay: "udp=192.0.2.1:3478"},
		},
		{"no nat candidates", `{"frame":"event","event":"nat_candidates_changed","candidates":[]}`, &NATCandidatesChanged{Candidates: []string{}}},
		{"lost", `{"frame":"event","event":"lost","count":3}`, &Lost{Count: 3}},
	}
}

// open checks a frame's length and returns its document and envelope.
func open(t *testing.T, frame []byte) (string, envelope) {
	t.Helper()
	env, err := readFrame(bytes.NewReader(frame))
	if err != nil {
		t.Fatal(err)
	}
	return string(frame[headerLen:]), env
}

func TestRequestVectors(t *testing.T) {
	seen := make(map[string]bool)
	for _, v := range requestVectors() {
		t.Run(v.name, func(t *testing.T) {
			seen[v.req.Op()] = true
			frame, err := encodeRequest(7, v.req)
			if err != nil {
				t.Fatal(err)
			}
			doc, env := open(t, frame)
			if diff := cmp.Diff(`{"frame":"request","id":7,"request":`+v.json+`}`, doc); diff != "" {
				t.Errorf("encoded (-want +got):\n%s", diff)
			}
			got, err := decodeRequest(json.RawMessage(v.json))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(v.req, got, compareNetip, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
			if env.Frame != frameRequest || env.ID != 7 || string(env.Request) != v.json {
				t.Errorf("envelope %+v", env)
			}
		})
	}
	for _, req := range requests() {
		if !seen[req.Op()] {
			t.Errorf("no vector for %s", req.Op())
		}
	}
}

func TestResponseVectors(t *testing.T) {
	seen := make(map[string]bool)
	for _, v := range responseVectors() {
		t.Run(v.name, func(t *testing.T) {
			seen[v.resp.Result()] = true
			frame, err := encodeResponse(1<<64-1, v.resp)
			if err != nil {
				t.Fatal(err)
			}
			doc, env := open(t, frame)
			if diff := cmp.Diff(`{"frame":"response","id":18446744073709551615,"response":`+v.json+`}`, doc); diff != "" {
				t.Errorf("encoded (-want +got):\n%s", diff)
			}
			got, err := decodeResponse(env.Response)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(v.resp, got, compareNetip, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
	for _, resp := range responses() {
		if !seen[resp.Result()] {
			t.Errorf("no vector for %s", resp.Result())
		}
	}
}

func TestEventVectors(t *testing.T) {
	seen := make(map[string]bool)
	for _, v := range eventVectors() {
		t.Run(v.name, func(t *testing.T) {
			seen[v.event.Event()] = true
			frame, err := encodeEvent(v.event)
			if err != nil {
				t.Fatal(err)
			}
			doc, env := open(t, frame)
			if diff := cmp.Diff(v.json, doc); diff != "" {
				t.Errorf("encoded (-want +got):\n%s", diff)
			}
			got, err := decodeEvent(env)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(v.event, got); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
	for _, event := range events() {
		if !seen[event.Event()] {
			t.Errorf("no vector for %s", event.Event())
		}
	}
	if event, err := decodeEvent(envelope{Frame: frameEvent, Event: "of_tomorrow", Response: []byte(`{}`)}); event != nil || err != nil {
		t.Errorf("an unknown event gave %v, %v", event, err)
	}
}

// TestForeignRequests reads what other senders write differently from us.
func TestForeignRequests(t *testing.T) {
	for _, test := range []struct {
		name, json string
		want       Request
	}{
		{"peer without scope", `{"op":"add_peer","public_key":"k","endpoint":"1.2.3.4:5","allowed_ips":"10.0.0.0/24","persistent_keepalive_secs":0}`, &AddPeer{PeerSpec: PeerSpec{PublicKey: "k", Endpoint: "1.2.3.4:5", AllowedIPs: cidrs("10.0.0.0/24")}}},
		{"removal without scope", `{"op":"remove_peer","pubkey":"k"}`, &RemovePeer{Pubkey: "k"}},
		{"allowed ip without scope", `{"op":"add_allowed_ip","pubkey":"k","cidr":"10.0.0.0/24"}`, &AddAllowedIP{Pubkey: "k", CIDR: cidr("10.0.0.0/24")}},
		{"removed allowed ip without scope", `{"op":"remove_allowed_ip","pubkey":"k","cidr":"10.0.0.0/24"}`, &RemoveAllowedIP{Pubkey: "k", CIDR: cidr("10.0.0.0/24")}},
		{"null optionals", `{"op":"attach_container","handle":{"platform":"linux_pid","pid":1},"service":"s","join_global":false,"dns_server":null,"dns_domain":null,"pod":null,"ips":null,"mtu":null,"mode":null,"network":null}`, &AttachContainer{Handle: &LinuxPID{PID: 1}, Service: "s"}},
		{
			"NAT with nothing said", `{"op":"setup_global_overlay","deployment":"d","instance_id":"i","cluster_cidr":"10.0.0.0/8","wg_port":1,"nat_enabled":true,"nat":{"relay_server":{"listen_port":1,"external_addr":"192.0.2.1:1"}}}`,
			&SetupGlobalOverlay{Deployment: "d", InstanceID: "i", ClusterCIDR: cidr("10.0.0.0/8"), WGPort: 1, NATEnabled: true, NAT: &NATConfig{
				Enabled: true, HolePunchTimeoutSecs: 15, STUNRefreshIntervalSecs: 60, MaxCandidatePairs: 10,
				RelayServer: &RelayServer{ListenPort: 1, ExternalAddr: netip.MustParseAddrPort("192.0.2.1:1"), MaxSessions: 100},
			}},
		},
		{"null slice", `{"op":"setup_global_overlay","deployment":"d","instance_id":"i","cluster_cidr":"10.0.0.0/8","slice_cidr":null,"wg_port":1,"nat_enabled":false}`, &SetupGlobalOverlay{Deployment: "d", InstanceID: "i", ClusterCIDR: cidr("10.0.0.0/8"), WGPort: 1}},
		{"host bits in a prefix", `{"op":"add_allowed_ip","pubkey":"k","cidr":"10.0.0.5/24"}`, &AddAllowedIP{Pubkey: "k", CIDR: cidr("10.0.0.5/24")}},
		{"blanks between prefixes", `{"op":"add_peer","public_key":"k","endpoint":"e","allowed_ips":" 10.0.0.0/24 , fd00::/64","persistent_keepalive_secs":0}`, &AddPeer{PeerSpec: PeerSpec{PublicKey: "k", Endpoint: "e", AllowedIPs: cidrs("10.0.0.0/24", "fd00::/64")}}},
		{"tag last, field of tomorrow", `{"pubkey":"k","scope":{"service":"web","scope":"service"},"colour":["red"],"op":"remove_peer"}`, &RemovePeer{Pubkey: "k", Scope: Scope{Service: "web"}}},
		{
			"namespace in another spelling", `{"op":"check_container","handle":{"platform":"windows_container","container_id":"c","ifname":"eth0","namespace":"{` + strings.ToUpper(guidA) + `}"}}`,
			&CheckContainer{Handle: &WindowsContainer{ContainerID: "c", IfName: "eth0", Namespace: guidA}},
		},
		{"empty namespace", `{"op":"detach_container","handle":{"platform":"windows_container","container_id":"c","namespace":""}}`, &DetachContainer{Handle: &WindowsContainer{ContainerID: "c"}}},
		{"handle with a field of tomorrow", `{"op":"detach_container","handle":{"pid":1,"colour":1,"platform":"linux_pid"}}`, &DetachContainer{Handle: &LinuxPID{PID: 1}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := decodeRequest(json.RawMessage(test.json))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, compareNetip); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRefusedRequests(t *testing.T) {
	for name, doc := range map[string]string{
		"no object":                `"status"`,
		"null":                     `null`,
		"no op":                    `{"service":"web"}`,
		"op of another type":       `{"op":1}`,
		"unknown op":               `{"op":"make_coffee"}`,
		"no handle":                `{"op":"attach_container","service":"web","join_global":true}`,
		"null handle":              `{"op":"detach_container","handle":null}`,
		"handle of another type":   `{"op":"check_container","handle":"c1"}`,
		"unknown platform":         `{"op":"attach_container","handle":{"platform":"plan9"},"service":"web","join_global":true}`,
		"negative pid":             `{"op":"detach_container","handle":{"platform":"linux_pid","pid":-1}}`,
		"pid beyond 32 bits":       `{"op":"detach_container","handle":{"platform":"linux_pid","pid":4294967296}}`,
		"namespace of words":       `{"op":"attach_container","handle":{"platform":"windows_container","container_id":"c","namespace":"pod"},"service":"web","join_global":true}`,
		"namespace of zeros":       `{"op":"attach_container","handle":{"platform":"windows_container","container_id":"c","namespace":"00000000-0000-0000-0000-000000000000"},"service":"web","join_global":true}`,
		"port beyond 16 bits":      `{"op":"setup_global_overlay","cluster_cidr":"10.0.0.0/8","wg_port":65536}`,
		"no prefix":                `{"op":"setup_global_overlay","cluster_cidr":"10.0.0.0"}`,
		"no address":               `{"op":"release_ip","ip":"10.0.0"}`,
		"attach with another mode": `{"op":"attach_container","handle":{"platform":"linux_pid","pid":1},"service":"web","join_global":true,"mode":"public"}`,
		"relay at a name":          `{"op":"setup_global_overlay","cluster_cidr":"10.0.0.0/8","wg_port":1,"nat":{"relay_server":{"external_addr":"relay.example:1"}}}`,
		"unknown mode":             `{"op":"setup_service_overlay","service":"web","mode":"public"}`,
		"unknown scope":            `{"op":"remove_peer","pubkey":"k","scope":{"scope":"galaxy"}}`,
		"service scope for nobody": `{"op":"remove_peer","pubkey":"k","scope":{"scope":"service","service":""}}`,
		"service scope, nameless":  `{"op":"remove_peer","pubkey":"k","scope":{"scope":"service"}}`,
		"one bad allowed ip":       `{"op":"add_peer","public_key":"k","endpoint":"e","allowed_ips":"10.0.0.0/24,x","persistent_keepalive_secs":0}`,
		"gc without a list":        `{"op":"gc_containers"}`,
		"gc of null":               `{"op":"gc_containers","valid":null}`,
	} {
		t.Run(name, func(t *testing.T) {
			if req, err := decodeRequest(json.RawMessage(doc)); err == nil {
				t.Errorf("decoded %#v, want an error", req)
			}
		})
	}
}

func TestErrorOfAnOldDaemonIsInternal(t *testing.T) {
	got, err := decodeResponse(json.RawMessage(`{"result":"err","message":"no slice assigned"}`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Error{Message: "no slice assigned", Code: CodeInternal}, got); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

// rustFields is what the deserializer of ZLayer's agent and daemon demands of
// each message: a field that is missing or of another type is an error there,
// one it does not know is skipped. A question mark makes it optional.
func rustFields(tag string) (map[string]string, bool) {
	fields, ok := map[string]string{
		"set_local_node_id": "node_id:u64", "set_local_wg_pubkey": "pubkey:str",
		"setup_global_overlay":    "deployment:str instance_id:str cluster_cidr:str slice_cidr:str? wg_port:u64 nat_enabled:bool",
		"teardown_global_overlay": "", "setup_service_overlay": "service:str mode:mode", "teardown_service_overlay": "service:str",
		"allocate_ip": "service:str join_global:bool", "release_ip": "ip:ip",
		"attach_container": "handle:handle service:str join_global:bool dns_server:ip? dns_domain:str?",
		"detach_container": "handle:handle",
		"add_peer":         "public_key:str endpoint:str allowed_ips:str persistent_keepalive_secs:u64 scope:scope?",
		"remove_peer":      "pubkey:str scope:scope?", "add_allowed_ip": "pubkey:str cidr:str scope:scope?", "remove_allowed_ip": "pubkey:str cidr:str scope:scope?",
		"register_dns": "name:str ip:ip", "unregister_dns": "name:str", "status": "", "nat_tick": "", "shutdown": "",

		"ok": "", "ip": "ip:ip", "attached": "ip:ip namespace_guid:str?", "bridge_name": "name:str", "err": "message:str",
		"guest_config":         "overlay_ip:ip prefix_len:u64 private_key:str public_key:str listen_port:u64 peers:peer dns_server:ip? dns_domain:str?",
		"service_overlay":      "name:str mode:mode wg_public_key:str? wg_port:u64? overlay_ip:ip? subnet:str?",
		"status answer":        "interface:str? node_ip:ip? public_key:str? overlay_cidr:str? slice_cidr:str? peer_count:u64 service_count:u64 peers:peer_status? dedicated_services:dedicated?",
		"peer":                 "public_key:str endpoint:str allowed_ips:str persistent_keepalive_secs:u64",
		"peer_status":          "public_key:str endpoint:str allowed_ips:str last_handshake_unix_secs:u64",
		"dedicated":            "service:str interface:str public_key:str listen_port:u64 overlay_ip:ip subnet:str peer_count:u64",
		"peer_health_changed":  "pubkey:str healthy:bool",
		"nat_endpoint_changed": "pubkey:str endpoint:str",
	}[tag]
	result := make(map[string]string)
	for field := range strings.FieldsSeq(fields) {
		name, kind, _ := strings.Cut(field, ":")
		result[name] = kind
	}
	return result, ok
}

// rustAccepts tells why the Rust side would not read a message, if so.
func rustAccepts(tag string, doc []byte) error {
	fields, known := rustFields(tag)
	if !known {
		return nil // an addition, which is only sent to those who know it
	}
	var got map[string]any
	if err := json.Unmarshal(doc, &got); err != nil {
		return err
	}
	for name, kind := range fields {
		kind, optional := strings.CutSuffix(kind, "?")
		value, there := got[name]
		if !there && optional {
			continue
		}
		if !rustKind(kind, value) {
			return fmt.Errorf("%s of %s is %v, want %s", name, tag, value, kind)
		}
	}
	return nil
}

func rustKind(kind string, value any) bool {
	text, isText := value.(string)
	object, isObject := value.(map[string]any)
	switch kind {
	case "str":
		return isText
	case "ip":
		addr, err := netip.ParseAddr(text)
		return err == nil && addr.Zone() == ""
	case "mode":
		return text == "auto" || text == "shared" || text == "dedicated"
	case "u64":
		number, ok := value.(float64)
		return ok && number >= 0
	case "bool":
		_, ok := value.(bool)
		return ok
	case "peer", "peer_status", "dedicated":
		list, ok := value.([]any)
		for _, item := range list {
			doc, err := json.Marshal(item)
			ok = ok && err == nil && rustAccepts(kind, doc) == nil
		}
		return ok
	case "scope":
		_, named := object["service"].(string)
		return object["scope"] == "global" || object["scope"] == "service" && named
	case "handle":
		return isObject && object["platform"] != nil
	}
	return false
}

func TestRustDecodesWhatWeSend(t *testing.T) {
	check := func(tag, doc string) {
		t.Helper()
		if err := rustAccepts(tag, []byte(doc)); err != nil {
			t.Errorf("%v in %s", err, doc)
		}
	}
	for _, v := range requestVectors() {
		check(v.req.Op(), v.json)
	}
	for _, v := range responseVectors() {
		if tag := v.resp.Result(); tag == "status" {
			check("status answer", v.json)
		} else {
			check(tag, v.json)
		}
	}
	for _, v := range eventVectors() {
		check(v.event.Event(), v.json)
	}
	// What is left empty by a caller must still be there.
	for _, req := range []Request{&SetupServiceOverlay{}, &AddPeer{}, &RemovePeer{}, &AllocateIP{}, &AttachContainer{Handle: &LinuxNetns{}}} {
		doc, err := tagged("op", req.Op(), req)
		if err != nil {
			t.Fatal(err)
		}
		check(req.Op(), string(doc))
	}
	doc, err := tagged("result", "guest_config", &GuestConfig{OverlayIP: ip("10.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	check("guest_config", string(doc))
}

func TestEncodingRefuses(t *testing.T) {
	if _, err := encodeRequest(1, &AttachContainer{}); err == nil {
		t.Error("encoded an attach without a handle")
	}
	if _, err := encodeRequest(1, &RegisterDNS{Name: strings.Repeat("x", MaxFrame)}); !errors.Is(err, errTooLarge) {
		t.Errorf("too large a request: %v, want errTooLarge", err)
	}
	if _, err := encodeResponse(1, (*OK)(nil)); err == nil {
		t.Error("encoded a response that is nil")
	}
	fits := strings.Repeat("x", MaxFrame-len(`{"frame":"request","id":1,"request":{"op":"unregister_dns","name":""}}`))
	if _, err := encodeRequest(1, &UnregisterDNS{Name: fits}); err != nil {
		t.Errorf("a request of %d bytes: %v", MaxFrame, err)
	}
	if _, err := encodeRequest(1, &UnregisterDNS{Name: fits + "x"}); !errors.Is(err, errTooLarge) {
		t.Errorf("one byte more: %v, want errTooLarge", err)
	}
}

func TestModeResolve(t *testing.T) {
	for mode, want := range map[Mode]Mode{"": ModeShared, ModeAuto: ModeShared, ModeShared: ModeShared, ModeDedicated: ModeDedicated} {
		if got := mode.Resolve(); got != want {
			t.Errorf("%q resolves to %q, want %q", mode, got, want)
		}
	}
}

// countingReader tells how much was asked of it.
type countingReader struct{ asked int }

func (r *countingReader) Read(p []byte) (int, error) {
	r.asked += len(p)
	return 0, io.EOF
}

func TestReadFrame(t *testing.T) {
	t.Run("clean end", func(t *testing.T) {
		if _, err := readFrame(strings.NewReader("")); !errors.Is(err, io.EOF) {
			t.Errorf("got %v, want io.EOF", err)
		}
	})
	t.Run("truncated", func(t *testing.T) {
		for _, frame := range []string{"\x05", "\x05\x00\x00\x00", "\x05\x00\x00\x00{}"} {
			if _, err := readFrame(strings.NewReader(frame)); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%q: %v, want io.ErrUnexpectedEOF", frame, err)
			}
		}
	})
	t.Run("too large", func(t *testing.T) {
		r := &countingReader{}
		if _, err := readFrame(io.MultiReader(strings.NewReader("\x01\x00\x80\x00"), r)); !errors.Is(err, errTooLarge) {
			t.Errorf("got %v, want errTooLarge", err)
		}
		if r.asked > 0 {
			t.Errorf("read %d bytes of the body", r.asked)
		}
	})
	t.Run("memory follows what arrived", func(t *testing.T) {
		r := &countingReader{}
		if _, err := readBody(r, MaxFrame); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v, want io.ErrUnexpectedEOF", err)
		}
		if r.asked > 64<<10 {
			t.Errorf("space for %d bytes when none had come", r.asked)
		}
	})
	t.Run("largest", func(t *testing.T) {
		body, err := readBody(strings.NewReader(strings.Repeat("x", MaxFrame+1)), MaxFrame)
		if err != nil || len(body) != MaxFrame {
			t.Errorf("read %d bytes, %v", len(body), err)
		}
	})
}

// TestFramesShareAStream has a request, a response and an event follow each
// other, and the end of the stream them.
func TestFramesShareAStream(t *testing.T) {
	request, err := encodeRequest(1, &Status{})
	if err != nil {
		t.Fatal(err)
	}
	response, err := encodeResponse(1, &OK{})
	if err != nil {
		t.Fatal(err)
	}
	event, err := encodeEvent(&Lost{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	go func() {
		for _, frame := range [][]byte{request, response, event} {
			_, _ = here.Write(frame)
		}
		_ = here.Close()
	}()
	for _, want := range []string{frameRequest, frameResponse, frameEvent} {
		if env, err := readFrame(there); err != nil || env.Frame != want {
			t.Errorf("got %q, %v, want a %s", env.Frame, err, want)
		}
	}
	if _, err := readFrame(there); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want io.EOF", err)
	}
}

func TestPrivateKeyIsNotShown(t *testing.T) {
	config := &GuestConfig{OverlayIP: ip("10.0.0.1"), PrivateKey: keyB, PublicKey: keyA}
	var shown bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
		fmt.Fprintf(&shown, verb+"\n", config)
		fmt.Fprintf(&shown, verb+"\n", *config)
		fmt.Fprintf(&shown, verb+"\n", config.PrivateKey)
		fmt.Fprintf(&shown, verb+"\n", []any{config.PrivateKey, &config.PrivateKey})
	}
	slog.New(slog.NewTextHandler(&shown, nil)).Info("m", "config", config, "key", config.PrivateKey)
	slog.New(slog.NewJSONHandler(&shown, nil)).Info("m", "config", config, "key", config.PrivateKey)
	if secret := keyB; strings.Contains(shown.String(), secret) || strings.Contains(shown.String(), fmt.Sprintf("%x", secret)) {
		t.Errorf("the private key shows:\n%s", &shown)
	}
	if string(config.PrivateKey) != keyB {
		t.Error("the key is not in the value either")
	}
}

// FuzzFrames feeds bytes to both readers. What they accept must survive being
// written and read again.
func FuzzFrames(f *testing.F) {
	for _, v := range requestVectors() {
		frame, _ := encodeRequest(7, v.req)
		f.Add(frame)
	}
	for _, v := range responseVectors() {
		frame, _ := encodeResponse(7, v.resp)
		f.Add(frame)
	}
	for _, v := range eventVectors() {
		frame, _ := encodeEvent(v.event)
		f.Add(frame)
	}
	for _, seed := range []string{"", "\x00", "\x00\x00\x00\x00", "\x02\x00\x00\x00{}", "\xff\xff\xff\xff{}", "\x04\x00\x00\x00null", "\x02\x00\x00\x00{}\x02\x00\x00\x00[]"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		for {
			env, err := readFrame(r)
			if err != nil {
				return
			}
			if req, err := decodeRequest(env.Request); err == nil {
				again(t, req, func(v Request) ([]byte, error) { return encodeRequest(env.ID, v) },
					func(env envelope) (Request, error) { return decodeRequest(env.Request) })
			}
			if resp, err := decodeResponse(env.Response); err == nil {
				again(t, resp, func(v Response) ([]byte, error) { return encodeResponse(env.ID, v) },
					func(env envelope) (Response, error) { return decodeResponse(env.Response) })
			}
			if event, err := decodeEvent(env); event != nil && err == nil {
				again(t, event, encodeEvent, decodeEvent)
			}
		}
	})
}

// again writes v, reads it and writes it: both writings must be the same.
func again[T any](t *testing.T, v T, encode func(T) ([]byte, error), decode func(envelope) (T, error)) {
	t.Helper()
	first, err := encode(v)
	if errors.Is(err, errTooLarge) {
		return
	}
	if err != nil {
		t.Fatalf("encode %#v: %v", v, err)
	}
	_, env := open(t, first)
	read, err := decode(env)
	if err != nil {
		t.Fatalf("read %s again: %v", first, err)
	}
	second, err := encode(read)
	if err != nil || !bytes.Equal(first, second) || reflect.TypeOf(v) != reflect.TypeOf(read) {
		t.Fatalf("%s became %s, %v", first, second, err)
	}
}

func BenchmarkAttachCodec(b *testing.B) {
	req := &AttachContainer{Handle: &LinuxNetns{ContainerID: strings.Repeat("a", 64), IfName: "eth0", Netns: "/run/netns/cni-1"}, Pod: &Pod{Namespace: "default", Name: "web-0"}}
	b.ReportAllocs()
	for b.Loop() {
		frame, err := encodeRequest(1, req)
		if err != nil {
			b.Fatal(err)
		}
		env, err := readFrame(bytes.NewReader(frame))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := decodeRequest(env.Request); err != nil {
			b.Fatal(err)
		}
	}
}
