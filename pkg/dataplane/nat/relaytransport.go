package nat

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// relayQueue is how many packets wait for a slow connection to a relay before
	// new ones are lost, as they would be in a router.
	relayQueue = 256
	// relayPool is the size of buffers, with room for padding.
	relayPool = relayFrame + channelPadding
)

var errRelayBusy = errors.New("connection to the relay is full")

// relayTransport carries whole messages to and from a relay.
type relayTransport interface {
	// Read reads one message.
	Read(p []byte) (int, error)
	// Write sends one message. It does not wait for the network.
	Write(p []byte) (int, error)
	Close() error
	RemoteAddr() net.Addr
}

// dialRelay connects to a relay by "udp", "tcp" or "tls".
func (c *RelayClient) dialRelay(ctx context.Context, kind string) (relayTransport, error) {
	addr := c.cfg.address(kind)
	network := kind
	if kind == "tls" {
		network = "tcp"
	}
	conn, err := c.connectTo(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to relay %s by %s: %w", addr, kind, err)
	}
	switch kind {
	case "udp":
		udp := conn.(*net.UDPConn)
		c.port = relayAddrPort(udp.LocalAddr()).Port()
		_ = udp.SetReadBuffer(relaySocketBuffer) // less is only slower
		_ = udp.SetWriteBuffer(relaySocketBuffer)
		return udp, nil
	case "tls":
		host, _, _ := net.SplitHostPort(addr)
		config, err := relayClientTLS(host, c.cfg.Fingerprint)
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("connect to relay %s by %s: %w", addr, kind, err), conn.Close())
		}
		conn = secured
	}
	return newRelayStream(conn), nil
}

// connectTo connects by UDP from the same port as before if it is free.
func (c *RelayClient) connectTo(ctx context.Context, network, addr string) (net.Conn, error) {
	if network == "udp" && c.port != 0 {
		dialer := net.Dialer{LocalAddr: &net.UDPAddr{Port: int(c.port)}}
		if conn, err := dialer.DialContext(ctx, network, addr); err == nil {
			return conn, nil
		}
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, addr)
}

// relayStream is a connection over TCP. Writes are queued.
type relayStream struct {
	net.Conn
	reader *bufio.Reader
	queue  chan *[]byte
	pool   sync.Pool
	done   chan struct{}
	ended  chan struct{}
	once   sync.Once
}

func newRelayStream(conn net.Conn) *relayStream {
	s := &relayStream{
		Conn: conn, reader: bufio.NewReaderSize(conn, 64<<10), queue: make(chan *[]byte, relayQueue),
		done: make(chan struct{}), ended: make(chan struct{}),
	}
	s.pool.New = func() any {
		b := make([]byte, 0, relayPool)
		return &b
	}
	go s.send()
	return s
}

// Read reads one message.
func (s *relayStream) Read(p []byte) (int, error) { return readTURNFrame(s.reader, p) }

// Write queues one message, and fails if the queue is full.
func (s *relayStream) Write(p []byte) (int, error) {
	if len(p) > relayFrame {
		return 0, errTURNLong
	}
	b := s.pool.Get().(*[]byte)
	*b = append((*b)[:0], p...)
	for len(*b)%channelPadding != 0 {
		*b = append(*b, 0)
	}
	select {
	case s.queue <- b:
		return len(p), nil
	default:
		s.pool.Put(b)
		return 0, errRelayBusy
	}
}

// send writes what is queued, as much at once as there is.
func (s *relayStream) send() {
	defer close(s.ended)
	w := bufio.NewWriterSize(s.Conn, 64<<10)
	for {
		select {
		case <-s.done:
			return
		case b := <-s.queue:
			_ = s.SetWriteDeadline(time.Now().Add(relayWriteTime))
			_, err := w.Write(*b)
			s.pool.Put(b)
			if err == nil && len(s.queue) == 0 {
				err = w.Flush()
			}
			if err != nil { // the reader sees the end, too
				_ = s.Conn.Close()
				<-s.done
				return
			}
		}
	}
}

// Close sends nothing that still waits.
func (s *relayStream) Close() error {
	s.once.Do(func() { close(s.done) })
	err := s.Conn.Close()
	<-s.ended
	return err
}

// relayAddrOf returns a transport's other end.
func relayAddrOf(t relayTransport) netip.AddrPort { return relayAddrPort(t.RemoteAddr()) }
