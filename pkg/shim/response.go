package shim

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
)

// OK is success without anything to tell.
type OK struct{}

// AllocatedIP is the address that AllocateIP reserved.
type AllocatedIP struct {
	IP netip.Addr `json:"ip"`
}

// Attached is a sandbox's place in the overlay.
type Attached struct {
	IP            netip.Addr `json:"ip"`                       // the first of Addresses
	NamespaceGUID string     `json:"namespace_guid,omitempty"` // Windows: bare, lower-case

	// What follows is our addition; ZLayer's daemon sends none of it.
	Addresses     []netip.Prefix `json:"addresses,omitempty"` // IPv4 first
	Gateways      []netip.Addr   `json:"gateways,omitempty"`  // of Addresses, one by one
	Routes        []Route        `json:"routes,omitempty"`    // in the sandbox
	MTU           int            `json:"mtu,omitempty"`
	MAC           string         `json:"mac,omitempty"`       // of Interface
	HostMAC       string         `json:"host_mac,omitempty"`  // of HostInterface
	Interface     string         `json:"interface,omitempty"` // in the sandbox
	HostInterface string         `json:"host_interface,omitempty"`
	Bridge        string         `json:"bridge,omitempty"`  // that HostInterface is a port of
	Sandbox       string         `json:"sandbox,omitempty"` // as LinuxNetns.Netns named it
	Segment       string         `json:"segment,omitempty"`

	// DNS is what the sandbox's resolver should be told; nil: nothing. Of a CheckContainer it is what the daemon would
	// find right by itself.
	DNS *DNSSettings `json:"dns,omitempty"`
}

// Route is a route in a sandbox.
type Route struct {
	Dst     netip.Prefix `json:"dst"`
	Gateway netip.Addr   `json:"gateway,omitzero"` // none: directly on the link
}

// BridgeName is the device that SetupGlobalOverlay made.
type BridgeName struct {
	Name string `json:"name"`
}

// ServiceOverlay is the segment that SetupServiceOverlay made. What is empty
// in shared mode is left out.
type ServiceOverlay struct {
	Name        string       `json:"name"` // of the bridge or network
	Mode        Mode         `json:"mode"`
	WGPublicKey string       `json:"wg_public_key,omitempty"`
	WGPort      uint16       `json:"wg_port,omitempty"`
	OverlayIP   netip.Addr   `json:"overlay_ip,omitzero"`
	Subnet      netip.Prefix `json:"subnet,omitzero"`

	// What follows is our addition.
	Subnets   []netip.Prefix `json:"subnets,omitempty"`   // all blocks of the service on this node; the first is Subnet
	Addresses []netip.Addr   `json:"addresses,omitempty"` // of the device, in every family; the first is OverlayIP
}

// GuestConfig is what a guest needs to bring up its own WireGuard device. It
// holds the guest's private key and shows it nowhere but on the wire.
type GuestConfig struct {
	OverlayIP  netip.Addr `json:"overlay_ip"`
	PrefixLen  uint8      `json:"prefix_len"`
	PrivateKey PrivateKey `json:"private_key"`
	PublicKey  string     `json:"public_key"`
	ListenPort uint16     `json:"listen_port"`
	Peers      []PeerSpec `json:"peers"`
	DNSServer  netip.Addr `json:"dns_server,omitzero"`
	DNSDomain  string     `json:"dns_domain,omitempty"`

	// What follows is our addition.
	Addresses []netip.Prefix `json:"addresses,omitempty"` // of every family; the first is OverlayIP
	MTU       int            `json:"mtu,omitempty"`       // of the guest's device
}

// MarshalJSON writes a list of peers even if there are none: ZLayer's agent
// refuses a configuration without it.
func (r *GuestConfig) MarshalJSON() ([]byte, error) {
	type plain GuestConfig
	config := plain(*r)
	if config.Peers == nil {
		config.Peers = []PeerSpec{}
	}
	return encode(config)
}

// LogValue keeps the private key out of logs, those in JSON included.
func (r *GuestConfig) LogValue() slog.Value {
	return slog.GroupValue(slog.String("overlay_ip", r.OverlayIP.String()), slog.String("public_key", r.PublicKey))
}

// PrivateKey is a WireGuard private key, base64. It prints as a placeholder;
// convert it to string to get at it.
type PrivateKey string

// Format writes a placeholder whatever the verb.
func (PrivateKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(private key)") }

// LogValue returns a placeholder.
func (PrivateKey) LogValue() slog.Value { return slog.StringValue("(private key)") }

// Secret is a password. It prints as a placeholder; convert it to string to get
// at it.
type Secret string

// Format writes a placeholder whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(secret)") }

// LogValue returns a placeholder.
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }

// Guests answers ListGuests.
type Guests struct {
	Guests []GuestStatus `json:"guests"`
}

// Welcome answers Hello.
type Welcome struct {
	ProtocolVersion uint32   `json:"protocol_version"`
	Capabilities    []string `json:"capabilities,omitempty"` // operations beyond ZLayer's
	BootID          string   `json:"boot_id"`                // another one after every start of the daemon
}

// Result implements Response.
func (*OK) Result() string { return "ok" }

// Result implements Response.
func (*AllocatedIP) Result() string { return "ip" }

// Result implements Response.
func (*Attached) Result() string { return "attached" }

// Result implements Response.
func (*BridgeName) Result() string { return "bridge_name" }

// Result implements Response.
func (*ServiceOverlay) Result() string { return "service_overlay" }

// Result implements Response.
func (*GuestConfig) Result() string { return "guest_config" }

// Result implements Response.
func (*StatusSnapshot) Result() string { return "status" }

// Result implements Response.
func (*Guests) Result() string { return "guests" }

// Result implements Response.
func (*Welcome) Result() string { return "hello" }

// responses returns an empty response of every kind.
func responses() []Response {
	return []Response{
		&OK{}, &Error{}, &Attached{}, &StatusSnapshot{}, &AllocatedIP{}, &BridgeName{},
		&ServiceOverlay{}, &GuestConfig{}, &Welcome{}, &Guests{}, &DNSNames{},
	}
}

// newResponse returns an empty response of the tag, or nil if there is none.
func newResponse(result string) Response {
	for _, resp := range responses() {
		if resp.Result() == result {
			return resp
		}
	}
	return nil
}
