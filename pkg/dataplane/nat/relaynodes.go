package nat

import (
	"log/slog"
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

// relayClocksPause is the least time between two words about clocks in the log.
const relayClocksPause = time.Minute

// relayNode is a client that may authenticate.
type relayNode struct {
	key    wgtypes.Key
	id     string
	secret Secret
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
	log    *slog.Logger

	mu      sync.Mutex // guards all below
	byID    map[string]*relayNode
	byKey   map[wgtypes.Key]*relayNode
	wanted  map[wgtypes.Key]bool
	pending []wgtypes.Key // of wanted, of which the id is not known yet
	clocks  time.Time     // when the log was last told that clocks differ
}

func newRelayNodes(shared SharedSecret, stats *RelayStats, log *slog.Logger) *relayNodes {
	return &relayNodes{
		shared: shared, stats: stats, log: log,
		byID: make(map[string]*relayNode), byKey: make(map[wgtypes.Key]*relayNode),
	}
}

// set replaces the nodes. Those that stay keep what was computed for them; the
// others wait for derive.
func (n *relayNodes) set(keys []wgtypes.Key) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wanted = make(map[wgtypes.Key]bool, len(keys))
	for _, key := range keys {
		n.wanted[key] = true
	}
	for key, node := range n.byKey {
		if !n.wanted[key] {
			delete(n.byKey, key)
			delete(n.byID, node.id)
		}
	}
	n.pending = n.pending[:0]
	for key := range n.wanted {
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
		n.tellClocks(id, now, expiry.Add(-RelayCredentialLifetime))
		return "", "", false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	node := n.byID[id]
	if node == nil {
		n.stats.Unknown.Add(1)
		return "", "", false
	}
	use, seen := node.used[username]
	if seen && use.from != from || !seen && !node.roomLocked(now) {
		n.stats.Replayed.Add(1)
		return "", "", false
	}
	return id, relayPassword([]byte(node.secret()), username), true
}

// tellClocks has the log say, from time to time, that a node's clock may not be
// right: it cannot tell by itself. Strangers cannot make it say anything of nodes
// whose names they have not seen.
func (n *relayNodes) tellClocks(id string, now, theirs time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	node := n.byID[id]
	if node == nil || now.Sub(n.clocks) < relayClocksPause {
		return
	}
	n.clocks = now
	n.log.Warn("a node's credential for the relay is not of this time, as if its clock were wrong",
		"peer", short(node.key), "ahead", theirs.Sub(now).Round(time.Second))
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

// derive computes the secrets of nodes that are new: for those of a large cluster it
// takes half a second, in which others are served. Nothing that strangers send makes
// the relay compute any.
func (n *relayNodes) derive() {
	for {
		key, ok := n.nextPending()
		if !ok {
			return
		}
		secret, err := n.shared(key)
		if err != nil { // a key that is none: nobody has its private half
			continue
		}
		n.insert(&relayNode{key: key, id: relayID(secret, key), secret: NewSecret(string(secret)), used: make(map[string]relayUse)})
	}
}

func (n *relayNodes) nextPending() (key wgtypes.Key, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	last := len(n.pending) - 1
	if last < 0 {
		return wgtypes.Key{}, false
	}
	key, n.pending = n.pending[last], n.pending[:last]
	return key, true
}

// insert adds a node, unless it was removed meanwhile.
func (n *relayNodes) insert(node *relayNode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.wanted[node.key] && n.byKey[node.key] == nil {
		n.byKey[node.key] = node
		n.byID[node.id] = node
	}
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
