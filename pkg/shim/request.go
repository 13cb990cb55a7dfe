package shim

import (
	"encoding/json"
	"errors"
	"net/netip"
)

// SetLocalNodeID tells the node's number in the cluster. Answer: *OK.
type SetLocalNodeID struct {
	NodeID uint64 `json:"node_id"`
}

// SetLocalWGPubkey tells the node's WireGuard public key, base64. Answer: *OK.
type SetLocalWGPubkey struct {
	Pubkey string `json:"pubkey"`
}

// SetupGlobalOverlay brings up the node's WireGuard device, or takes over the
// one that is there. Answer: *BridgeName, the name of the device.
type SetupGlobalOverlay struct {
	Deployment  string       `json:"deployment"`
	InstanceID  string       `json:"instance_id"`
	ClusterCIDR netip.Prefix `json:"cluster_cidr"`
	SliceCIDR   netip.Prefix `json:"slice_cidr,omitzero"` // none until one is assigned
	WGPort      uint16       `json:"wg_port"`
	NATEnabled  bool         `json:"nat_enabled"`

	// What follows is our addition.
	NAT           *NATConfig `json:"nat,omitempty"`             // NATEnabled is its Enabled
	UAPISocketDir string     `json:"uapi_socket_dir,omitempty"` // where a userspace device shall serve WireGuard's control socket; overlayd takes /var/run/wireguard alone
}

// TeardownGlobalOverlay removes the node's WireGuard device. Answer: *OK.
type TeardownGlobalOverlay struct{}

// SetupServiceOverlay makes the segment of a service, or takes over the one
// that is there. Answer: *ServiceOverlay; older daemons: *BridgeName.
type SetupServiceOverlay struct {
	Service string `json:"service"`
	Mode    Mode   `json:"mode"`
}

// TeardownServiceOverlay removes the segment of a service. An unknown service
// is none to remove. Answer: *OK.
type TeardownServiceOverlay struct {
	Service string `json:"service"`
}

// AllocateIP reserves an address on a service's segment. Asking twice with the
// same Owner gives the same address, without one it reserves two. Answer:
// *AllocatedIP.
type AllocateIP struct {
	Service    string `json:"service"`
	JoinGlobal bool   `json:"join_global"`
	Owner      string `json:"owner,omitempty"` // our addition: who the address is for, a name of the caller's choosing
}

// ReleaseIP gives an address of AllocateIP back. Answer: *OK.
type ReleaseIP struct {
	IP    netip.Addr `json:"ip"`
	Owner string     `json:"owner,omitempty"` // our addition: as in AllocateIP
}

// AttachContainer puts a sandbox on a segment. Asking again for the same handle
// gives the same answer. Answer: *Attached, or *GuestConfig for *GuestManaged.
type AttachContainer struct {
	Handle     Handle
	Service    string // empty: the default segment
	JoinGlobal bool   // reach the rest of the overlay, not only the service

	// DNSServer and DNSDomain are what the sandbox shall be told of DNS; none: what
	// the daemon finds right. Guests that are attached later without them get those
	// that were said last.
	DNSServer netip.Addr
	DNSDomain string

	// What follows is our addition.
	Pod *Pod
	IPs []netip.Addr // addresses asked for, at most one of a family; else any
	MAC string       // address asked for; else derived
	MTU int          // 0: that of the overlay

	// Mode is how Service is carried; empty: as it was set up, else ModeAuto.
	Mode Mode

	// Network names the CNI network that the sandbox joins; empty for none. It is whose GCContainers may collect the
	// attachment. Older daemons ignore it. An attachment that was made without one gets it when it is asked for again;
	// asking for another is refused.
	Network string

	// DNS is what a Windows sandbox shall resolve names with; nil: what the daemon finds right. Elsewhere the runtime tells
	// its containers itself, and this is not looked at.
	DNS *DNSSettings
}

// Pod is the Kubernetes pod of a sandbox.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
}

// DetachContainer removes a sandbox's attachment and frees its addresses. One
// that does not exist is none to remove. Answer: *OK.
type DetachContainer struct {
	Handle Handle
}

// CheckContainer asks whether an attachment is as it was made. It is our
// addition. Answer: *Attached as AttachContainer would give it, or *OK from a
// daemon that only compares.
type CheckContainer struct {
	Handle Handle
}

// GCContainers detaches the sandboxes of Network that Valid does not name. It
// is our addition. A list must be there: an empty one detaches all of the
// network, a missing one is refused. Answer: *OK.
//
// Only attachments that bear exactly this Network are touched, since the list
// says nothing about others. No Network means those that bear none, for the
// same reason: clients before Network send none and attach without one. So what
// a client attached before it learned of Network stays until it is detached or
// its namespace ends, which is safer than to take it from another network.
// Daemons before Network ignore it and collect from all networks.
//
// Attachments that are answered after the daemon read the request stay, whether
// they were asked for before it or after.
type GCContainers struct {
	Network string       `json:"network,omitempty"`
	Valid   []Attachment `json:"valid"`
}

// AddPeer adds or replaces a WireGuard peer. Answer: *OK.
type AddPeer struct {
	PeerSpec
	Scope Scope `json:"scope"`
}

// RemovePeer removes a peer by its public key. An unknown one is none to
// remove. Answer: *OK.
type RemovePeer struct {
	Pubkey string `json:"pubkey"`
	Scope  Scope  `json:"scope"`
}

// AddAllowedIP adds a prefix to what a known peer may send and receive; adding
// it twice is no error. Answer: *OK.
type AddAllowedIP struct {
	Pubkey string       `json:"pubkey"`
	CIDR   netip.Prefix `json:"cidr"`
	Scope  Scope        `json:"scope"`
}

// RemoveAllowedIP takes back AddAllowedIP. An unknown peer or prefix is none to
// remove. Answer: *OK.
type RemoveAllowedIP struct {
	Pubkey string       `json:"pubkey"`
	CIDR   netip.Prefix `json:"cidr"`
	Scope  Scope        `json:"scope"`
}

// RegisterDNS gives a name an address. Answer: *OK.
type RegisterDNS struct {
	Name string     `json:"name"`
	IP   netip.Addr `json:"ip"`
}

// UnregisterDNS forgets a name. Answer: *OK.
type UnregisterDNS struct {
	Name string `json:"name"`
}

// Status asks for the state of the overlay. Answer: *StatusSnapshot.
type Status struct{}

// NATTick asks for one round of NAT traversal upkeep. Answer: *OK.
type NATTick struct{}

// Shutdown asks the daemon to end. Answer: *OK, before it does.
type Shutdown struct{}

// ListGuests asks for the guests of the node. It is our addition. Answer:
// *Guests.
type ListGuests struct{}

// Hello asks who serves. It is our addition, and Serve answers it by itself.
// Answer: *Welcome.
type Hello struct {
	ProtocolVersion uint32   `json:"protocol_version"`
	Capabilities    []string `json:"capabilities,omitempty"` // what the client can do beyond the version
}

// Ready asks whether the daemon can attach sandboxes. It is our addition.
// Answer: *OK, or *Error with CodeUnavailable that says what it waits for.
type Ready struct{}

// Subscribe asks for events on this connection from now on. It is our
// addition, and Serve answers it by itself. Answer: *StatusSnapshot, the state
// that the events start from.
type Subscribe struct{}

// Op implements Request.
func (*SetLocalNodeID) Op() string { return "set_local_node_id" }

// Op implements Request.
func (*SetLocalWGPubkey) Op() string { return "set_local_wg_pubkey" }

// Op implements Request.
func (*SetupGlobalOverlay) Op() string { return "setup_global_overlay" }

// Op implements Request.
func (*TeardownGlobalOverlay) Op() string { return "teardown_global_overlay" }

// Op implements Request.
func (*SetupServiceOverlay) Op() string { return "setup_service_overlay" }

// Op implements Request.
func (*TeardownServiceOverlay) Op() string { return "teardown_service_overlay" }

// Op implements Request.
func (*AllocateIP) Op() string { return "allocate_ip" }

// Op implements Request.
func (*ReleaseIP) Op() string { return "release_ip" }

// Op implements Request.
func (*AttachContainer) Op() string { return "attach_container" }

// Op implements Request.
func (*DetachContainer) Op() string { return "detach_container" }

// Op implements Request.
func (*CheckContainer) Op() string { return "check_container" }

// Op implements Request.
func (*GCContainers) Op() string { return "gc_containers" }

// Op implements Request.
func (*AddPeer) Op() string { return "add_peer" }

// Op implements Request.
func (*RemovePeer) Op() string { return "remove_peer" }

// Op implements Request.
func (*AddAllowedIP) Op() string { return "add_allowed_ip" }

// Op implements Request.
func (*RemoveAllowedIP) Op() string { return "remove_allowed_ip" }

// Op implements Request.
func (*RegisterDNS) Op() string { return "register_dns" }

// Op implements Request.
func (*UnregisterDNS) Op() string { return "unregister_dns" }

// Op implements Request.
func (*Status) Op() string { return "status" }

// Op implements Request.
func (*NATTick) Op() string { return "nat_tick" }

// Op implements Request.
func (*Shutdown) Op() string { return "shutdown" }

// Op implements Request.
func (*ListGuests) Op() string { return "list_guests" }

// Op implements Request.
func (*Hello) Op() string { return "hello" }

// Op implements Request.
func (*Ready) Op() string { return "ready" }

// Op implements Request.
func (*Subscribe) Op() string { return "subscribe" }

// requests returns an empty request of every operation.
func requests() []Request {
	return []Request{
		&AttachContainer{}, &DetachContainer{}, &CheckContainer{}, &GCContainers{}, &Ready{}, &Status{},
		&Hello{}, &Subscribe{}, &SetLocalNodeID{}, &SetLocalWGPubkey{}, &SetupGlobalOverlay{},
		&TeardownGlobalOverlay{}, &SetupServiceOverlay{}, &TeardownServiceOverlay{}, &AllocateIP{},
		&ReleaseIP{}, &AddPeer{}, &RemovePeer{}, &AddAllowedIP{}, &RemoveAllowedIP{}, &RegisterDNS{},
		&UnregisterDNS{}, &NATTick{}, &Shutdown{}, &ListGuests{}, &ListDNS{},
	}
}

// newRequest returns an empty request of the operation, or nil if there is no
// such operation.
func newRequest(op string) Request {
	for _, req := range requests() {
		if req.Op() == op {
			return req
		}
	}
	return nil
}

// attachFields is AttachContainer on the wire.
type attachFields struct {
	Handle     handleField  `json:"handle"`
	Service    string       `json:"service"`
	JoinGlobal bool         `json:"join_global"`
	DNSServer  netip.Addr   `json:"dns_server,omitzero"`
	DNSDomain  string       `json:"dns_domain,omitempty"`
	Pod        *Pod         `json:"pod,omitempty"`
	IPs        []netip.Addr `json:"ips,omitempty"`
	MAC        string       `json:"mac,omitempty"`
	MTU        int          `json:"mtu,omitempty"`
	Mode       Mode         `json:"mode,omitempty"`
	Network    string       `json:"network,omitempty"`
	DNS        *DNSSettings `json:"dns,omitempty"`
}

// MarshalJSON writes the fields without the tag of the operation.
func (r *AttachContainer) MarshalJSON() ([]byte, error) {
	return encode(attachFields{
		Handle: handleField{r.Handle}, Service: r.Service, JoinGlobal: r.JoinGlobal, DNSServer: r.DNSServer,
		DNSDomain: r.DNSDomain, Pod: r.Pod, IPs: r.IPs, MAC: r.MAC, MTU: r.MTU, Mode: r.Mode, Network: r.Network,
		DNS: r.DNS,
	})
}

// UnmarshalJSON reads what MarshalJSON writes; a handle must be there.
func (r *AttachContainer) UnmarshalJSON(raw []byte) error {
	var f attachFields
	if err := json.Unmarshal(raw, &f); err != nil {
		return err
	}
	*r = AttachContainer{
		Handle: f.Handle.Handle, Service: f.Service, JoinGlobal: f.JoinGlobal, DNSServer: f.DNSServer,
		DNSDomain: f.DNSDomain, Pod: f.Pod, IPs: f.IPs, MAC: f.MAC, MTU: f.MTU, Mode: f.Mode, Network: f.Network,
		DNS: f.DNS,
	}
	return needHandle(r.Handle)
}

// handleOnly is DetachContainer and CheckContainer on the wire.
type handleOnly struct {
	Handle handleField `json:"handle"`
}

// MarshalJSON writes the fields without the tag of the operation.
func (r *DetachContainer) MarshalJSON() ([]byte, error) {
	return encode(handleOnly{handleField{r.Handle}})
}

// UnmarshalJSON reads what MarshalJSON writes; a handle must be there.
func (r *DetachContainer) UnmarshalJSON(raw []byte) (err error) {
	r.Handle, err = readHandle(raw)
	return err
}

// MarshalJSON writes the fields without the tag of the operation.
func (r *CheckContainer) MarshalJSON() ([]byte, error) {
	return encode(handleOnly{handleField{r.Handle}})
}

// UnmarshalJSON reads what MarshalJSON writes; a handle must be there.
func (r *CheckContainer) UnmarshalJSON(raw []byte) (err error) {
	r.Handle, err = readHandle(raw)
	return err
}

// UnmarshalJSON refuses a missing list: it must not be taken for an empty one.
func (r *GCContainers) UnmarshalJSON(raw []byte) error {
	type plain GCContainers
	if err := json.Unmarshal(raw, (*plain)(r)); err != nil {
		return err
	}
	if r.Valid == nil {
		return errors.New("no list of valid containers")
	}
	return nil
}

func readHandle(raw []byte) (Handle, error) {
	var f handleOnly
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	return f.Handle.Handle, needHandle(f.Handle.Handle)
}

func needHandle(h Handle) error {
	if h == nil {
		return errors.New("no handle")
	}
	return nil
}
