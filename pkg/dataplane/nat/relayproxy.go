package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// relayWaiting is how many packets wait for a channel.
	relayWaiting = 4
	// relayRefusedPause is how long after a refusal a channel is not asked for
	// again: the relay may not know the peer's candidate yet.
	relayRefusedPause = 2 * time.Second
	// relayLongest is the longest packet that goes through a channel.
	relayLongest = relayFrame - channelHeader - channelPadding
	// relayUninvited bounds the remotes that are made for what comes from addresses
	// that the device has not sent to.
	relayUninvited = 128
)

var (
	errRelayDown     = errors.New("no allocation at the relay")
	errRelayLong     = errors.New("packet too long for the relay")
	errTooManyPeers  = errors.New("too many addresses behind the relay")
	errRelayNoTarget = errors.New("not an address that a relay could reach")
)

// relayRemote is an address that packets are exchanged with through a relay. A
// loopback socket stands for it towards the WireGuard device. It outlives
// allocations.
type relayRemote struct {
	client   *RelayClient
	addr     netip.AddrPort
	conn     *net.UDPConn // connected: the kernel drops what is not from the WireGuard port
	endpoint netip.AddrPort
	used     atomic.Int64 // when, in nanoseconds
	closed   atomic.Bool
	strange  bool // guarded by the client's mu
	channel  atomic.Pointer[relayChannel]
	// diversion is nil but while the device is switched to another way.
	diversion atomic.Pointer[relayDiversion]

	mu      sync.Mutex // guards all below
	binding *turnSession
	refused time.Time
	waiting [][]byte
}

// relayChannel is a channel that is bound.
type relayChannel struct {
	session *turnSession
	number  uint16
	at      time.Time
}

// Send sends a STUN packet to an address through the relay, by the channel of the
// device if it has one.
func (c *RelayClient) Send(packet []byte, to netip.AddrPort) error {
	if len(packet) > relayLongest {
		return fmt.Errorf("send to %s by relay: %w", to, errRelayLong)
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if unreachable(to) != "" {
		return fmt.Errorf("send to %s by relay: %w", to, errRelayNoTarget)
	}
	c.mu.RLock()
	remote := c.remotes[to]
	c.mu.RUnlock()
	if remote == nil {
		if err := c.sendIndication(packet, to); err != nil {
			return fmt.Errorf("send to %s by relay: %w", to, err)
		}
		return nil
	}
	buffer := c.buffers.Get().(*[relayPool]byte)
	defer c.buffers.Put(buffer)
	n := copy(buffer[channelHeader:], packet)
	if err := remote.send(buffer[:], n); err != nil {
		return fmt.Errorf("send to %s by relay: %w", to, err)
	}
	return nil
}

// Endpoint returns the loopback address that stands for an address behind the
// relay, and makes it if need be. It is closed after 5 minutes without traffic.
func (c *RelayClient) Endpoint(to netip.AddrPort) (netip.AddrPort, error) {
	remote, err := c.remote(to, false)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("endpoint for %s by relay: %w", to, err)
	}
	remote.touch()
	if session := c.current.Load(); session != nil && remote.channel.Load() == nil {
		remote.bind(session) // so that it lets in what comes before the device sends
	}
	return remote.endpoint, nil
}

// Remote is the inverse of Endpoint.
func (c *RelayClient) Remote(endpoint netip.AddrPort) (to netip.AddrPort, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	remote := c.byEndpoint[endpoint]
	if remote == nil {
		return netip.AddrPort{}, false
	}
	return remote.addr, true
}

// remote returns the remote of an address, and makes it if need be: strange for
// what came from an address that the device knows nothing of.
func (c *RelayClient) remote(addr netip.AddrPort, strange bool) (*relayRemote, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	c.mu.RLock()
	remote := c.remotes[addr]
	c.mu.RUnlock()
	if remote != nil {
		return remote, nil
	}
	if unreachable(addr) != "" {
		return nil, errRelayNoTarget
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if remote := c.remotes[addr]; remote != nil {
		return remote, nil
	}
	switch {
	case !c.running:
		return nil, errRelayDown
	case len(c.remotes) >= c.cfg.MaxRemotes, strange && c.strangers >= min(relayUninvited, c.cfg.MaxRemotes/2):
		return nil, errTooManyPeers
	}
	loopback := net.IPv4(127, 0, 0, 1)
	conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: loopback}, &net.UDPAddr{IP: loopback, Port: int(c.cfg.WireGuardPort)})
	if err != nil {
		return nil, fmt.Errorf("open loopback socket: %w", err)
	}
	_ = conn.SetReadBuffer(relaySocketBuffer) // less is only slower
	remote = &relayRemote{client: c, addr: addr, conn: conn, endpoint: relayAddrPort(conn.LocalAddr()), strange: strange}
	if strange {
		c.strangers++
	}
	remote.touch()
	c.remotes[addr], c.byEndpoint[remote.endpoint] = remote, remote
	c.wg.Go(remote.run)
	return remote, nil
}

// dropIdle closes the remotes that had no traffic for so long.
func (c *RelayClient) dropIdle(idle time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, remote := range c.remotes {
		if time.Since(time.Unix(0, remote.used.Load())) >= idle {
			c.closeLocked(remote)
		}
	}
}

func (c *RelayClient) closeLocked(remote *relayRemote) {
	delete(c.remotes, remote.addr)
	delete(c.byEndpoint, remote.endpoint)
	if remote.strange {
		c.strangers--
	}
	remote.closed.Store(true)
	_ = remote.conn.Close()
}

// rebind binds the channels again that are in use by a session and old, or that
// belong to a session before it, and does so with the permissions.
func (c *RelayClient) rebind(s *turnSession) {
	c.renewPermits(s)
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, remote := range c.remotes {
		channel := remote.channel.Load()
		if channel != nil && (channel.session != s || time.Since(channel.at) >= relayRebind) {
			remote.bind(s)
		}
	}
}

// arrived hands on what came from a remote: STUN to the agent, all else to the
// WireGuard device.
func (c *RelayClient) arrived(remote *relayRemote, data []byte) {
	if isSTUNPacket(data) {
		c.cfg.Deliver(c, remote.addr, data)
		return
	}
	remote.touch()
	_, _ = remote.conn.Write(data) // the device may be away
}

// arrivedFrom is arrived for an address that may be a new one. Strangers cannot
// use up the remotes.
func (c *RelayClient) arrivedFrom(from netip.AddrPort, data []byte) {
	if isSTUNPacket(data) {
		c.cfg.Deliver(c, from, data)
		return
	}
	if remote, err := c.remote(from, true); err == nil {
		c.arrived(remote, data)
	}
}

func (r *relayRemote) touch() { r.used.Store(time.Now().UnixNano()) }

// run passes on what the WireGuard device sends, until the remote is closed.
func (r *relayRemote) run() {
	buffer := make([]byte, relayPool)
	for {
		n, err := r.conn.Read(buffer[channelHeader:])
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || n > relayLongest: // the device was away, or the packet cannot be relayed
			continue
		}
		if !r.divert(buffer[channelHeader : channelHeader+n]) {
			_ = r.send(buffer, n) // lost, as in a network
		}
	}
}

// send sends n bytes that stand in the buffer behind room for a header.
func (r *relayRemote) send(buffer []byte, n int) error {
	r.touch()
	session := r.client.current.Load()
	if session == nil {
		return errRelayDown
	}
	if channel := r.channel.Load(); channel != nil && channel.session == session {
		return channel.send(buffer, n)
	}
	r.mu.Lock()
	if len(r.waiting) < relayWaiting {
		r.waiting = append(r.waiting, append([]byte(nil), buffer[:channelHeader+n]...))
	}
	r.mu.Unlock()
	r.bind(session)
	return nil
}

func (c *relayChannel) send(buffer []byte, n int) error {
	binary.BigEndian.PutUint16(buffer, c.number)
	binary.BigEndian.PutUint16(buffer[2:], uint16(n)) //nolint:gosec // at most relayLongest
	_, err := c.session.conn.Write(buffer[:channelHeader+n])
	return err
}

// bind begins to bind a channel of a session, unless that is under way or was
// refused just now.
func (r *relayRemote) bind(session *turnSession) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.binding == session || time.Since(r.refused) < relayRefusedPause {
		return
	}
	if session.bind(r) {
		r.binding = session
	}
}

// bound is told how that ended.
func (r *relayRemote) bound(session *turnSession, number uint16, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.binding == session {
		r.binding = nil
	}
	waiting := r.waiting
	r.waiting = nil
	var refusal relayRefusal
	switch {
	case errors.As(err, &refusal):
		r.refused = time.Now()
		if channel := r.channel.Load(); channel != nil && channel.session == session {
			r.channel.Store(nil)
		}
		r.client.cfg.Log.Debug("relay refuses", "ip", r.addr, "err", err)
	case err == nil:
		channel := &relayChannel{session: session, number: number, at: time.Now()}
		r.channel.Store(channel)
		for _, packet := range waiting {
			_ = channel.send(packet, len(packet)-channelHeader)
		}
	}
}
