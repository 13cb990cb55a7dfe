package shim

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
)

// OverlayOptions say which overlay an OverlayManager is for. All but Deployment
// may be left out.
type OverlayOptions struct {
	Deployment string // of the cluster; names its devices
	// InstanceID tells deployments of one name on one node apart. It has to
	// outlive the process, or every start would leave the old devices behind:
	// never a process's number.
	InstanceID string

	ClusterCIDR netip.Prefix // by default 10.200.0.0/16
	SliceCIDR   netip.Prefix // this node's part of it; none: the daemon's choice
	Port        uint16       // of the cluster's WireGuard device; by default 51820
	NodeID      uint64       // this node's number in the cluster; 0: none
	NAT         *NATConfig   // nil: DefaultNATConfig
	DNS         DNSConfig    // for the sandboxes

	Socket        string // by default DefaultSocket
	Dial          DialOptions
	UAPISocketDir string // where a userspace device shall serve WireGuard's control socket; overlayd takes /var/run/wireguard alone
	DataDir       string // of PersistIPAMState
}

// DNSConfig is what sandboxes and guests are told of DNS.
type DNSConfig struct {
	// Server is the node's DNS server; none: what was there before. Sandboxes
	// are told its address alone, since resolv.conf holds no port: there the
	// server must answer on port 53, too.
	Server netip.AddrPort
	Domain string // searched for short names
}

const defaultOverlayPort = 51820

func defaultClusterCIDR() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, 0, 0}), 16)
}

// OverlayManager drives one node's overlay by its daemon, as ZLayer's agent
// does. It connects when it is first used and again when the connection was
// lost, and tells every new connection this node's number and key before
// anything else. All that waits ends with its context, and at the latest as
// DialOptions say. What the daemon refuses is *Error, a daemon that is away is
// ErrUnreachable. Safe for concurrent use.
//
// What it set up belongs to the node and outlives the manager.
type OverlayManager struct {
	opt    OverlayOptions // as they hold; never changes
	client *Client

	mu     sync.Mutex                           // guards what follows
	status StatusSnapshot                       // the last that was seen; empty before
	dns    DNSConfig                            // as told last
	hcn    map[NamespaceGUID]HCNAttachedSandbox // not detached yet
}

// NewOverlayManager returns a manager that has not connected yet. The error
// names the option that makes no sense.
func NewOverlayManager(opt OverlayOptions) (*OverlayManager, error) {
	opt = opt.withDefaults()
	if err := opt.check(); err != nil {
		return nil, fmt.Errorf("new overlay manager: %w", err)
	}
	m := &OverlayManager{
		opt: opt, client: newClient(opt.Socket, opt.Dial), dns: opt.DNS,
		hcn: make(map[NamespaceGUID]HCNAttachedSandbox),
	}
	if opt.NodeID != 0 {
		m.client.greeting = append(m.client.greeting, &SetLocalNodeID{NodeID: opt.NodeID})
	}
	return m, nil
}

func (o OverlayOptions) withDefaults() OverlayOptions {
	if !o.ClusterCIDR.IsValid() {
		o.ClusterCIDR = defaultClusterCIDR()
	}
	nat := DefaultNATConfig()
	if o.NAT != nil {
		nat = o.NAT.clone()
	}
	o.NAT = &nat
	o.Port = cmp.Or(o.Port, defaultOverlayPort)
	o.Socket = cmp.Or(o.Socket, DefaultSocket)
	return o
}

func (o OverlayOptions) check() error {
	if o.Deployment == "" {
		return errors.New("option Deployment: must not be empty")
	}
	if o.ClusterCIDR != o.ClusterCIDR.Masked() {
		return fmt.Errorf("option ClusterCIDR: %s has host bits", o.ClusterCIDR)
	}
	if slice := o.SliceCIDR; slice.IsValid() {
		if slice != slice.Masked() {
			return fmt.Errorf("option SliceCIDR: %s has host bits", slice)
		}
		if slice.Bits() < o.ClusterCIDR.Bits() || !o.ClusterCIDR.Contains(slice.Addr()) {
			return fmt.Errorf("option SliceCIDR: %s is not inside of the cluster's %s", slice, o.ClusterCIDR)
		}
	}
	if err := o.NAT.Validate(); err != nil {
		return fmt.Errorf("option NAT: %w", err)
	}
	if err := o.DNS.check(); err != nil {
		return fmt.Errorf("option DNS: %w", err)
	}
	return nil
}

func (d DNSConfig) check() error {
	if d.Server != (netip.AddrPort{}) && (!d.Server.IsValid() || d.Server.Port() == 0) {
		return fmt.Errorf("server %s has no address or no port", d.Server)
	}
	return nil
}

// SetLocalNodeID tells the daemon this node's number in the cluster, now if
// there is a connection, and first of all on every later one.
func (m *OverlayManager) SetLocalNodeID(ctx context.Context, id uint64) error {
	return m.client.introduce(ctx, &SetLocalNodeID{NodeID: id})
}

// SetLocalWGPubkey tells the daemon the public key, base64, by which the
// cluster knows this node, when SetLocalNodeID would.
func (m *OverlayManager) SetLocalWGPubkey(ctx context.Context, pubkey string) error {
	if err := checkKey(pubkey); err != nil {
		return fmt.Errorf("set local public key: %w", err)
	}
	return m.client.introduce(ctx, &SetLocalWGPubkey{Pubkey: pubkey})
}

// checkKey refuses what is no WireGuard key in base64.
func checkKey(text string) error {
	const keyLen = 32
	if key, err := base64.StdEncoding.Strict().DecodeString(text); err != nil || len(key) != keyLen {
		return fmt.Errorf("public key %s is not 32 bytes in base64", short(text))
	}
	return nil
}

// SetDNSConfig changes what sandboxes attached from now on are told of DNS.
func (m *OverlayManager) SetDNSConfig(dns DNSConfig) error {
	if err := dns.check(); err != nil {
		return fmt.Errorf("set DNS: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dns = dns
	return nil
}

// DNSServerAddr returns the DNS server of the sandboxes, or none.
func (m *OverlayManager) DNSServerAddr() netip.AddrPort { return m.dnsConfig().Server }

// DNSDomain returns the domain that sandboxes search, or none.
func (m *OverlayManager) DNSDomain() string { return m.dnsConfig().Domain }

func (m *OverlayManager) dnsConfig() DNSConfig {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dns
}

// Deployment returns the option.
func (m *OverlayManager) Deployment() string { return m.opt.Deployment }

// OverlayPort returns the UDP port of the cluster's WireGuard device.
func (m *OverlayManager) OverlayPort() uint16 { return m.opt.Port }

// ClusterCIDR returns the prefix of all nodes as it was configured.
func (m *OverlayManager) ClusterCIDR() netip.Prefix { return m.opt.ClusterCIDR }

// SliceCIDR returns this node's part of the cluster's prefix as it was
// configured, else as the daemon told last; none before both.
func (m *OverlayManager) SliceCIDR() netip.Prefix {
	if m.opt.SliceCIDR.IsValid() {
		return m.opt.SliceCIDR
	}
	return m.cached().SliceCIDR
}

// OverlayCIDR returns the prefix of all nodes as the daemon told last; none
// before SetupGlobalOverlay or RefreshStatus.
func (m *OverlayManager) OverlayCIDR() netip.Prefix { return m.cached().OverlayCIDR }

// NodeIP returns this node's overlay address as the daemon told last; none
// before SetupGlobalOverlay or RefreshStatus.
func (m *OverlayManager) NodeIP() netip.Addr { return m.cached().NodeIP }

// GlobalInterface returns the cluster's WireGuard device as the daemon told
// last; empty if there is none.
func (m *OverlayManager) GlobalInterface() string { return m.cached().Interface }

// HasGlobalTransport tells whether the daemon had the cluster's WireGuard
// device when it was asked last.
func (m *OverlayManager) HasGlobalTransport() bool { return m.GlobalInterface() != "" }

func (m *OverlayManager) cached() StatusSnapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

// RefreshStatus asks for the state of the overlay and keeps it for NodeIP and
// the other methods that do not ask. What it returns must not be changed.
func (m *OverlayManager) RefreshStatus(ctx context.Context) (*StatusSnapshot, error) {
	snapshot, err := m.client.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("refresh status of the overlay: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status = *snapshot
	return snapshot, nil
}

// HCNAttachments returns what AttachContainerHCN attached and nobody has
// detached yet.
func (m *OverlayManager) HCNAttachments() map[NamespaceGUID]HCNAttachedSandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.hcn)
}
