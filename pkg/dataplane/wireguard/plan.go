package wireguard

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Node is what is told about a node, by a file or by Kubernetes. Nothing in it
// is verified.
type Node struct {
	// Name is unique in the cluster.
	Name string
	// PublicKey is the node's WireGuard key in base64.
	PublicKey string
	// Endpoint is the host and port the node receives WireGuard on, as
	// "192.0.2.1:51820", "[2001:db8::1]:51820" or "node.example:51820". Empty
	// means that it is not known, and the node has to begin.
	Endpoint string
	// Slices are the node's pod addresses.
	Slices []netip.Prefix
	// Keepalive is how often a silent peer is sent a packet, so that a NAT
	// between the two keeps its mapping. Zero means never.
	Keepalive time.Duration
	// Services are the dedicated services that the node hosts.
	Services []NodeService
	// Candidates are further addresses at which the node may be reached through
	// NATs, each as "host/192.0.2.1:51820". A plan does not look at them.
	Candidates []string
	// Relay says how the node's relay is reached, as "udp=192.0.2.1:3478"; empty if it is none. A plan does not look at
	// it either.
	Relay string
}

// NodeService is what is told about a dedicated service of a node.
type NodeService struct {
	// Name tells services of the cluster apart.
	Name string
	// PublicKey is that of the service's device on the node, in base64.
	PublicKey string
	// Port is the device's UDP port, at the host of the node's endpoint.
	Port int
	// Blocks are the addresses of the service's pods on the node, parts of its slices.
	Blocks []netip.Prefix
}

// Equal tells whether both say the same.
func (n Node) Equal(o Node) bool {
	return n.Name == o.Name && n.PublicKey == o.PublicKey && n.Endpoint == o.Endpoint && n.Keepalive == o.Keepalive &&
		slices.Equal(n.Slices, o.Slices) && slices.EqualFunc(n.Services, o.Services, NodeService.Equal) &&
		slices.Equal(n.Candidates, o.Candidates) && n.Relay == o.Relay
}

// Equal tells whether both say the same.
func (s NodeService) Equal(o NodeService) bool {
	return s.Name == o.Name && s.PublicKey == o.PublicKey && s.Port == o.Port && slices.Equal(s.Blocks, o.Blocks)
}

// Peer is a node as a WireGuard device knows it.
type Peer struct {
	// Node is the node's name.
	Node string
	// PublicKey tells peers apart.
	PublicKey wgtypes.Key
	// Endpoint is where to reach the peer. It is the zero value when that is not
	// known, or not yet: Host may name it.
	Endpoint netip.AddrPort
	// Host is "name:port" if the endpoint is a host name; a Device resolves it.
	Host string
	// Overlay are the prefixes where Host's address may not be: packets to it
	// would wind up in the tunnel again. It is never written to.
	Overlay []netip.Prefix
	// AllowedIPs are masked and sorted. No two peers of a plan share an address.
	AllowedIPs []netip.Prefix
	// Keepalive is in whole seconds; zero means none.
	Keepalive time.Duration
}

var (
	// ErrDuplicateKey means that a node before this one has its public key.
	ErrDuplicateKey = errors.New("the same public key")
	// ErrOverlappingSlice means that a node before this one has addresses of its
	// slice.
	ErrOverlappingSlice = errors.New("overlaps")
)

// Problem says why a node is not among the peers.
type Problem struct {
	// Node is the name of the node that is left out.
	Node string
	// Err is the reason; errors.Is finds ErrDuplicateKey and ErrOverlappingSlice.
	Err error
}

// Error returns the node and the reason in one line.
func (p Problem) Error() string { return fmt.Sprintf("node %s: %v", p.Node, p.Err) }

// Unwrap returns the reason.
func (p Problem) Unwrap() error { return p.Err }

// PlanInput is what a plan follows from.
type PlanInput struct {
	// Self is this node's name. Its entry among the nodes is no peer, but its
	// slices are taken.
	Self string
	// OwnKey is this node's public key.
	OwnKey wgtypes.Key
	// Nodes are ordered by age. Of two nodes that claim the same key or
	// overlapping slices, the one that comes first keeps them.
	Nodes []Node
	// Cluster are the prefixes that slices must lie in. Empty allows any.
	Cluster []netip.Prefix
	// Taken are further keys that no node may have, with the name of who has them.
	Taken map[wgtypes.Key]string
}

const (
	// maxSlices bounds what one node's entry can cost the others. Kubernetes
	// gives a node two.
	maxSlices = 64
	// maxKeepalive is what the protocol's 16 bits hold.
	maxKeepalive = 65535 * time.Second
	// maxHostName is the longest host name of RFC 1035.
	maxHostName = 253
)

// Plan returns the peers that follow from in, in the order of its nodes, and
// the nodes that are no peers because something about them is wrong. One node's
// mistake costs only that node: it is left out whole, never with a part of what
// it claims. Plan is pure.
func Plan(in PlanInput) ([]Peer, []Problem) {
	p := planner{
		in:    in,
		names: map[string]bool{in.Self: true},
		keys:  map[wgtypes.Key]string{in.OwnKey: in.Self},
	}
	maps.Copy(p.keys, in.Taken)
	var problems []Problem
	own := slices.IndexFunc(in.Nodes, func(n Node) bool { return n.Name == in.Self })
	if own >= 0 {
		p.reserve(in.Nodes[own])
	}
	peers := make([]Peer, 0, len(in.Nodes))
	for i, node := range in.Nodes {
		if i == own {
			continue
		}
		peer, err := p.peer(node)
		if err != nil {
			problems = append(problems, Problem{Node: node.Name, Err: err})
			continue
		}
		peers = append(peers, peer)
	}
	return peers, problems
}

// planner remembers what earlier nodes took.
type planner struct {
	in     PlanInput
	names  map[string]bool
	keys   map[wgtypes.Key]string // to the node's name
	claims claims
}

// reserve keeps this node's slices from everybody else, whoever is older: their
// addresses are local here.
func (p *planner) reserve(self Node) {
	for _, slice := range self.Slices {
		if slice.IsValid() {
			p.claims.add(slice.Masked(), self.Name)
		}
	}
}

// peer checks everything before it takes anything.
func (p *planner) peer(node Node) (Peer, error) {
	peer := Peer{Node: node.Name, Keepalive: (node.Keepalive + time.Second - 1).Truncate(time.Second)}
	switch {
	case node.Name == "":
		return Peer{}, errors.New("it has no name")
	case p.names[node.Name]:
		return Peer{}, errors.New("another node has the same name")
	case node.Keepalive < 0 || node.Keepalive > maxKeepalive:
		return Peer{}, fmt.Errorf("keepalive %v is not between 0 and %v", node.Keepalive, maxKeepalive)
	}
	var err error
	if peer.PublicKey, err = p.publicKey(node.PublicKey); err != nil {
		return Peer{}, err
	}
	if peer.Endpoint, peer.Host, err = p.endpoint(node.Endpoint); err != nil {
		return Peer{}, err
	}
	if peer.Host != "" {
		peer.Overlay = p.in.Cluster
	}
	if peer.AllowedIPs, err = p.allowedIPs(node.Slices); err != nil {
		return Peer{}, err
	}
	p.names[node.Name] = true
	p.keys[peer.PublicKey] = node.Name
	for _, slice := range peer.AllowedIPs {
		p.claims.add(slice, node.Name)
	}
	return peer, nil
}

func (p *planner) publicKey(text string) (wgtypes.Key, error) {
	if text == "" {
		return wgtypes.Key{}, errors.New("it has published no public key yet")
	}
	key, err := wgtypes.ParseKey(text)
	if err != nil {
		return wgtypes.Key{}, errors.New("its public key is not 32 bytes in base64")
	}
	if lowOrder(key) {
		return wgtypes.Key{}, errors.New("its public key is one that no private key belongs to")
	}
	if holder, taken := p.keys[key]; taken {
		return wgtypes.Key{}, fmt.Errorf("node %s has %w", holder, ErrDuplicateKey)
	}
	return key, nil
}

// lowOrder reports whether key is a point of small order, with which any
// handshake has a secret that everybody can compute, or zero. The list is
// complete; see https://cr.yp.to/ecdh.html#validate.
func lowOrder(key wgtypes.Key) bool {
	key[31] &= 0x7f // X25519 ignores the highest bit
	switch key {
	case wgtypes.Key{}, wgtypes.Key{1},
		wgtypes.Key{0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8},
		wgtypes.Key{0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57}:
		return true
	}
	// The field's prime less one, the prime itself and the prime plus one are
	// -1, 0 and 1 written differently.
	for _, b := range key[1:31] {
		if b != 0xff {
			return false
		}
	}
	return key[31] == 0x7f && key[0] >= 0xec && key[0] <= 0xee
}

// endpoint splits text into an address, or into a host name with its port.
func (p *planner) endpoint(text string) (netip.AddrPort, string, error) {
	if text == "" {
		return netip.AddrPort{}, "", nil
	}
	host, port, err := splitHostPort(text)
	if err != nil {
		return netip.AddrPort{}, "", err
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		if !validHostName(host) {
			return netip.AddrPort{}, "", errors.New("its endpoint is neither an address nor a host name")
		}
		return netip.AddrPort{}, host + ":" + strconv.Itoa(int(port)), nil
	}
	addr = addr.Unmap()
	if !usableEndpoint(addr) {
		return netip.AddrPort{}, "", fmt.Errorf("no node can be reached at its endpoint %v", addr)
	}
	if overlay := holderOf(p.in.Cluster, addr); overlay.IsValid() {
		return netip.AddrPort{}, "", fmt.Errorf("its endpoint %v lies in the overlay %v, so packets to it would wind up in the tunnel again", addr, overlay)
	}
	return netip.AddrPortFrom(addr, port), "", nil
}

// splitHostPort wants a port in plain decimal digits, unlike net.SplitHostPort.
func splitHostPort(text string) (host string, port uint16, err error) {
	wrong := errors.New("its endpoint is not HOST:PORT with a port between 1 and 65535")
	colon := strings.LastIndexByte(text, ':')
	if colon < 0 {
		return "", 0, wrong
	}
	host = text[:colon]
	number, err := strconv.ParseUint(text[colon+1:], 10, 16)
	if err != nil || number == 0 {
		return "", 0, wrong
	}
	if inner, found := strings.CutPrefix(host, "["); found {
		inner, found = strings.CutSuffix(inner, "]")
		if !found || !strings.Contains(inner, ":") {
			return "", 0, wrong
		}
		return inner, uint16(number), nil
	}
	if strings.Contains(host, ":") {
		return "", 0, wrong
	}
	return host, uint16(number), nil
}

// usableEndpoint reports whether another node can be at addr. Link-local IPv6
// needs a zone, which only the node itself can name.
func usableEndpoint(addr netip.Addr) bool {
	return addr.IsValid() && addr.Zone() == "" && !addr.IsUnspecified() && !addr.IsLoopback() && !addr.IsMulticast() &&
		addr != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && (addr.Is4() || !addr.IsLinkLocalUnicast())
}

// holderOf returns the one of prefixes that addr lies in, else the zero value.
func holderOf(prefixes []netip.Prefix, addr netip.Addr) netip.Prefix {
	for _, prefix := range prefixes {
		if prefix.Contains(addr) {
			return prefix
		}
	}
	return netip.Prefix{}
}

// validHostName follows RFC 1123, and lets underscores pass as resolvers do.
func validHostName(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > maxHostName {
		return false
	}
	digits := true
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			switch {
			case '0' <= c && c <= '9':
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_':
				digits = false
			default:
				return false
			}
		}
	}
	return !digits // "10.1.2" or "300.1.2.3" is a mistyped address, not a name
}

func (p *planner) allowedIPs(given []netip.Prefix) ([]netip.Prefix, error) {
	switch {
	case len(given) == 0:
		return nil, errors.New("it has no slice yet")
	case len(given) > maxSlices:
		return nil, fmt.Errorf("it claims %d slices, more than %d", len(given), maxSlices)
	}
	sorted := slices.Clone(given)
	slices.SortFunc(sorted, netip.Prefix.Compare)
	for i, slice := range sorted {
		if err := p.checkSlice(slice); err != nil {
			return nil, err
		}
		if i > 0 && sorted[i-1].Overlaps(slice) {
			return nil, fmt.Errorf("its slices %v and %v overlap", sorted[i-1], slice)
		}
	}
	return sorted, nil
}

func (p *planner) checkSlice(slice netip.Prefix) error {
	switch {
	case !slice.IsValid() || slice != slice.Masked() || slice.Addr().Is4In6():
		return fmt.Errorf("its slice %v is not a network prefix", slice)
	case slice.Bits() == 0 || slice.Addr().IsMulticast() || slice.Addr().IsLoopback() || slice.Addr().IsLinkLocalUnicast():
		return fmt.Errorf("its slice %v holds no pod addresses", slice)
	case len(p.in.Cluster) > 0 && !slices.ContainsFunc(p.in.Cluster, func(c netip.Prefix) bool {
		return c.IsValid() && c.Bits() <= slice.Bits() && c.Contains(slice.Addr())
	}):
		return fmt.Errorf("its slice %v lies outside the cluster's %v", slice, p.in.Cluster)
	}
	if holder, taken := p.claims.holder(slice); taken {
		return fmt.Errorf("its slice %v %w %v of node %s", slice, ErrOverlappingSlice, holder.prefix, holder.node)
	}
	return nil
}
