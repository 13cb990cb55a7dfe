package shim

import "net/netip"

// StatusSnapshot is the state of a node's overlay.
type StatusSnapshot struct {
	Interface         string                   `json:"interface,omitempty"` // the cluster's WireGuard device, if up
	NodeIP            netip.Addr               `json:"node_ip,omitzero"`
	PublicKey         string                   `json:"public_key,omitempty"` // base64
	OverlayCIDR       netip.Prefix             `json:"overlay_cidr,omitzero"`
	SliceCIDR         netip.Prefix             `json:"slice_cidr,omitzero"`
	PeerCount         uint32                   `json:"peer_count"`
	ServiceCount      uint32                   `json:"service_count"`
	Peers             []PeerStatus             `json:"peers,omitempty"`
	DedicatedServices []DedicatedServiceStatus `json:"dedicated_services,omitempty"`

	// What follows is our addition; ZLayer's daemon sends none of it.
	Node         string             `json:"node,omitempty"`
	Version      string             `json:"version,omitempty"` // of the daemon
	Ready        bool               `json:"ready,omitempty"`   // sandboxes can be attached
	Waiting      []string           `json:"waiting,omitempty"` // what it waits for if not Ready
	Backend      string             `json:"backend,omitempty"` // "kernel" or "userspace"
	ListenPort   uint16             `json:"listen_port,omitempty"`
	MTU          int                `json:"mtu,omitempty"`
	NodeIPs      []netip.Addr       `json:"node_ips,omitempty"`      // of every family; the first is NodeIP
	OverlayCIDRs []netip.Prefix     `json:"overlay_cidrs,omitempty"` // the first is OverlayCIDR
	SliceCIDRs   []netip.Prefix     `json:"slice_cidrs,omitempty"`   // the first is SliceCIDR
	Segments     []SegmentStatus    `json:"segments,omitempty"`
	Attachments  []AttachmentStatus `json:"attachments,omitempty"`
	Pools        []PoolStatus       `json:"pools,omitempty"`
	Guests       []GuestStatus      `json:"guests,omitempty"` // they are not among Peers
	NAT          *NATStatus         `json:"nat,omitempty"`    // nil: the daemon tells nothing of it
	DNS          *DNSStatus         `json:"dns,omitempty"`    // as NAT
}

// PeerStatus is one WireGuard peer.
type PeerStatus struct {
	PublicKey             string     `json:"public_key"` // base64
	Endpoint              string     `json:"endpoint"`   // empty: none known
	AllowedIPs            AllowedIPs `json:"allowed_ips"`
	LastHandshakeUnixSecs int64      `json:"last_handshake_unix_secs"` // 0: never

	// What follows is our addition.
	Node    string `json:"node,omitempty"`
	RxBytes uint64 `json:"rx_bytes,omitempty"`
	TxBytes uint64 `json:"tx_bytes,omitempty"`
	Problem string `json:"problem,omitempty"` // why it is not, or not fully, in use

	Health       string `json:"health,omitempty"` // one of the Health constants; empty: not judged
	HealthReason string `json:"health_reason,omitempty"`
	RTTMicros    uint64 `json:"rtt_micros,omitempty"` // of a probe through the tunnel; 0: none came back
}

// What PeerStatus.Health says of a peer.
const (
	HealthHealthy   = "healthy"   // it was heard of lately
	HealthUnhealthy = "unhealthy" // it should have been heard of and was not
	HealthIdle      = "idle"      // nothing was sent that would tell
	HealthUnknown   = "unknown"   // it is too early to tell
)

// DedicatedServiceStatus is the WireGuard device of one service.
type DedicatedServiceStatus struct {
	Service    string       `json:"service"`
	Interface  string       `json:"interface"`
	PublicKey  string       `json:"public_key"`
	ListenPort uint16       `json:"listen_port"`
	OverlayIP  netip.Addr   `json:"overlay_ip"`
	Subnet     netip.Prefix `json:"subnet"`
	PeerCount  uint32       `json:"peer_count"`

	// What follows is our addition.
	Subnets     []netip.Prefix `json:"subnets,omitempty"` // all blocks on this node; the first is Subnet
	Table       uint32         `json:"table,omitempty"`   // routing table
	Bridge      string         `json:"bridge,omitempty"`
	JoinGlobal  bool           `json:"join_global,omitempty"` // its sandboxes reach the rest of the overlay
	Attachments int            `json:"attachments,omitempty"`
	Peers       []PeerStatus   `json:"peers,omitempty"`
	Problem     string         `json:"problem,omitempty"` // why it is not, or not fully, in use
}

// SegmentStatus is one segment of the node.
type SegmentStatus struct {
	Name   string `json:"name"`
	Bridge string `json:"bridge"`
	Ports  int    `json:"ports"`
	Mode   Mode   `json:"mode,omitempty"`
}

// GuestStatus is one guest of the node.
type GuestStatus struct {
	ID                    string       `json:"id"` // as GuestManaged names it
	Addresses             []netip.Addr `json:"addresses"`
	PublicKey             string       `json:"public_key"`               // base64
	Endpoint              string       `json:"endpoint"`                 // empty: not heard of yet
	LastHandshakeUnixSecs int64        `json:"last_handshake_unix_secs"` // 0: never
	RxBytes               uint64       `json:"rx_bytes"`
	TxBytes               uint64       `json:"tx_bytes"`
}

// AttachmentStatus is one sandbox on a segment.
type AttachmentStatus struct {
	ContainerID   string       `json:"container_id,omitempty"` // empty if only Key is known
	IfName        string       `json:"ifname,omitempty"`
	Key           string       `json:"key,omitempty"` // the hash that stands for both where they are too long to keep
	Segment       string       `json:"segment"`
	Addresses     []netip.Addr `json:"addresses"`
	MAC           string       `json:"mac,omitempty"`
	HostInterface string       `json:"host_interface,omitempty"`
	Network       string       `json:"network,omitempty"` // the CNI network it joined, or its digest where it is too long to keep
}

// PoolStatus counts the addresses of one prefix.
type PoolStatus struct {
	Prefix   netip.Prefix `json:"prefix"`
	Capacity uint64       `json:"capacity"` // saturates
	Used     int          `json:"used"`
	Resting  int          `json:"resting"` // freed, not yet handed out again
}
