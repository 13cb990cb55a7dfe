package dataplane

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"
)

// NATConfig says how this node finds ways to its peers through NATs. Whoever
// makes one has checked it.
type NATConfig struct {
	// Enabled has ways looked for at all.
	Enabled bool
	// STUNServers, HOST:PORT each, tell this node its address as others see it.
	// Without any, nobody outside of the cluster is asked.
	STUNServers []string
	// TURNServers relay where no direct way is found.
	TURNServers []TURNServer
	// HolePunchTimeout bounds the search for a direct way to one peer.
	HolePunchTimeout time.Duration
	// STUNRefresh is the time between two questions to the servers.
	STUNRefresh time.Duration
	// MaxCandidatePairs bounds what is tried for one peer, best first.
	MaxCandidatePairs int
	// Relay is this node's own relay for others; nil is none.
	Relay *RelayConfig
}

// TURNServer is a relay outside of the cluster.
type TURNServer struct {
	// Address is HOST:PORT.
	Address string
	// Username and Credential are what it knows this cluster by.
	Username   string
	Credential Credential
	// Region is for people.
	Region string
}

// RelayConfig is what a node relays for others.
type RelayConfig struct {
	// ListenPort is the port that it is asked at.
	ListenPort uint16
	// External is where others reach that port.
	External netip.AddrPort
	// TLSPort is the port for those who can reach nothing but TLS; 0 is none.
	TLSPort uint16
	// MaxSessions bounds how many nodes use it at a time.
	MaxSessions int
	// Forbidden are prefixes to which it passes nothing on, besides pods, services,
	// and what belongs to this node alone.
	Forbidden []netip.Prefix
}

// Credential is a password. It prints as a placeholder; convert it to string to
// get at it.
type Credential string

const placeholder = "(secret)"

// Format implements fmt.Formatter, whatever the verb.
func (Credential) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, placeholder) }

// LogValue implements slog.LogValuer.
func (Credential) LogValue() slog.Value { return slog.StringValue(placeholder) }

// MarshalText keeps it out of what is written as JSON.
func (Credential) MarshalText() ([]byte, error) { return []byte(placeholder), nil }

// natOr is how ways through NATs are looked for: as the set says, else as the
// configuration does.
func (s NodeSet) natOr(configured NATConfig) NATConfig {
	if s.NAT != nil {
		return *s.NAT
	}
	return configured
}
