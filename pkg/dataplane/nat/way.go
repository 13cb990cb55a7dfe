package nat

import "net/netip"

// Way is a means to send packets from this node: the WireGuard port itself, or
// an allocation at a relay. Safe for concurrent use.
type Way interface {
	// Send sends a STUN packet, or one of the device's own, to an address. It does not block for long, and an
	// error says only that this packet was not sent.
	Send(packet []byte, to netip.AddrPort) error
	// Endpoint is where the WireGuard device has to send so that its packets reach
	// to by this way: to itself, or an address on this node where a relay's client
	// listens.
	Endpoint(to netip.AddrPort) (netip.AddrPort, error)
	// Remote is the inverse of Endpoint: whom the device reaches at endpoint, if
	// that is of this way.
	Remote(endpoint netip.AddrPort) (to netip.AddrPort, ok bool)
}

// Homed is a [Way] of a node that may have several addresses. Who sent to one of
// them takes an answer from no other.
type Homed interface {
	Way
	// SendFrom is Send from one of this node's addresses.
	SendFrom(packet []byte, from netip.Addr, to netip.AddrPort) error
}
