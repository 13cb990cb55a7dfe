package dns

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// serveTestStream serves the other end of a connection in memory until the test ends.
func serveTestStream(t *testing.T, s *Server, client string) (net.Conn, chan time.Time) {
	t.Helper()
	conn, ours := net.Pipe()
	return conn, serveTestConn(t, s, client, ours, conn)
}

// serveTestConn serves ours until the test ends, whose other end is conn.
func serveTestConn(t *testing.T, s *Server, client string, ours, conn net.Conn) chan time.Time {
	t.Helper()
	st := &stream{conn: ours, client: netip.MustParseAddr(client)}
	if !s.streams.admit(st, time.Now()) {
		t.Fatal("not admitted")
	}
	ended := make(chan time.Time, 1)
	go func() {
		defer close(ended)
		defer s.streams.remove(st)
		s.serveStream(t.Context(), st, &s.counters[0])
		ended <- time.Now()
	}()
	t.Cleanup(func() { _ = conn.Close(); <-ended })
	return ended
}

// questionsOf is how many questions of all streams are not answered.
func questionsOf(s *Server) (working int) {
	s.streams.mu.Lock()
	defer s.streams.mu.Unlock()
	for st := range s.streams.all {
		working += st.working
	}
	return working
}

// nextAnswer reads an answer by TCP.
func nextAnswer(t *testing.T, conn io.Reader) *dns.Msg {
	t.Helper()
	var length uint16
	if err := binary.Read(conn, binary.BigEndian, &length); err != nil {
		t.Fatal(err)
	}
	packet := make([]byte, length)
	if _, err := io.ReadFull(conn, packet); err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(packet); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSlowStreamsEnd(t *testing.T) {
	packet := framed(wire(t, question("web.overlay.local.", dns.TypeA)))
	tests := []struct {
		name string
		do   func(t *testing.T, conn net.Conn)
		want time.Duration
	}{
		{"silent", func(*testing.T, net.Conn) {}, tcpIdle},
		{"silent after an answer", func(t *testing.T, conn net.Conn) {
			time.Sleep(7 * time.Second)
			_, _ = conn.Write(packet)
			nextAnswer(t, conn)
		}, 7*time.Second + tcpIdle},
		{"half a length", func(_ *testing.T, conn net.Conn) { _, _ = conn.Write(packet[:1]) }, tcpMessage},
		{"half a message", func(_ *testing.T, conn net.Conn) { _, _ = conn.Write(packet[:20]) }, tcpMessage},
		{"a byte a second", func(_ *testing.T, conn net.Conn) {
			for _, b := range packet {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, tcpMessage},
		{"takes no answer", func(_ *testing.T, conn net.Conn) { _, _ = conn.Write(packet) }, tcpMessage},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTestServer(ServerConfig{}, testZone())
				start := time.Now()
				conn, ended := serveTestStream(t, s, "10.0.0.1")
				test.do(t, conn)
				took := (<-ended).Sub(start)
				<-ended // closed
				if took != test.want {
					t.Errorf("ended after %v, want %v", took, test.want)
				}
				if len(s.streams.all) != 0 {
					t.Error("the stream is still known")
				}
			})
		})
	}
}

// TestPipelining sends several questions at once, the first of which takes longest.
func TestPipelining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(ctx context.Context, question *dns.Msg) *dns.Msg {
			time.Sleep(time.Second)
			return answerElsewhere(ctx, question)
		}
		s := newTestServer(ServerConfig{Forward: exchangerFunc(slow)}, testZone())
		conn, ended := serveTestStream(t, s, "10.0.0.1")
		var all []byte
		for i, name := range []string{"example.com.", "web.overlay.local.", "crowd.overlay.local.", "example.net."} {
			m := question(name, dns.TypeA)
			m.Id = uint16(i)
			all = append(all, framed(wire(t, m))...)
		}
		go func() { _, _ = conn.Write(all) }()
		start := time.Now()
		for i, want := range []uint16{1, 2} {
			if got := nextAnswer(t, conn); got.Id != want || time.Since(start) != 0 {
				t.Errorf("answer %d is to question %d after %v", i, got.Id, time.Since(start))
			}
		}
		got := map[uint16]bool{nextAnswer(t, conn).Id: true, nextAnswer(t, conn).Id: true}
		if !got[0] || !got[3] || time.Since(start) != time.Second {
			t.Errorf("answers %v after %v", got, time.Since(start))
		}
		_ = conn.Close()
		<-ended
	})
}

// endsAfter is a connection whose other side sends so many bytes and then no more.
type endsAfter struct {
	net.Conn
	left int
}

func (c *endsAfter) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// TestClientsMayCloseTheirSide has one do so before others have answered.
func TestClientsMayCloseTheirSide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(ctx context.Context, question *dns.Msg) *dns.Msg {
			time.Sleep(time.Second)
			return answerElsewhere(ctx, question)
		}
		s := newTestServer(ServerConfig{Forward: exchangerFunc(slow)}, testZone())
		conn, ours := net.Pipe()
		packet := framed(wire(t, question("example.com.", dns.TypeA)))
		serveTestConn(t, s, "10.0.0.1", &endsAfter{ours, len(packet)}, conn)
		_, _ = conn.Write(packet)
		if got := nextAnswer(t, conn); len(got.Answer) != 1 {
			t.Errorf("got %v", got)
		}
	})
}

// TestStreamsAreBusy follows a question from its first byte to the answer.
func TestStreamsAreBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(ctx context.Context, question *dns.Msg) *dns.Msg {
			time.Sleep(time.Second)
			return answerElsewhere(ctx, question)
		}
		s := newTestServer(ServerConfig{Forward: exchangerFunc(slow)}, testZone())
		conn, _ := serveTestStream(t, s, "10.0.0.1")
		expect := func(when string, want int) {
			t.Helper()
			if synctest.Wait(); questionsOf(s) != want {
				t.Errorf("%s: %d questions, want %d", when, questionsOf(s), want)
			}
		}
		expect("nothing sent", 0)
		packet := framed(wire(t, question("example.com.", dns.TypeA)))
		_, _ = conn.Write(packet[:1])
		expect("a byte sent", 1)
		_, _ = conn.Write(packet[1:])
		expect("others are asked", 1)
		_, _ = conn.Write(packet[:5])
		expect("and half of the next one sent", 2)
		nextAnswer(t, conn)
		expect("the first one answered", 1)
		_, _ = conn.Write(packet[5:])
		nextAnswer(t, conn)
		expect("all answered", 0)
	})
}

// TestRateByTCP sends three times what a client may ask at once: all is answered,
// but not before its time, and what waits is left with the client.
func TestRateByTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 100
		s := newTestServer(ServerConfig{RateLimit: rate}, testZone())
		conn, _ := serveTestStream(t, s, "10.0.0.1")
		packet := framed(wire(t, question("web.overlay.local.", dns.TypeA)))
		var written atomic.Int64
		go func() {
			for range 3 * rate {
				if n, err := conn.Write(packet); err != nil || n < len(packet) {
					return
				}
				written.Add(1)
			}
		}()
		start := time.Now()
		for range rate {
			nextAnswer(t, conn)
		}
		synctest.Wait()
		if got, most := written.Load(), int64(rate+1+tcpBuffer/len(packet)); time.Since(start) > 0 || got > most {
			t.Errorf("%d questions were read in %v, want %d at most at once", got, time.Since(start), most)
		}
		for range 2 * rate {
			nextAnswer(t, conn)
		}
		if took := time.Since(start).Round(time.Second); took != 2*time.Second {
			t.Errorf("%d questions in %v at %d a second", 3*rate, time.Since(start), rate)
		}
		if dropped := s.Stats().Dropped["rate"]; dropped != 0 {
			t.Errorf("%d were dropped", dropped)
		}
	})
}

// TestMuchMoreThanTheRateByTCP has more streams ask than get a turn in time: the
// others are closed.
func TestMuchMoreThanTheRateByTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(ServerConfig{RateLimit: 1}, testZone())
		packet := framed(wire(t, question("web.overlay.local.", dns.TypeA)))
		var answered atomic.Int64
		var asking sync.WaitGroup
		start := time.Now()
		for range streamsEach {
			conn, _ := serveTestStream(t, s, "10.0.0.1")
			asking.Go(func() {
				_, _ = conn.Write(packet)
				if _, err := conn.Read(make([]byte, 1)); err == nil {
					answered.Add(1)
				}
				_ = conn.Close()
			})
		}
		asking.Wait()
		got, dropped := answered.Load(), s.Stats().Dropped["rate"]
		if got < 5 || got > 7 || got+int64(dropped) != streamsEach || time.Since(start) > tcpMessage+time.Second {
			t.Errorf("%d were answered and %d dropped after %v", got, dropped, time.Since(start))
		}
	})
}

// TestMessagesShareTheirMemory has a client send large messages one after the other.
func TestMessagesShareTheirMemory(t *testing.T) {
	client, server := net.Pipe()
	t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	st := &stream{conn: server}
	in := bufio.NewReader(bytes.NewReader(bytes.Repeat(framed(make([]byte, 30_000)), 11)))
	read := func() {
		if err := st.readMessage(in); err != nil || len(st.message) != 30_000 {
			t.Fatalf("read %d bytes: %v", len(st.message), err)
		}
	}
	read()
	first := &st.message[0]
	for range 10 {
		if read(); &st.message[0] != first {
			t.Fatal("a message has memory of its own")
		}
	}
}

func TestLargestMessageByTCP(t *testing.T) {
	s := newTestServer(ServerConfig{}, testZone())
	conn, _ := serveTestStream(t, s, "10.0.0.1")
	large := ednsQuestion(question("web.overlay.local.", dns.TypeA), 1232, false)
	padding := &dns.EDNS0_PADDING{}
	padding.Padding = make([]byte, maxTCP-large.Len()-4)
	large.IsEdns0().Option = append(large.IsEdns0().Option, padding)
	packet := wire(t, large)
	if len(packet) != maxTCP {
		t.Fatalf("a message of %d bytes", len(packet))
	}
	garbage := bytes.Repeat([]byte{0x40}, maxTCP)
	copy(garbage, []byte{1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	go func() { _, _ = conn.Write(append(framed(packet), framed(garbage)...)) }()
	if got := nextAnswer(t, conn); len(got.Answer) != 2 {
		t.Errorf("got %v", got)
	}
	if got := nextAnswer(t, conn); got.Rcode != dns.RcodeFormatError || got.Id != 0x102 {
		t.Errorf("got %v", got)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	now := time.Now()
	s := newStreams()
	open := func(client string, age time.Duration) (*stream, bool) {
		conn, other := net.Pipe()
		t.Cleanup(func() { _, _ = conn.Close(), other.Close() })
		st := &stream{conn: conn, client: netip.MustParseAddr(client)}
		return st, s.admit(st, now.Add(-age))
	}
	closed := func(st *stream) bool {
		return errors.Is(st.conn.SetDeadline(time.Time{}), io.ErrClosedPipe)
	}
	var mine []*stream
	for i := range streamsEach {
		st, ok := open("10.0.0.1", time.Duration(i)*time.Second)
		if !ok {
			t.Fatalf("stream %d is not admitted", i)
		}
		mine = append(mine, st)
	}
	older, _ := open("10.0.0.2", time.Hour)

	s.busy(mine[streamsEach-1])
	if _, ok := open("10.0.0.1", 0); !ok || !closed(mine[streamsEach-2]) || closed(mine[streamsEach-1]) || closed(older) {
		t.Error("a client's 17th is to take the place of its own that is idle for longest")
	}
	for _, st := range mine {
		s.busy(st)
	}
	newest := 0
	for st := range s.all {
		if st.client == mine[0].client && st.working == 0 {
			s.busy(st)
			newest++
		}
	}
	if _, ok := open("10.0.0.1", 0); ok || newest != 1 {
		t.Error("a client's 17th is admitted though all are busy")
	}
	for i := 0; len(s.all) < maxStreams; i++ {
		if _, ok := open(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String(), time.Second); !ok {
			t.Fatalf("stream %d is not admitted", len(s.all))
		}
	}
	if _, ok := open("10.0.0.3", 0); !ok || !closed(older) || len(s.all) != maxStreams {
		t.Error("the one above all places is to take that of the one that is idle for longest")
	}
}
