package nat

import "net/netip"

// Kind says how a candidate was found.
type Kind string

// The kinds of candidates, best first.
const (
	// Host is an address of the node itself.
	Host Kind = "host"
	// Reflexive is what a STUN server or a peer saw packets of the node come from.
	Reflexive Kind = "server_reflexive"
	// Relayed is an address of a relay that passes packets on to the node.
	Relayed Kind = "relay"
)

// Priority tells kinds apart: higher is better.
func (k Kind) Priority() uint32 {
	switch k {
	case Host:
		return 100
	case Reflexive:
		return 50
	case Relayed:
		return 10
	}
	return 0
}

// Candidate is an address at which a node may be reached.
type Candidate struct {
	// Kind says how it was found.
	Kind Kind
	// Addr is the address and UDP port.
	Addr netip.AddrPort
}
