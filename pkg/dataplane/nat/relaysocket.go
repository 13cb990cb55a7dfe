package nat

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// relayBurst is the least that an allocation may send at once.
	relayBurst = 256 << 10
	// relaySocketBuffer holds some milliseconds of a fast peer.
	relaySocketBuffer = 1 << 20
	// relayHeardMax bounds the addresses that may be answered because they spoke
	// first.
	relayHeardMax = 64
	// relayPortTries is how many ports are tried for one allocation.
	relayPortTries = 64
)

// relaySocket is the UDP socket of an allocation. It is the last word on what
// is relayed: whatever the TURN server above thinks, only what the filter lets
// through leaves or arrives.
type relaySocket struct {
	server *RelayServer
	conn   *net.UDPConn
	node   string         // the client's id
	addr   netip.AddrPort // as others know it
	source relaySource    // guarded by the sessions' mu, like the next
	client net.Addr       // of source, for what UDP brings
	toPeer *rate.Limiter
	toNode *rate.Limiter
	close  func() error

	lastPeer netip.AddrPort // of the reading goroutine
	lastAddr *net.UDPAddr

	mu    sync.Mutex // guards heard
	heard map[netip.AddrPort]bool
}

// openRelaySocket binds a free port of the range at an external address.
func (r *RelayServer) openRelaySocket(network, node string) (*relaySocket, error) {
	external, ok := r.externalOf(network)
	if !ok {
		r.stats.Unsupported.Add(1)
		return nil, fmt.Errorf("relay for %s: no external address for %s", node, network)
	}
	if err := r.sessions.reserve(node); err != nil {
		r.stats.Full.Add(1)
		return nil, fmt.Errorf("relay for %s: %w", node, err)
	}
	conn, err := r.bindRelayed(network, external)
	if err != nil {
		r.sessions.release(node)
		return nil, fmt.Errorf("relay for %s: %w", node, err)
	}
	_ = conn.SetReadBuffer(relaySocketBuffer) // less is only slower
	_ = conn.SetWriteBuffer(relaySocketBuffer)
	burst := max(r.cfg.Bandwidth/8, relayBurst)
	s := &relaySocket{
		server: r, conn: conn, node: node,
		addr:   netip.AddrPortFrom(external, conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()),
		toPeer: rate.NewLimiter(rate.Limit(r.cfg.Bandwidth), burst),
		toNode: rate.NewLimiter(rate.Limit(r.cfg.Bandwidth), burst),
		heard:  make(map[netip.AddrPort]bool),
	}
	s.close = sync.OnceValue(func() error {
		r.sessions.remove(s)
		r.sessions.release(node)
		return conn.Close()
	})
	s.extend()
	r.sessions.add(s)
	return s, nil
}

func (r *RelayServer) bindRelayed(network string, external netip.Addr) (*net.UDPConn, error) {
	const ports = relayPortMax - relayPortMin + 1
	first := rand.IntN(ports)
	var err error
	for try := range min(relayPortTries, ports) {
		port := relayPortMin + uint16((first+try)%ports) //nolint:gosec // within the range
		var conn *net.UDPConn
		addr := netip.AddrPortFrom(r.bindAddr(external), port)
		if conn, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(addr)); err == nil {
			return conn, nil
		}
	}
	return nil, fmt.Errorf("bind a port of %d-%d: %w", relayPortMin, relayPortMax, err)
}

// extend gives the allocation its longest life from now on, whatever lifetime
// the client has asked for. A read that fails for the deadline ends it.
func (s *relaySocket) extend() { _ = s.conn.SetReadDeadline(time.Now().Add(s.server.lifetime)) }

// ReadFrom returns the next packet of a peer that is for the client.
func (s *relaySocket) ReadFrom(p []byte) (int, net.Addr, error) {
	stats := &s.server.stats
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(p)
		if err != nil {
			return 0, nil, err
		}
		peer, origin := s.peer(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		switch {
		case origin == relayFromNobody:
			stats.Stranger.Add(1)
		case n == len(p): // and perhaps cut off
			stats.Oversized.Add(1)
		case !relayPasses(p[:n]):
			stats.Foreign.Add(1)
		case !s.toNode.AllowN(time.Now(), n):
			stats.Throttled.Add(1)
		default:
			if origin == relayFromOtherPort {
				s.hear(peer)
			}
			stats.ToClients.Add(uint64(n)) //nolint:gosec // a length
			return n, s.netAddr(peer), nil
		}
	}
}

// netAddr saves an allocation for each packet after a peer's first.
func (s *relaySocket) netAddr(peer netip.AddrPort) net.Addr {
	if s.lastAddr == nil || s.lastPeer != peer {
		s.lastPeer, s.lastAddr = peer, net.UDPAddrFromAddrPort(peer)
	}
	return s.lastAddr
}

// relayOrigin says what a relay knows of an address that a packet came from.
type relayOrigin uint8

const (
	relayFromNobody relayOrigin = iota
	relayFromPeer
	// relayFromOtherPort is a node behind a symmetric NAT: it comes from a port that
	// it could not publish.
	relayFromOtherPort
)

// peer says who sends from an address, and whether it may.
func (s *relaySocket) peer(from netip.AddrPort) (netip.AddrPort, relayOrigin) {
	filter := s.server.filter.Load()
	if from.Addr() == s.server.insideAddr(s.addr.Addr()) || filter.isExternal(from.Addr()) {
		if sibling := s.server.sessions.at(netip.AddrPortFrom(s.addr.Addr(), from.Port())); sibling != nil {
			return sibling.addr, relayFromPeer
		}
	}
	switch {
	case filter.sends(from) == relayAllowed:
		return from, relayFromPeer
	case filter.addrs[from.Addr()]:
		return from, relayFromOtherPort
	}
	return netip.AddrPort{}, relayFromNobody
}

// hear remembers an address that may be answered because it spoke first.
func (s *relaySocket) hear(from netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.heard[from] && len(s.heard) >= relayHeardMax {
		clear(s.heard)
	}
	s.heard[from] = true
}

// WriteTo sends a client's packet to a peer if it may. A packet that may not be
// sent is lost, and counted, but no error.
func (s *relaySocket) WriteTo(p []byte, addr net.Addr) (int, error) {
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("relay to %v: not a UDP address", addr)
	}
	to := udp.AddrPort()
	to, verdict := s.route(netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
	switch {
	case verdict != relayAllowed:
		s.server.count(verdict)
	case !relayPasses(p):
		s.server.stats.Foreign.Add(1)
	case !s.toPeer.AllowN(time.Now(), len(p)):
		s.server.stats.Throttled.Add(1)
	default:
		if _, err := s.conn.WriteToUDPAddrPort(p, to); err == nil {
			s.server.stats.ToPeers.Add(uint64(len(p)))
		}
	}
	return len(p), nil
}

// route returns where a packet for to has to be sent, and whether it may be.
func (s *relaySocket) route(to netip.AddrPort) (netip.AddrPort, relayVerdict) {
	filter := s.server.filter.Load()
	if filter.isExternal(to.Addr()) && s.server.sessions.at(to) != nil {
		return netip.AddrPortFrom(s.server.insideAddr(to.Addr()), to.Port()), relayAllowed
	}
	verdict := filter.sends(to)
	if verdict == relayForbiddenPeer && filter.addrs[to.Addr()] {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.heard[to] {
			return to, relayAllowed
		}
	}
	return to, verdict
}

// Close ends the allocation. Closing twice is fine.
func (s *relaySocket) Close() error { return s.close() }

// LocalAddr returns the address it is bound to.
func (s *relaySocket) LocalAddr() net.Addr { return s.conn.LocalAddr() }

// SetDeadline does nothing: the deadline is the allocation's.
func (s *relaySocket) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing: the deadline is the allocation's.
func (s *relaySocket) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing: a UDP socket's writes do not wait long.
func (s *relaySocket) SetWriteDeadline(time.Time) error { return nil }
