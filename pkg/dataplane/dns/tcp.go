package dns

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// tcpIdle is how long a connection may be silent.
	tcpIdle = 10 * time.Second
	// tcpMessage is how long a message may take, either way.
	tcpMessage = 5 * time.Second
	// tcpBuffer is what a connection reads at once.
	tcpBuffer = 1024
	// acceptPause is how long no connection is taken after an error.
	acceptPause = 100 * time.Millisecond
	// ratePause is how long a client waits until it is looked at whether it may ask again.
	ratePause = 20 * time.Millisecond
	// lengthSize is of the length before each message.
	lengthSize = 2
)

// serveTCP binds and starts the goroutines that serve, which end when opened.conn is closed.
func (s *Server) serveTCP(ctx context.Context, addr netip.AddrPort, opened *socket) error {
	listener, err := net.ListenTCP(endpoint{addr, tcp}.network(), net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	opened.conn = listener
	opened.served.Go(func() {
		if err := s.accept(ctx, listener, opened); !errors.Is(err, net.ErrClosed) {
			s.config.Log.Warn("accepting connections failed, will listen anew", "addr", addr, "err", err)
			opened.broken.Store(true)
		}
		s.streams.closeOf(opened)
	})
	return nil
}

// accept takes connections. A lack of files or memory may pass: it ends only if
// the errors do not.
func (s *Server) accept(ctx context.Context, listener *net.TCPListener, opened *socket) error {
	count := &s.counters[0]
	for faults := 0; ; {
		conn, err := listener.AcceptTCP()
		if err != nil {
			if faults++; faults >= socketFaults || errors.Is(err, net.ErrClosed) {
				return err
			}
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		faults = 0
		st := &stream{conn: conn, of: opened, client: clientOf(conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())}
		switch {
		case !s.serves(st.client, opened, time.Now(), count): // a connection costs as much as a question
		case !s.streams.admit(st, time.Now()):
			count.drop(dropBusy)
		default:
			opened.served.Go(func() {
				defer s.streams.remove(st)
				s.serveStream(ctx, st, count)
			})
			continue
		}
		_ = conn.SetLinger(0) // no state is left of whom we do not serve
		_ = conn.Close()
	}
}

// serveStream answers one question after the other; those for others may be
// answered out of order (RFC 7766).
func (s *Server) serveStream(ctx context.Context, st *stream, count *counters) {
	var waiting sync.WaitGroup
	defer waiting.Wait() // a client may close its side before it has all answers
	in, use := bufio.NewReaderSize(st.conn, tcpBuffer), new(scratch)
	for {
		if s.awaitMessage(st, in) != nil {
			return
		}
		if !s.awaitTurn(ctx, st) {
			count.drop(dropRate)
			return
		}
		if st.readMessage(in) != nil {
			return
		}
		a := arrival{packet: st.message, proto: tcp, client: st.client, at: time.Now(), count: count}
		s.answerStream(ctx, st, a, use, &waiting)
		s.streams.done(st, time.Now())
	}
}

// awaitTurn waits until the client may ask. What it sends meanwhile is not read, so
// that it waits as well. It may not if that takes too long.
func (s *Server) awaitTurn(ctx context.Context, st *stream) bool {
	for late := time.Now().Add(tcpMessage); !s.limits.take(st.client, time.Now()); {
		select {
		case <-time.After(ratePause):
		case <-ctx.Done():
			return false
		}
		if time.Now().After(late) {
			return false
		}
	}
	return true
}

func (s *Server) answerStream(ctx context.Context, st *stream, a arrival, use *scratch, waiting *sync.WaitGroup) {
	switch reply, others := s.answer(a, use); {
	case others != nil:
		s.streams.busy(st)
		s.forward(ctx, others, waiting, func(reply []byte) {
			st.send(reply)
			s.streams.done(st, time.Now())
		})
	case reply != nil:
		st.send(reply)
	}
}

// awaitMessage waits for the first byte of a message, from which on the stream is busy.
func (s *Server) awaitMessage(st *stream, in *bufio.Reader) error {
	if err := st.conn.SetReadDeadline(time.Now().Add(tcpIdle)); err != nil {
		return err
	}
	if _, err := in.Peek(1); err != nil {
		return err
	}
	s.streams.busy(st)
	return nil
}

// stream is a connection.
type stream struct {
	conn   net.Conn
	of     *socket
	client netip.Addr
	// message is the one that was read last, in memory that the next one has as well.
	message []byte

	writing sync.Mutex // is held while an answer is written

	// What follows is guarded by the mutex of streams.
	working int       // questions without answer
	idle    time.Time // since when there is none
}

// readMessage reads a message.
func (st *stream) readMessage(in *bufio.Reader) error {
	if err := st.conn.SetReadDeadline(time.Now().Add(tcpMessage)); err != nil {
		return err
	}
	var length [lengthSize]byte
	if _, err := io.ReadFull(in, length[:]); err != nil {
		return err
	}
	size := int(binary.BigEndian.Uint16(length[:]))
	st.message = slices.Grow(st.message[:0], size)[:size]
	_, err := io.ReadFull(in, st.message)
	return err
}

// send writes an answer. A client that does not take it loses its connection.
func (st *stream) send(reply []byte) {
	st.writing.Lock()
	defer st.writing.Unlock()
	framed := append(binary.BigEndian.AppendUint16(make([]byte, 0, lengthSize+len(reply)), uint16(len(reply))), reply...)
	err := st.conn.SetWriteDeadline(time.Now().Add(tcpMessage))
	if err == nil {
		_, err = st.conn.Write(framed)
	}
	if err != nil {
		_ = st.conn.Close()
	}
}
