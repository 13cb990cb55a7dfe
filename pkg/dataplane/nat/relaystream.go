package nat

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

const (
	// relayHello is how long a connection may take until it has an allocation.
	relayHello = 10 * time.Second
	// relayIdle is how long it may be silent later; a client refreshes its
	// allocation far more often.
	relayIdle = 3 * time.Minute
	// relayWriteTime is how long a client may take to accept a packet.
	relayWriteTime = 5 * time.Second
	// relayConnsPerAddr bounds the connections from one address.
	relayConnsPerAddr = 32
	// relayHelloFrames is how many messages a client may need for an allocation.
	relayHelloFrames = 16
	// relayAcceptPause is how long to wait when no connection can be accepted.
	relayAcceptPause = 100 * time.Millisecond
)

// relayListener accepts the connections of a relay over TCP or TLS, and bounds
// them. Safe for concurrent use.
type relayListener struct {
	net.Listener
	server *RelayServer
	tls    *tls.Config // nil for TCP
	done   chan struct{}

	mu      sync.Mutex // guards all below
	closed  bool
	conns   map[*relayConn]bool
	perAddr map[netip.Prefix]int
}

func newRelayListener(server *RelayServer, inner net.Listener, config *tls.Config) *relayListener {
	return &relayListener{
		Listener: inner, server: server, tls: config, done: make(chan struct{}),
		conns: make(map[*relayConn]bool), perAddr: make(map[netip.Prefix]int),
	}
}

// Accept returns the next connection that there is room for, or is made for.
func (l *relayListener) Accept() (net.Conn, error) {
	for {
		inner, err := l.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if err != nil { // out of file descriptors, or the client has gone
			select {
			case <-l.done:
				return nil, net.ErrClosed
			case <-time.After(relayAcceptPause):
			}
			continue
		}
		if conn, ok := l.admit(inner); ok {
			return conn, nil
		}
		l.server.stats.Connections.Add(1)
		_ = inner.Close()
	}
}

func (l *relayListener) admit(inner net.Conn) (*relayConn, bool) {
	client, err := netip.ParseAddrPort(inner.RemoteAddr().String())
	if err != nil {
		return nil, false
	}
	local, err := netip.ParseAddrPort(inner.LocalAddr().String())
	if err != nil {
		return nil, false
	}
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	conn := &relayConn{
		Conn: inner, listener: l, from: relayNeighbourhood(client.Addr()), hello: time.Now().Add(l.server.hello),
		source: relaySource{network: "tcp", client: client, local: netip.AddrPortFrom(local.Addr().Unmap(), local.Port())},
	}
	if l.tls != nil { // the handshake is part of the first read, and so of its deadline
		conn.Conn = tls.Server(inner, l.tls)
	}
	conn.reader = bufio.NewReaderSize(conn.Conn, 2*relayFrame)
	ok, gone := l.add(conn)
	if gone != nil {
		l.server.stats.Connections.Add(1)
		_ = gone.Close()
	}
	return conn, ok
}

// add takes a connection if there is room, in all and for where it comes from. If
// there is none, the oldest without an allocation has to go: it had its time, and
// connections that say nothing must not keep out nodes that have nothing but TCP.
func (l *relayListener) add(conn *relayConn) (ok bool, gone *relayConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false, nil
	}
	fullAddr := l.perAddr[conn.from] >= relayConnsPerAddr
	if fullAddr || len(l.conns) >= l.server.maxConnections() {
		for other := range l.conns {
			if fullAddr && other.from != conn.from || gone != nil && gone.hello.Before(other.hello) || other.known() {
				continue
			}
			gone = other
		}
		if gone == nil {
			return false, nil
		}
		l.forgetLocked(gone)
	}
	l.conns[conn] = true
	l.perAddr[conn.from]++
	return true, gone
}

func (l *relayListener) forget(conn *relayConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetLocked(conn)
}

func (l *relayListener) forgetLocked(conn *relayConn) {
	if !l.conns[conn] {
		return
	}
	delete(l.conns, conn)
	if l.perAddr[conn.from]--; l.perAddr[conn.from] == 0 {
		delete(l.perAddr, conn.from)
	}
}

// Close closes the listener and all its connections.
func (l *relayListener) Close() error {
	l.mu.Lock()
	var open []*relayConn
	for conn := range l.conns {
		open = append(open, conn)
	}
	if !l.closed {
		close(l.done)
	}
	l.closed = true
	l.mu.Unlock()
	err := l.Listener.Close()
	for _, conn := range open {
		_ = conn.Close()
	}
	return err
}

// relayConn is a client's connection. Each Read returns one whole message.
type relayConn struct {
	net.Conn
	listener *relayListener
	source   relaySource
	from     netip.Prefix
	reader   *bufio.Reader
	hello    time.Time
	frames   int // before there was an allocation
}

// known says whether the client has an allocation.
func (c *relayConn) known() bool { return c.listener.server.sessions.of(c.source) != nil }

// Read returns one message, and closes the connection if there is no whole one
// in time.
func (c *relayConn) Read(p []byte) (int, error) {
	n, err := c.read(p)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.listener.server.stats.Connections.Add(1)
		}
		_ = c.Close()
	}
	return n, err
}

func (c *relayConn) read(p []byte) (int, error) {
	server := c.listener.server
	known := c.known()
	deadline := c.hello
	if known {
		deadline = time.Now().Add(relayIdle)
	}
	if err := c.Conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	if !known { // a handshake writes, too
		if err := c.Conn.SetWriteDeadline(deadline); err != nil {
			return 0, err
		}
	}
	n, err := readTURNFrame(c.reader, p)
	switch {
	case errors.Is(err, errTURNLong):
		server.stats.Oversized.Add(1)
	case errors.Is(err, errTURNFrame):
		server.stats.Malformed.Add(1)
	}
	if err != nil || known {
		return n, err
	}
	if c.frames++; c.frames > relayHelloFrames {
		server.stats.Hasty.Add(1)
		return 0, errors.New("too many requests")
	}
	if !server.strangerMayAsk(p[:n]) {
		return 0, errTURNFrame
	}
	return n, nil
}

// readTURNFrame reads one message of a stream into p, with its padding.
func readTURNFrame(r io.Reader, p []byte) (int, error) {
	var head [channelHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	length, err := turnFrameLength(head)
	if err != nil {
		return 0, err
	}
	if length >= len(p) {
		return 0, fmt.Errorf("%w: %d bytes", errTURNLong, length)
	}
	copy(p, head[:])
	if _, err := io.ReadFull(r, p[channelHeader:length]); err != nil {
		return 0, err
	}
	return length, nil
}

// Write sends one message. A client that does not take it in time is cut off:
// what has left of the message cannot be taken back.
func (c *relayConn) Write(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(relayWriteTime)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.listener.server.stats.Connections.Add(1)
		}
		_ = c.Close()
	}
	return n, err
}

// Close closes the connection. Closing twice is fine.
func (c *relayConn) Close() error {
	c.listener.forget(c)
	return c.Conn.Close()
}
