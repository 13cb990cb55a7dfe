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
}

const streamPort = 7007

// startStream sends a packet every few milliseconds until the test ends.
func startStream(t *testing.T, from *netlab.NS, to *netlab.NS, addr netip.Addr) *stream {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	s := &stream{stop: stop}
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
			packet := binary.BigEndian.AppendUint64(nil, uint64(s.sent.Add(1)))
			_, _ = s.client.Write(packet) // a refusal is a lost packet
		}
	}
}

func (s *stream) echo() {
	var packet [64]byte
	for {
		n, from, err := s.server.ReadFrom(packet[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = s.server.WriteTo(packet[:n], from)
		}
	}
}

func (s *stream) count() {
	var packet [64]byte
	for {
		_, err := s.client.Read(packet[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.echoed.Add(1)
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
