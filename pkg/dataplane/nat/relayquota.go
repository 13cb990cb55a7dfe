package nat

import (
	"errors"
	"net"
	"net/netip"
	"sync"
)

var errRelayFull = errors.New("too many allocations")

// relaySource is where a client's requests come from.
type relaySource struct {
	network       string
	client, local netip.AddrPort
}

// relaySessions holds the relayed sockets of a relay, and bounds them. Safe for
// concurrent use.
type relaySessions struct {
	max, perNode int
	stats        *RelayStats

	mu       sync.RWMutex // guards all below
	total    int
	byNode   map[string]int
	byAddr   map[netip.AddrPort]*relaySocket
	bySource map[relaySource]*relaySocket
}

func newRelaySessions(limit, perNode int, stats *RelayStats) *relaySessions {
	return &relaySessions{
		max: limit, perNode: perNode, stats: stats,
		byNode: make(map[string]int), byAddr: make(map[netip.AddrPort]*relaySocket), bySource: make(map[relaySource]*relaySocket),
	}
}

// room says whether reserve would succeed now.
func (s *relaySessions) room(node string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.roomLocked(node)
}

func (s *relaySessions) roomLocked(node string) bool {
	return s.total < s.max && s.byNode[node] < s.perNode
}

// reserve takes a place for an allocation, which release gives back.
func (s *relaySessions) reserve(node string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.roomLocked(node) {
		return errRelayFull
	}
	s.total++
	s.byNode[node]++
	s.stats.Sessions.Store(int64(s.total))
	return nil
}

func (s *relaySessions) release(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.byNode[node]--; s.byNode[node] == 0 {
		delete(s.byNode, node)
	}
	s.stats.Sessions.Store(int64(s.total))
}

func (s *relaySessions) add(socket *relaySocket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byAddr[socket.addr] = socket
	s.stats.Allocated.Add(1)
}

func (s *relaySessions) remove(socket *relaySocket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byAddr, socket.addr)
	if s.bySource[socket.source] == socket {
		delete(s.bySource, socket.source)
	}
}

// attach tells from where a socket's client speaks.
func (s *relaySessions) attach(relayed netip.AddrPort, source relaySource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if socket := s.byAddr[relayed]; socket != nil {
		socket.source = source
		socket.client = net.UDPAddrFromAddrPort(source.client)
		s.bySource[source] = socket
	}
}

// at returns the socket with a relayed address, or nil.
func (s *relaySessions) at(relayed netip.AddrPort) *relaySocket {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byAddr[relayed]
}

// of returns the socket of a client, or nil.
func (s *relaySessions) of(source relaySource) *relaySocket {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.bySource[source]
}

// client returns the address of a client with an allocation over UDP, or nil.
func (s *relaySessions) client(source relaySource) net.Addr {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if socket := s.bySource[source]; socket != nil {
		return socket.client
	}
	return nil
}

// closeIf closes the sockets for which which is true.
func (s *relaySessions) closeIf(which func(node string) bool) {
	s.mu.RLock()
	var gone []*relaySocket
	for _, socket := range s.byAddr {
		if which(socket.node) {
			gone = append(gone, socket)
		}
	}
	s.mu.RUnlock()
	for _, socket := range gone {
		_ = socket.Close()
	}
}
