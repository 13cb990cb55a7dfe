package wireguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Backend is what carries a device's packets.
type Backend string

const (
	// Auto takes Kernel where the kernel can, else Userspace.
	Auto Backend = "auto"
	// Kernel is a wireguard link of the kernel.
	Kernel Backend = "kernel"
	// Userspace is wireguard-go in this process, on a TUN.
	Userspace Backend = "userspace"
)

// RouteProtocol is the protocol number ("z") that marks routes as the daemon's.
const RouteProtocol = 122

// UAPIDir is where userspace devices serve their control sockets: the only place
// where wgctrl and wg look for them.
const UAPIDir = "/var/run/wireguard"

// ErrClosed tells that a Device was closed.
var ErrClosed = errors.New("device is closed")

// ErrPortInUse tells that another socket of this node has the UDP port that a
// device shall listen on.
var ErrPortInUse = errors.New("is in use")

const (
	// defaultMTU is right where the underlay's is 1500, over IPv4 and IPv6.
	defaultMTU = 1420
	// MinMTU is the least MTU of a device: IPv6 works on no link with less.
	MinMTU = 1280
	// maxMTU is the largest packet that fits one of the underlay with WireGuard's
	// header and tag.
	maxMTU = 65503
	// maxLinkName is the kernel's IFNAMSIZ less its terminating zero.
	maxLinkName = 15
)

// Config says what a device should be.
type Config struct {
	// Name is the link's name, at most 15 bytes.
	Name string
	// Service is whose device it is, a name of at most 4096 bytes; empty is the
	// cluster's. A device never takes over the link of another.
	Service string
	// Table is the routing table of the peers' routes. The cluster's device has 0,
	// the main table, a service's one of its own that no other device shares. In
	// that, the peers' AllowedIPs are also refused behind the device's routes, so
	// that nothing finds another way when the device is gone.
	Table int
	// Backend is Auto, Kernel or Userspace; empty means Auto.
	Backend Backend
	// PrivateKey is the node's key.
	PrivateKey PrivateKey
	// ListenPort is the UDP port; 0 lets the system choose one.
	ListenPort int
	// MTU is the device's; 0 means 1420. See [TunnelMTU]. With Auto it becomes less if
	// the backend cannot have as much; see [Device.MaxMTU].
	MTU int
	// Addresses are the node's own on the overlay, at most one per family. They
	// are set as /32 and /128, and are the source of the routes to the peers.
	Addresses []netip.Addr
	// Refuse are prefixes that the table answers with "unreachable" where it has
	// no better route: the node's own slices, whose addresses that no pod has would
	// else leave by the default route, and 0.0.0.0/0 and ::/0 of a service that is
	// cut off.
	Refuse []netip.Prefix
	// Cluster are the prefixes that all nodes' slices lie in. On Windows they are
	// refused behind the peers' routes, since the firewall there does not keep
	// packets to nodes that are no peers from leaving in clear. On Linux the
	// firewall does, and they are not looked at.
	Cluster []netip.Prefix
	// OnRebuilt is called from Run after the device had to be made or addressed
	// anew, when routes with its addresses as their source are gone. May be nil.
	OnRebuilt func()
	// OnSTUN is given the STUN messages that come to the device's UDP port, which
	// WireGuard does not see then or drops; see SendSTUN. It is called from
	// goroutines that receive, from the device's first moment until Close has
	// returned, and must not block nor wait for the device. The packet is valid
	// only in the call, and may be from anybody; from has no zone. at is the address
	// of this node's that it came to, to answer from. May be nil. A kernel device
	// hears nothing before HearSTUN, and needs CAP_NET_RAW for it.
	OnSTUN func(at netip.Addr, from netip.AddrPort, packet []byte)
	// Resolve looks a host name up; nil means the system's resolver. It must
	// return when its context ends.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Log gets changes of the device at Info, what heals at Warn, and what
	// wireguard-go says at Debug. Nil discards.
	Log *slog.Logger
}

// withDefaults checks c and fills in what was left to defaults.
func (c Config) withDefaults() (Config, error) {
	if c.Backend == "" {
		c.Backend = Auto
	}
	if c.MTU == 0 {
		c.MTU = defaultMTU
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if c.OnRebuilt == nil {
		c.OnRebuilt = func() {}
	}
	c.Refuse = slices.Clone(c.Refuse)
	c.Addresses, c.Cluster = slices.Clone(c.Addresses), slices.Clone(c.Cluster)
	return c, c.check()
}

func (c Config) check() error {
	switch {
	case c.Name == "" || len(c.Name) > maxLinkName:
		return fmt.Errorf("device name %q is not 1 to %d bytes", c.Name, maxLinkName)
	case c.Backend != Auto && c.Backend != Kernel && c.Backend != Userspace:
		return fmt.Errorf("backend %q is not auto, kernel or userspace", c.Backend)
	case c.PrivateKey.IsZero():
		return errors.New("no private key")
	case c.ListenPort < 0 || c.ListenPort > 65535:
		return fmt.Errorf("listen port %d is not between 0 and 65535", c.ListenPort)
	}
	var families [2]int
	for _, addr := range c.Addresses {
		if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" {
			return fmt.Errorf("%v is no address for a device", addr)
		}
		families[family(addr)]++
	}
	if max(families[0], families[1]) > 1 {
		return fmt.Errorf("of the addresses %v, two are of one family", c.Addresses)
	}
	for _, prefix := range c.Refuse {
		if !prefix.IsValid() || prefix != prefix.Masked() {
			return fmt.Errorf("%v to refuse is not a network prefix", prefix)
		}
	}
	if err := c.link().check(); err != nil {
		return err
	}
	return checkMTU(c.MTU, c.Backend)
}

// link is how the kernel knows the device.
func (c Config) link() Link { return Link{Name: c.Name, Service: c.Service, Table: c.Table} }

// largestMTU is what a backend takes: the buffers of wireguard-go hold 65503 bytes on
// Linux, but 1984 on Windows.
func largestMTU(backend Backend) int {
	if backend == Userspace {
		return min(device.MaxContentSize, maxMTU)
	}
	return maxMTU
}

func checkMTU(mtu int, backend Backend) error {
	if largest := largestMTU(backend); mtu < MinMTU || mtu > largest {
		return fmt.Errorf("MTU %d is not between %d and %d", mtu, MinMTU, largest)
	}
	return nil
}

// family is 0 for IPv4 and 1 for IPv6.
func family(addr netip.Addr) int {
	if addr.Is4() {
		return 0
	}
	return 1
}

// Status is a device at one moment.
type Status struct {
	// Device is the link's name.
	Device string
	// Backend is Kernel or Userspace.
	Backend Backend
	// PublicKey is what the peers must know.
	PublicKey wgtypes.Key
	// ListenPort is the UDP port in use.
	ListenPort int
	// MTU is the link's.
	MTU int
	// Addresses are the node's own on the overlay.
	Addresses []netip.Addr
	// Peers are in the order of SetPeers.
	Peers []PeerStatus
	// Fault says which single peers and routes could not be written. The device
	// works without them, and Run tries again.
	Fault error
}

// PeerStatus is a peer at one moment.
type PeerStatus struct {
	// Node is the peer's name.
	Node string
	// PublicKey tells peers apart.
	PublicKey wgtypes.Key
	// Endpoint is where the next packet to the peer goes; the zero value if that
	// is not known.
	Endpoint netip.AddrPort
	// LastHandshake is zero if there was none.
	LastHandshake time.Time
	// RxBytes and TxBytes count encrypted traffic since the peer was added.
	RxBytes, TxBytes uint64
	// AllowedIPs are the addresses behind the peer.
	AllowedIPs []netip.Prefix
}

// checkPeers refuses a set that the device with the key own cannot hold as it
// stands.
func checkPeers(own wgtypes.Key, peers []Peer) error {
	keys := make(map[wgtypes.Key]string, len(peers)+1)
	keys[own] = "this node"
	holders := make(map[netip.Prefix]string, 2*len(peers))
	for _, peer := range peers {
		if other, taken := keys[peer.PublicKey]; taken {
			return fmt.Errorf("peer %s has the public key of %s", peer.Node, other)
		}
		keys[peer.PublicKey] = peer.Node
		for _, prefix := range peer.AllowedIPs {
			if other, taken := holders[prefix]; taken {
				return fmt.Errorf("peer %s has %v of %s", peer.Node, prefix, other)
			}
			holders[prefix] = peer.Node
		}
	}
	return nil
}
