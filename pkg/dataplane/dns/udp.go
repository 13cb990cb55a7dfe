package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"time"
)

const (
	// packetSize is more than questions have; what is larger is cut, and malformed.
	packetSize = 4096
	// udpReaders is how many goroutines a socket has at most.
	udpReaders = 4
	// socketFaults is how many errors in a row end a socket.
	socketFaults = 10
)

// serveUDP binds and starts the goroutines that serve, which end when opened.conn is closed.
func (s *Server) serveUDP(ctx context.Context, addr netip.AddrPort, opened *socket) error {
	conn, err := net.ListenUDP(endpoint{addr, udp}.network(), net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	opened.conn = conn
	readers := min(udpReaders, runtime.GOMAXPROCS(0))
	if opened.index != 0 { // of a link: there are many, with few clients each
		readers = 1
	}
	for i := range readers {
		opened.served.Go(func() {
			if err := s.readUDP(ctx, conn, opened, &s.counters[i%len(s.counters)]); !errors.Is(err, net.ErrClosed) {
				s.config.Log.Warn("reading questions failed, will listen anew", "addr", addr, "err", err)
				opened.broken.Store(true)
			}
		})
	}
	return nil
}

// readUDP answers what comes in. One of several goroutines of a socket.
func (s *Server) readUDP(ctx context.Context, conn *net.UDPConn, opened *socket, count *counters) error {
	in, use := make([]byte, packetSize), new(scratch)
	for faults := 0; ; {
		n, from, err := conn.ReadFromUDPAddrPort(in)
		if err != nil {
			if faults++; faults >= socketFaults || errors.Is(err, net.ErrClosed) {
				return err
			}
			continue
		}
		faults = 0
		a := arrival{packet: in[:n], proto: udp, client: clientOf(from.Addr()), at: time.Now(), count: count}
		if !s.serves(a.client, opened, a.at, count) {
			continue
		}
		// A client that cannot be sent to is not there any more.
		send := func(reply []byte) { _, _ = conn.WriteToUDPAddrPort(reply, from) }
		switch reply, others := s.answer(a, use); {
		case others != nil:
			s.forward(ctx, others, &opened.served, send)
		case reply != nil:
			send(reply)
		}
	}
}
