// Package attach puts sandboxes on segments.
//
// A segment is a bridge on this node, a sandbox a container's network
// namespace, an attachment the veth pair between them with everything the host
// needs to reach the sandbox: forwarding entry, neighbours and routes. The
// package owns these and nothing else: which addresses a sandbox gets, which
// sources it may send from, and how packets leave the node is decided above.
//
// The kernel is the database. An attachment is its host link, and the link's
// alias, written last, says that it is complete and whose it is; Recover reads
// them back after a restart. Ours is what bears our mark: a link by its alias,
// or by kind, name, link group and bridge together; a route by its protocol
// and its bridge. Nothing else is ever changed.
//
// Every packet of a sandbox, also to its neighbour on the same bridge, crosses
// the host's routing: ports are isolated and the bridge answers for the
// gateways 169.254.1.1 and fe80::1. What comes in by a bridge for a sandbox of
// this host leaves by that sandbox's port, by a table of its own; everything
// else reaches sandboxes by their bridge. The detour around the bridge is for
// hosts with br_netfilter, as Kubernetes nodes are: it translates addresses
// before the bridge decides, and would hand a packet whose new destination is
// on the same bridge straight to the isolated port, which drops it.
//
// A segment's bridge is made by EnsureSegment or the first Attach, and stays
// until ReleaseSegment. A segment may have a routing table, which decides where
// packets go that come in by its bridge and are for no sandbox of this host.
// Its routes are someone else's; the rules that lead there are ours.
//
// On Windows a segment is a network of the Host Compute Network service (HCN),
// a sandbox one of its namespaces, an attachment an endpoint in it. HCN takes no
// mark, so what is ours is recorded in a file, each id before the object exists.
// The algorithm (hcn*.go) knows HCN by a small interface and by types that mirror
// its schema, since those of hcsshim compile on Windows alone; hcn_windows.go
// adapts hcsshim to it. Addresses lie in their segment's subnets, whose first
// host is the gateway, and nobody is isolated: what is said above of the host's
// routing, of RouteTable and of tables is Linux's.
//
// An Attacher is safe for concurrent use.
package attach

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"github.com/zlayer/zlayer-cni/internal/linkalias"
)

// RouteProtocol marks our routes and neighbours in the kernel ("z").
const RouteProtocol = 122

// RouteTable holds our routes between sandboxes of this host, and RulePriority
// is that of the rules, one for each bridge, that look there first.
// TableRulePriority is that of the rules right behind them, which lead to the
// tables of the segments that have one.
const (
	RouteTable        = 122
	RulePriority      = 1220
	TableRulePriority = RulePriority + 1
)

// LinkGroup is the group of our links: "zl" in its upper half. Links that are
// being deleted together share another number of that half.
const LinkGroup = 0x7a6c0000

var (
	// ErrExists says that the sandbox has an interface of the wanted name that is not ours.
	ErrExists = errors.New("the sandbox has an interface of that name already")
	// ErrConflict says that what was asked for contradicts an attachment or a route that exists.
	ErrConflict = errors.New("in conflict with what is attached already")
	// ErrNotAttached says that there is no such attachment.
	ErrNotAttached = errors.New("not attached")
	// ErrInUse says that a segment has attachments, or some on their way in or out.
	ErrInUse = errors.New("the segment is in use")
	// ErrInvalid says that a request cannot be carried out on any node.
	ErrInvalid = errors.New("invalid attachment")
)

// Gateway returns the next hop of a sandbox's default route in the family of
// addr: 169.254.1.1 or fe80::1, which every segment's bridge holds.
func Gateway(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return netip.AddrFrom4([4]byte{169, 254, 1, 1})
	}
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1})
}

// SubnetGateway returns the next hop in a subnet of a segment on Windows: its
// first host, which HCN gives to the host on an Internal network.
func SubnetGateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// Key names a sandbox as the container runtime does.
type Key struct {
	// ContainerID is the runtime's, of any length.
	ContainerID string
	// IfName is the interface's name inside the sandbox.
	IfName string
	// Digest is the key's ID where the two others did not fit the link's alias and are no longer known.
	Digest string
}

// ID is a short name of the key, equal for equal keys and the same after a
// restart: the SHA-256, in hexadecimal, of container ID, slash and interface.
func (k Key) ID() string {
	if k.ContainerID == "" && k.Digest != "" {
		return k.Digest
	}
	sum := sha256.Sum256([]byte(k.ContainerID + "/" + k.IfName))
	return hex.EncodeToString(sum[:])
}

// String is the key for messages, cut where it is long.
func (k Key) String() string {
	if k.ContainerID == "" && k.Digest != "" {
		return k.Digest
	}
	return shorten(k.ContainerID) + "/" + shorten(k.IfName)
}

// OfNetwork tells whether the attachment was made with this Network, of which
// the alias may have kept only the digest.
func (a Attachment) OfNetwork(network string) bool {
	return a.Network == network || a.Network != "" && network != "" && linkalias.Digest(a.Network) == linkalias.Digest(network)
}

// OfSegment tells whether the attachment is on that segment, of which the alias
// may have kept only the digest.
func (a Attachment) OfSegment(name string) bool {
	return linkalias.Digest(a.Segment) == linkalias.Digest(name)
}

// shorten cuts what was chosen elsewhere and may be of any length.
func shorten(s string) string {
	const longest = 64
	if len(s) > longest {
		return s[:longest] + "..."
	}
	return s
}

// Spec is a wanted attachment.
type Spec struct {
	// Key names the sandbox.
	Key Key
	// Netns is the sandbox's network namespace; the caller keeps and closes it. On Linux it is needed, on Windows not used.
	Netns *os.File
	// Namespace is the GUID of the sandbox's HCN namespace, on Windows alone: with or without braces, in either case. Empty
	// makes one of type Host, which goes with the attachment.
	Namespace string
	// Segment is the segment's name, of any length; it is made where it does not exist, without a table then.
	Segment string
	// Addrs are the sandbox's addresses, at least one. A family without an address gets no route.
	Addrs []netip.Addr
	// MAC is the sandbox's hardware address; nil derives one from the key.
	MAC net.HardwareAddr
	// MTU is that of the sandbox's interface in bytes; 0 takes the Config's.
	MTU int
	// DNS is what the sandbox resolves names with, on Windows alone, where it is the endpoint's. A repeated Attach does not
	// change it.
	DNS DNS
	// Network is kept for the caller, and may be empty. A repeated Attach may name it where it was not known, and not change it.
	Network string
	// BeforeUp, if set, is called when the host half exists and the sandbox cannot send yet: the place to pin its sources.
	// A repeated Attach calls it again. Its error undoes the attachment. It must not call the Attacher's Attach, Detach,
	// Reconcile, Recover, EnsureSegment, ReleaseSegment or Teardown.
	BeforeUp func(ctx context.Context, a Attachment) error
}

// DNS is what a sandbox resolves names with; nothing leaves it to the system.
type DNS struct {
	// Servers are asked at port 53, in this order.
	Servers []netip.Addr `json:"servers,omitempty"`
	// Domain is the sandbox's own, Search those that complete short names, in this order.
	Domain string   `json:"domain,omitempty"`
	Search []string `json:"search,omitempty"`
}

// Attachment is a sandbox on a segment.
type Attachment struct {
	// Key names the sandbox.
	Key Key
	// Segment is the segment's name.
	Segment string
	// Addrs are the sandbox's addresses in the order they were given.
	Addrs []netip.Addr
	// MAC is the sandbox's hardware address, HostMAC the port's.
	MAC, HostMAC net.HardwareAddr
	// Port is the host's link, PortIndex its number, never used again while the host is up.
	Port      string
	PortIndex int
	// Bridge is the segment's link.
	Bridge string
	// MTU is that of both halves, in bytes; 0 on Windows, where HCN tells none.
	MTU int
	// Subnets are the prefixes on the link of Addrs, in the same order, on Windows alone. SubnetGateway tells the next hops.
	Subnets []netip.Prefix
	// Namespace is the GUID of the sandbox's HCN namespace, on Windows alone.
	Namespace string
	// Network is what the Spec said; "sha256:" and digits where it did not fit the link's alias and nobody has named it
	// since a restart.
	Network string
}

// SegmentSpec is a wanted segment.
type SegmentSpec struct {
	// Name is the segment's, of any length.
	Name string
	// Table is the routing table for what comes in by the segment's bridge, behind RouteTable and before all others;
	// 0 is none. Several segments may share one. Windows has none.
	Table uint32
	// Subnets are those of the segment's HCN network, on Windows alone. They are no other segment's. Empty leaves those that
	// it has, or else takes those of HCNConfig.
	Subnets []netip.Prefix
}

// Segment is a bridge of ours.
type Segment struct {
	// Name is the segment's; "sha256:" and digits where it did not fit the link's alias and nobody has named it since a restart.
	Name string
	// Bridge is the link, Index its number.
	Bridge string
	Index  int
	// Table is the segment's routing table, 0 without one.
	Table uint32
	// Ports is the number of attachments.
	Ports int
}

// Named tells whether the segment has that name, of which the alias may have kept
// only the digest.
func (s Segment) Named(name string) bool { return linkalias.Digest(s.Name) == linkalias.Digest(name) }

// Config configures an Attacher.
type Config struct {
	// Sources are the node's overlay addresses: what the host itself sends from to sandboxes. One that is on no link of
	// the host is left out of the routes until it appears.
	Sources []netip.Addr
	// MTU is that of bridges and the default of attachments, in bytes; 0 leaves it to the kernel.
	MTU int
	// Sysctls is where the host's /proc/sys/net is writable; empty is /proc/sys/net itself.
	Sysctls string
	// HCN is for Windows; Sources, MTU and Sysctls are for Linux.
	HCN HCNConfig
	// Log takes what is repaired and what vanished; nil discards it.
	Log *slog.Logger
}

// Failpoints returns the names of the failpoints in the order in which a first
// Attach and then a Detach reach them.
func Failpoints() []string {
	return []string{
		failSegmentCreated, failSegmentReady,
		failBeforeCreate, failCreated, failAddressed, failHostReady, failHooked, failSandboxReady, failSettled, failCommitted,
		failBeforeDetach, failUnrouted, failDeleted,
	}
}

// SegmentFailpoints returns the names of the failpoints in the order in which
// an EnsureSegment, one with another table, and a ReleaseSegment reach them.
func SegmentFailpoints() []string {
	return []string{failSegmentCreated, failSegmentReady, failSegmentRuled, failSegmentUnruled}
}

const (
	failSegmentCreated = "attach/segment-created"
	failSegmentReady   = "attach/segment-ready"
	failSegmentRuled   = "attach/segment-ruled"
	failSegmentUnruled = "attach/segment-unruled"
	failBeforeCreate   = "attach/before-create"
	failCreated        = "attach/created"
	failAddressed      = "attach/addressed"
	failHostReady      = "attach/host-ready"
	failHooked         = "attach/hooked"
	failSandboxReady   = "attach/sandbox-ready"
	failSettled        = "attach/settled"
	failCommitted      = "attach/committed"
	failBeforeDetach   = "detach/before"
	failUnrouted       = "detach/unrouted"
	failDeleted        = "detach/deleted"
)
