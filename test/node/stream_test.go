//go:build linux

package node

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// stream is a flow of small UDP packets from one sandbox to another and back.
type stream struct {
	client net.Conn
	server net.PacketConn
	done   sync.WaitGroup
	stop   context.CancelFunc

	sent, echoed atomic.Int64
	size         int          // of a packet's payload, in bytes
	longest      atomic.Int64 // nanoseconds between two packets that came back
}

const streamPort = 7007

// startStream sends a packet every few milliseconds until the test ends.
func startStream(t *testing.T, from *netlab.NS, to *netlab.NS, addr netip.Addr) *stream {
	t.Helper()
	const smallest = 8
	return startSizedStream(t, from, to, addr, smallest)
}

// startSizedStream sends packets with a payload of size bytes, eight at least.
func startSizedStream(t *testing.T, from *netlab.NS, to *netlab.NS, addr netip.Addr, size int) *stream {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	s := &stream{stop: stop, size: size}
	target := netip.AddrPortFrom(addr, streamPort).String()
	var config net.ListenConfig
	var dialer net.Dialer
	err := to.Do(func() (err error) {
		s.server, err = config.ListenPacket(ctx, "udp", target)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = from.Do(func() (err error) {
		s.client, err = dialer.DialContext(ctx, "udp", target)
		return err
	})
	if err != nil {
		t.Fatal(errors.Join(err, s.server.Close()))
	}
	s.done.Go(s.echo)
	s.done.Go(s.count)
	s.done.Go(func() { s.send(ctx) })
	t.Cleanup(s.close)
	return s
}

func (s *stream) close() {
	s.stop()
	_ = s.client.Close()
	_ = s.server.Close()
	s.done.Wait()
}

func (s *stream) send(ctx context.Context) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			packet := make([]byte, s.size)
			binary.BigEndian.PutUint64(packet, uint64(s.sent.Add(1)))
			_, _ = s.client.Write(packet) // a refusal is a lost packet
		}
	}
}

func (s *stream) echo() {
	packet := make([]byte, s.size)
	for {
		n, from, err := s.server.ReadFrom(packet)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = s.server.WriteTo(packet[:n], from)
		}
	}
}

func (s *stream) count() {
	packet := make([]byte, s.size)
	last := time.Now()
	for {
		_, err := s.client.Read(packet)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.echoed.Add(1)
			s.longest.Store(max(s.longest.Load(), int64(time.Since(last))))
			last = time.Now()
		}
	}
}

// flows waits until packets sent from now on come back.
func (s *stream) flows(r *rig) {
	r.t.Helper()
	const enough = 20
	before := s.echoed.Load()
	r.eventually("packets come back", func() error {
		if s.echoed.Load() < before+enough {
			return errors.New("none does")
		}
		return nil
	})
}

// stops does something that ends a stream, and returns how long packets still came
// back.
func (r *rig) stops(s *stream, end func()) time.Duration {
	r.t.Helper()
	const silence = 500 * time.Millisecond // many times what a packet takes
	end()
	ended := time.Now()
	seen, last := s.echoed.Load(), ended
	r.eventually("the stream stops", func() error {
		if now := s.echoed.Load(); now != seen {
			seen, last = now, time.Now()
		}
		if time.Since(last) < silence {
			return errors.New("packets still come back")
		}
		return nil
	})
	return last.Sub(ended)
}
