package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// NATConfig says how a node finds ways through NATs to its peers. A field that
// is missing in JSON has the value of DefaultNATConfig.
type NATConfig struct {
	Enabled                 bool         `json:"enabled"`
	STUNServers             []STUNServer `json:"stun_servers,omitempty"` // none: nobody outside is asked for this node's address
	TURNServers             []TURNServer `json:"turn_servers,omitempty"`
	HolePunchTimeoutSecs    uint32       `json:"hole_punch_timeout_secs"`    // for one round of tries with a peer
	STUNRefreshIntervalSecs uint32       `json:"stun_refresh_interval_secs"` // between two rounds of upkeep
	MaxCandidatePairs       uint32       `json:"max_candidate_pairs"`        // tried for one peer, best first
	RelayServer             *RelayServer `json:"relay_server,omitempty"`     // nil: this node relays for nobody
}

// STUNServer tells a node the address that others see.
type STUNServer struct {
	Address string `json:"address"` // host:port; the host may be a name
	Label   string `json:"label,omitempty"`
}

// TURNServer relays where no direct way is found.
type TURNServer struct {
	Address    string `json:"address"` // host:port; the host may be a name
	Username   string `json:"username"`
	Credential Secret `json:"credential"`
	Region     string `json:"region,omitempty"`
}

// RelayServer is this node's own relay for others.
type RelayServer struct {
	ListenPort   uint16         `json:"listen_port"`
	ExternalAddr netip.AddrPort `json:"external_addr"` // where others reach it
	MaxSessions  uint32         `json:"max_sessions"`  // by default 100

	// TLSPort is the port for those who get out by TLS alone, the same at ExternalAddr's address; 0: none.
	TLSPort uint16 `json:"tls_port,omitempty"`

	// Forbidden are prefixes to which nothing is relayed, besides the cluster's own.
	Forbidden []netip.Prefix `json:"forbidden,omitempty"`
}

const defaultRelaySessions = 100

// DefaultNATConfig returns what holds unless told otherwise: traversal is on,
// and no server outside of the cluster is asked anything.
func DefaultNATConfig() NATConfig {
	return NATConfig{Enabled: true, HolePunchTimeoutSecs: 15, STUNRefreshIntervalSecs: 60, MaxCandidatePairs: 10}
}

// LogValue keeps the credentials out of logs, those in JSON included.
func (c NATConfig) LogValue() slog.Value {
	return slog.GroupValue(slog.Bool("enabled", c.Enabled), slog.Int("stun_servers", len(c.STUNServers)),
		slog.Int("turn_servers", len(c.TURNServers)), slog.Bool("relay_server", c.RelayServer != nil))
}

// UnmarshalJSON reads a configuration over the defaults.
func (c *NATConfig) UnmarshalJSON(raw []byte) error {
	type plain NATConfig
	read := plain(DefaultNATConfig())
	if err := json.Unmarshal(raw, &read); err != nil {
		return err
	}
	*c = NATConfig(read)
	return nil
}

// UnmarshalJSON reads a relay over the defaults.
func (r *RelayServer) UnmarshalJSON(raw []byte) error {
	type plain RelayServer
	read := plain{MaxSessions: defaultRelaySessions}
	if err := json.Unmarshal(raw, &read); err != nil {
		return err
	}
	*r = RelayServer(read)
	return nil
}

// Validate returns an error that names the first field that makes no sense.
func (c NATConfig) Validate() error {
	for i, server := range c.STUNServers {
		if err := checkHostPort(server.Address); err != nil {
			return fmt.Errorf("stun_servers[%d].address: %w", i, err)
		}
	}
	for i, server := range c.TURNServers {
		if err := checkHostPort(server.Address); err != nil {
			return fmt.Errorf("turn_servers[%d].address: %w", i, err)
		}
		if server.Username == "" {
			return fmt.Errorf("turn_servers[%d].username: not set", i)
		}
	}
	switch {
	case c.HolePunchTimeoutSecs == 0:
		return errors.New("hole_punch_timeout_secs: must not be 0")
	case c.STUNRefreshIntervalSecs == 0:
		return errors.New("stun_refresh_interval_secs: must not be 0")
	case c.MaxCandidatePairs == 0:
		return errors.New("max_candidate_pairs: must not be 0")
	}
	if c.RelayServer != nil {
		if err := c.RelayServer.validate(); err != nil {
			return fmt.Errorf("relay_server.%w", err)
		}
	}
	return nil
}

func (r *RelayServer) validate() error {
	switch {
	case r.ListenPort == 0:
		return errors.New("listen_port: must not be 0")
	case !r.ExternalAddr.IsValid() || r.ExternalAddr.Port() == 0:
		return errors.New("external_addr: want an address and a port")
	case !reachable(r.ExternalAddr.Addr().Unmap()):
		return fmt.Errorf("external_addr: others do not reach this node at %s", r.ExternalAddr.Addr())
	case r.MaxSessions == 0:
		return errors.New("max_sessions: must not be 0")
	case r.TLSPort == r.ListenPort:
		return fmt.Errorf("tls_port: %d is listen_port, too", r.TLSPort)
	}
	return nil
}

// reachable tells whether another node could send to an address.
func reachable(addr netip.Addr) bool {
	if addr.Is4() && (addr.As4()[0] == 0 || addr.As4()[0] >= 240) { // "this network", reserved, broadcast
		return false
	}
	return addr.IsGlobalUnicast() && addr.Zone() == ""
}

// clone returns a copy that shares nothing.
func (c NATConfig) clone() NATConfig {
	c.STUNServers = slices.Clone(c.STUNServers)
	c.TURNServers = slices.Clone(c.TURNServers)
	if c.RelayServer != nil {
		relay := *c.RelayServer
		relay.Forbidden = slices.Clone(relay.Forbidden)
		c.RelayServer = &relay
	}
	return c
}

// checkHostPort tells whether text is host:port, IPv6 in brackets.
func checkHostPort(text string) error {
	host, port, err := net.SplitHostPort(text)
	if err == nil && host == "" {
		err = errors.New("no host")
	}
	if number, bad := strconv.ParseUint(port, 10, 16); err == nil && (bad != nil || number == 0) {
		err = errors.New("no port")
	}
	if err != nil {
		return fmt.Errorf("%s is not host:port", short(text))
	}
	return nil
}

// NATStatus is what a daemon knows of ways through NATs.
type NATStatus struct {
	Enabled    bool           `json:"enabled"`
	NATType    string         `json:"nat_type,omitempty"`   // "endpoint-independent" or "symmetric"; empty: not known
	Candidates []NATCandidate `json:"candidates,omitempty"` // of this node, best first
	Peers      []NATPeer      `json:"peers,omitempty"`      // for which a way was looked for

	Relay *NATRelay `json:"relay,omitempty"` // nil: this node relays for nobody
}

// NATCandidate is an address at which this node may be reached.
type NATCandidate struct {
	Type               CandidateType  `json:"candidate_type"`
	Address            netip.AddrPort `json:"address"`
	Priority           uint32         `json:"priority"` // higher is better
	DiscoveredUnixSecs int64          `json:"discovered_at"`
}

// String returns the form that PeerSpec's Candidates have.
func (c NATCandidate) String() string { return string(c.Type) + "/" + c.Address.String() }

// CandidateType says how a candidate was found.
type CandidateType string

// The types of candidates, best first.
const (
	CandidateHost            CandidateType = "host"             // an address of the node itself
	CandidateServerReflexive CandidateType = "server_reflexive" // as a STUN server or a peer saw it
	CandidateRelay           CandidateType = "relay"            // of a relay
)

// NATPeer is the way to one peer.
type NATPeer struct {
	PublicKey  string         `json:"public_key"` // base64
	Node       string         `json:"node,omitempty"`
	Connection ConnectionType `json:"connection_type"`
	Endpoint   string         `json:"endpoint"` // in use now; empty: none

	RTTMicros     uint64 `json:"rtt_micros,omitempty"`      // of the last check of this way; 0: none was answered
	SinceUnixSecs int64  `json:"since_unix_secs,omitempty"` // when this way was taken; 0: not known
}

// NATRelay counts what this node relays for others.
type NATRelay struct {
	Offer    string `json:"offer"`    // how it is reached, for PeerSpec's Relay and the nodes file
	Sessions uint32 `json:"sessions"` // that stand now
	Bytes    uint64 `json:"bytes"`    // passed on, in either direction
	Refused  uint64 `json:"refused"`  // requests, and packets that were not passed on

	RefusedFor map[string]uint64 `json:"refused_for,omitempty"` // the same by reason
}

// ConnectionType says how a peer is reached.
type ConnectionType string

// The types of connections.
const (
	ConnectionDirect      ConnectionType = "direct"
	ConnectionHolePunched ConnectionType = "hole-punched"
	ConnectionRelayed     ConnectionType = "relayed"
)
