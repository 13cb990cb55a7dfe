package nat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pion/turn/v5"
)

// What the TURN server asks the relay, and tells it.

// authenticate returns the key for a user name.
func (r *RelayServer) authenticate(request *turn.RequestAttributes) (id string, key []byte, ok bool) {
	id, password, ok := r.nodes.authenticate(request.Username, relayFrom(request.SrcAddr), time.Now())
	if !ok || request.Realm != relayRealm {
		return "", nil, false
	}
	return id, turn.GenerateAuthKey(request.Username, relayRealm, password), true
}

func relayFrom(addr net.Addr) string { return addr.Network() + " " + addr.String() }

// authenticated is told of each request with a credential, before it is
// carried out.
func (r *RelayServer) authenticated(from, to net.Addr, _, username, _, method string, ok bool) {
	if !ok {
		r.stats.WrongPassword.Add(1)
		return
	}
	r.nodes.bind(username, relayFrom(from))
	if method != "Refresh" {
		return
	}
	if socket := r.sessions.of(relaySourceOf(from, to)); socket != nil {
		if _, id, err := parseRelayUsername(username); err == nil && id == socket.node {
			socket.extend()
		}
	}
}

// hasRoom says whether a node may have one allocation more.
func (r *RelayServer) hasRoom(node, _ string, _ net.Addr) bool {
	if !r.sessions.room(node) {
		r.stats.Full.Add(1)
		return false
	}
	return true
}

// allocated is told of each new allocation.
func (r *RelayServer) allocated(from, to net.Addr, _, _, _ string, relayed net.Addr, _ int) {
	if udp, ok := relayed.(*net.UDPAddr); ok {
		r.sessions.attach(udp.AddrPort(), relaySourceOf(from, to))
	}
}

func relaySourceOf(from, to net.Addr) relaySource {
	return relaySource{network: from.Network(), client: relayAddrPort(from), local: relayAddrPort(to)}
}

func relayAddrPort(addr net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := addr.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// permits says whether a client may have a permission or a channel.
func (r *RelayServer) permits(_ net.Addr, peer net.IP) bool {
	addr, ok := netip.AddrFromSlice(peer)
	verdict := relayForbiddenPeer
	if ok {
		verdict = r.filter.Load().permits(addr)
	}
	r.count(verdict)
	return verdict == relayAllowed
}

// relayGenerator opens the sockets of allocations.
type relayGenerator struct{ server *RelayServer }

// Validate has nothing to check.
func (relayGenerator) Validate() error { return nil }

// AllocatePacketConn opens a relayed socket. Nobody may choose its port.
func (g relayGenerator) AllocatePacketConn(c turn.AllocateListenerConfig) (net.PacketConn, net.Addr, error) {
	if c.UserID == "" || c.RequestedPort != 0 {
		g.server.stats.Unsupported.Add(1)
		return nil, nil, errors.New("relay: ports cannot be chosen")
	}
	socket, err := g.server.openRelaySocket(c.Network, c.UserID)
	if err != nil {
		return nil, nil, err
	}
	return socket, net.UDPAddrFromAddrPort(socket.addr), nil
}

// AllocateListener refuses: a relay for WireGuard relays UDP.
func (g relayGenerator) AllocateListener(turn.AllocateListenerConfig) (net.Listener, net.Addr, error) {
	g.server.stats.Unsupported.Add(1)
	return nil, nil, fmt.Errorf("relay over TCP: %w", errors.ErrUnsupported)
}

// AllocateConn refuses as well.
func (g relayGenerator) AllocateConn(turn.AllocateConnConfig) (net.Conn, error) {
	g.server.stats.Unsupported.Add(1)
	return nil, fmt.Errorf("relay over TCP: %w", errors.ErrUnsupported)
}
