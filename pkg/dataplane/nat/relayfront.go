package nat

import (
	"errors"
	"hash/maphash"
	"net"
	"net/netip"
	"time"
)

const (
	// relayFrame is the longest packet that is relayed, TURN's own bytes
	// included: the TURN server passes on no longer ones.
	relayFrame = 1600
	// Strangers, who have no allocation yet, may send so many packets a second
	// from an address, and so many at once. A client needs two, and there may be
	// many behind one translator.
	relayStrangerRate  = 32
	relayStrangerBurst = 64
	relayBuckets       = 4096
)

// relayFront is the socket that a relay listens on for UDP. Of addresses
// without an allocation it hands up requests for one, and only so many; and no
// answer is longer than what it answers, so that nobody can use the relay
// against the owner of an address.
type relayFront struct {
	server *RelayServer
	conn   *net.UDPConn
	local  netip.AddrPort
	limits relayStrangers
	lost   [stunHeader + 8]byte
	asked  int // length of the request being answered; of the reading goroutine
}

// ReadFrom returns the next packet that the TURN server should see. One
// goroutine may call it.
func (f *relayFront) ReadFrom(p []byte) (int, net.Addr, error) {
	stats := &f.server.stats
	for {
		n, from, err := f.conn.ReadFromUDPAddrPort(p)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				f.server.fail(err)
			}
			return 0, nil, err
		}
		f.asked = n
		if n == len(p) {
			stats.Oversized.Add(1)
			continue
		}
		source := relaySource{network: "udp", client: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), local: f.local}
		if addr := f.server.sessions.client(source); addr != nil {
			return n, addr, nil
		}
		switch {
		case !f.limits.allow(source.client.Addr(), time.Now()):
			stats.Hasty.Add(1)
		case isSTUNPacket(p[:n]) && stunType(p) == turnRefresh && n >= len(f.lost):
			_, _ = f.conn.WriteToUDPAddrPort(turnMappingLost(p[:n], f.lost[:]), from)
		case f.server.strangerMayAsk(p[:n]):
			return n, net.UDPAddrFromAddrPort(source.client), nil
		}
	}
}

// strangerMayAsk says whether a packet of a client without allocation is one
// that could give it one.
func (r *RelayServer) strangerMayAsk(p []byte) bool {
	if !isSTUNPacket(p) || stunType(p) != turnAllocate {
		r.stats.Malformed.Add(1)
		return false
	}
	if _, ok := stunAttr(p, attrIntegrity); !ok {
		r.stats.Unauthenticated.Add(1)
	}
	return true
}

// WriteTo sends to a client: answers, in the goroutine that reads, and what
// comes from peers, in others.
func (f *relayFront) WriteTo(p []byte, addr net.Addr) (int, error) {
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, errors.New("relay answers: not a UDP address")
	}
	if isSTUNPacket(p) && stunType(p)&stunClassSuccess != 0 { // an answer, not an indication
		if len(p) > f.asked {
			f.server.stats.Amplifying.Add(1)
			return len(p), nil
		}
		if stunErrorCode(p) == 401 {
			f.server.stats.Answered.Add(1)
		}
	}
	return f.conn.WriteToUDPAddrPort(p, udp.AddrPort())
}

// Close closes the socket.
func (f *relayFront) Close() error { return f.conn.Close() }

// LocalAddr returns the address it listens on.
func (f *relayFront) LocalAddr() net.Addr { return f.conn.LocalAddr() }

// SetDeadline sets the socket's.
func (f *relayFront) SetDeadline(t time.Time) error { return f.conn.SetDeadline(t) }

// SetReadDeadline sets the socket's.
func (f *relayFront) SetReadDeadline(t time.Time) error { return f.conn.SetReadDeadline(t) }

// SetWriteDeadline sets the socket's.
func (f *relayFront) SetWriteDeadline(t time.Time) error { return f.conn.SetWriteDeadline(t) }

// relayStrangers limits packets by where they come from, in fixed memory:
// addresses share buckets, by a hash that nobody outside can foresee.
type relayStrangers struct {
	seed    maphash.Seed
	buckets [relayBuckets]struct {
		tokens float32
		filled time.Time
	}
}

func (s *relayStrangers) allow(from netip.Addr, now time.Time) bool {
	if s.seed == (maphash.Seed{}) {
		s.seed = maphash.MakeSeed()
	}
	b := &s.buckets[maphash.Comparable(s.seed, relayNeighbourhood(from))%relayBuckets]
	if b.filled.IsZero() {
		b.tokens = relayStrangerBurst
	}
	b.tokens = min(relayStrangerBurst, b.tokens+float32(now.Sub(b.filled).Seconds())*relayStrangerRate)
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// relayNeighbourhood is what one customer of a provider has of addresses.
func relayNeighbourhood(addr netip.Addr) netip.Prefix {
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits)
	return p
}
