package nat

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// RelayPeer is a node that may use a relay, and be reached through it.
type RelayPeer struct {
	// Key is its WireGuard key.
	Key wgtypes.Key
	// Addrs are its candidates and published endpoints.
	Addrs []netip.AddrPort
	// Prefixes are its pods', to which nothing is relayed.
	Prefixes []netip.Prefix
}

func (p RelayPeer) equal(other RelayPeer) bool {
	return p.Key == other.Key && slices.Equal(p.Addrs, other.Addrs) && slices.Equal(p.Prefixes, other.Prefixes)
}

// relayCredentialsHeld bounds the credentials of a node that are remembered,
// and so how many it can use in their lifetime.
const relayCredentialsHeld = 128

// relayNode is a client that may authenticate.
type relayNode struct {
	key    wgtypes.Key
	id     string
	secret []byte
	// used holds by user name from which address a credential is used.
	used map[string]relayUse
}

type relayUse struct {
	from   string
	expiry time.Time
}

// relayNodes finds nodes by the id they authenticate with. Safe for concurrent
// use.
type relayNodes struct {
	shared SharedSecret
	stats  *RelayStats

	mu      sync.Mutex // guards all below
	byID    map[string]*relayNode
	byKey   map[wgtypes.Key]*relayNode
	pending []wgtypes.Key // of which the id is not known yet
}

func newRelayNodes(shared SharedSecret, stats *RelayStats) *relayNodes {
	return &relayNodes{
		shared: shared, stats: stats,
		byID: make(map[string]*relayNode), byKey: make(map[wgtypes.Key]*relayNode),
	}
}

// set replaces the nodes. Those that stay keep what was computed for them.
func (n *relayNodes) set(keys []wgtypes.Key) {
	n.mu.Lock()
	defer n.mu.Unlock()
	wanted := make(map[wgtypes.Key]bool, len(keys))
	for _, key := range keys {
		wanted[key] = true
	}
	for key, node := range n.byKey {
		if !wanted[key] {
			delete(n.byKey, key)
			delete(n.byID, node.id)
		}
	}
	n.pending = n.pending[:0]
	for key := range wanted {
		if n.byKey[key] == nil {
			n.pending = append(n.pending, key)
		}
	}
}

// has says whether a node of the set has this id.
func (n *relayNodes) has(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byID[id] != nil
}

// authenticate returns the id and password of a user name that is valid now
// and from this address.
func (n *relayNodes) authenticate(username, from string, now time.Time) (id, password string, ok bool) {
	expiry, id, err := parseRelayUsername(username)
	if err != nil {
		n.stats.Malformed.Add(1)
		return "", "", false
	}
	if now.After(expiry.Add(RelayClockSkew)) || expiry.After(now.Add(RelayCredentialLifetime+RelayClockSkew)) {
		n.stats.Expired.Add(1)
		return "", "", false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	node := n.findLocked(id)
	if node == nil {
		n.stats.Unknown.Add(1)
		return "", "", false
	}
	use, seen := node.used[username]
	if seen && use.from != from || !seen && !node.roomLocked(now) {
		n.stats.Replayed.Add(1)
		return "", "", false
	}
	return id, relayPassword(node.secret, username), true
}

// bind ties a credential to the address it was used from with the right
// password.
func (n *relayNodes) bind(username, from string) {
	expiry, id, err := parseRelayUsername(username)
	if err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	node := n.byID[id]
	if node == nil {
		return
	}
	if _, seen := node.used[username]; !seen {
		node.used[username] = relayUse{from: from, expiry: expiry}
	}
}

// findLocked computes the secrets of nodes that were never asked for. Each is
// computed once, whatever strangers send.
func (n *relayNodes) findLocked(id string) *relayNode {
	for n.byID[id] == nil && len(n.pending) > 0 {
		key := n.pending[len(n.pending)-1]
		n.pending = slices.Delete(n.pending, len(n.pending)-1, len(n.pending))
		secret, err := n.shared(key)
		if err != nil { // a key that is none: nobody has its private half
			continue
		}
		node := &relayNode{key: key, id: relayID(secret, key), secret: secret, used: make(map[string]relayUse)}
		n.byKey[key] = node
		n.byID[node.id] = node
	}
	return n.byID[id]
}

// roomLocked forgets credentials that have expired, and says whether there is
// room for one more.
func (node *relayNode) roomLocked(now time.Time) bool {
	if len(node.used) < relayCredentialsHeld/2 {
		return true
	}
	for username, use := range node.used {
		if now.After(use.expiry.Add(RelayClockSkew)) {
			delete(node.used, username)
		}
	}
	return len(node.used) < relayCredentialsHeld
}
