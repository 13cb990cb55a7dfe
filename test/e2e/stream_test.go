//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// streamInterval is how often a stream sends: often enough to see short gaps.
const streamInterval = 10 * time.Millisecond

// stream sends numbered records to a server of ours and reads them back, for as
// long as the test wants.
type stream struct {
	name, network string
	conn          net.Conn

	mu       sync.Mutex // guards what follows
	sent     uint64
	answered uint64
	last     time.Time // of the last answer
	gap      time.Duration
	gapAt    time.Time
	broken   error
	closing  bool
}

// recordLen is the length of a record: the marker and its number.
const recordLen = len(marker) + 8

// startStreams opens a TCP and a UDP stream on both families between every pair
// and runs them until the test ends.
func startStreams(t *testing.T, from, to *pod) []*stream {
	t.Helper()
	var streams []*stream
	for _, ipv6 := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			s := &stream{name: fmt.Sprintf("%s %s > %s %s", network, from.name, to.name, family(ipv6)), network: network, last: time.Now()}
			target := netip.AddrPortFrom(to.addr(ipv6), podPort).String()
			eventually(t, "start stream "+s.name, func(ctx context.Context) (err error) {
				s.conn, err = from.dial(ctx, network, target)
				return err
			})
			t.Cleanup(func() { _ = s.conn.Close() })
			go s.send(t.Context())
			go s.receive()
			streams = append(streams, s)
		}
	}
	return streams
}

func (s *stream) send(ctx context.Context) {
	tick := time.NewTicker(streamInterval)
	defer tick.Stop()
	for {
		s.mu.Lock()
		number, closing := s.sent, s.closing
		s.sent++
		s.mu.Unlock()
		if closing {
			return
		}
		_, err := s.conn.Write(binary.BigEndian.AppendUint64([]byte(marker), number))
		if err != nil && s.network == "tcp" {
			s.breaks(err)
			return
		}
		// A UDP packet that could not be sent is a lost one.
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *stream) receive() {
	if s.network == "udp" {
		s.receivePackets()
		return
	}
	reader := bufio.NewReader(s.conn)
	if _, err := reader.ReadString('\n'); err != nil { // the greeting
		s.breaks(err)
		return
	}
	record := make([]byte, recordLen)
	for {
		if _, err := io.ReadFull(reader, record); err != nil {
			s.breaks(err)
			return
		}
		if number, ok := numberOf(record); !ok || number != s.answers() {
			s.breaks(fmt.Errorf("record %d came back as %d", s.answers(), number))
			return
		}
		s.answer()
	}
}

func (s *stream) receivePackets() {
	packet := make([]byte, 1024)
	for {
		n, err := s.conn.Read(packet)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error: the packet counts as lost
		}
		if _, ok := numberOf(packet[max(0, n-recordLen):n]); ok {
			s.answer()
		}
	}
}

func numberOf(record []byte) (uint64, bool) {
	if len(record) != recordLen || !bytes.HasPrefix(record, []byte(marker)) {
		return 0, false
	}
	return binary.BigEndian.Uint64(record[len(marker):]), true
}

func (s *stream) answers() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answered
}

func (s *stream) answer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if gap := now.Sub(s.last); gap > s.gap {
		s.gap, s.gapAt = gap, now
	}
	s.last = now
	s.answered++
}

func (s *stream) breaks(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing && s.broken == nil {
		s.broken = err
	}
}

// streamReport is what became of a stream.
type streamReport struct {
	Sent, Lost uint64
	// Gap is the longest time without an answer.
	Gap time.Duration
}

// finish waits until the stream flows, ends it and reports. A TCP stream that
// broke is an error.
func (s *stream) finish(t *testing.T) streamReport {
	t.Helper()
	from := s.answers()
	eventually(t, "stream "+s.name+" flows again", func(context.Context) error {
		const many = 20
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.broken == nil && s.answered < from+many {
			return fmt.Errorf("%d answers since", s.answered-from)
		}
		return nil
	})
	s.mu.Lock()
	s.closing = true
	broken, sent := s.broken, s.sent
	s.mu.Unlock()
	if broken != nil {
		t.Errorf("stream %s broke: %v", s.name, broken)
	}
	// The last answers may be on their way.
	_ = poll(t.Context(), time.Second, func(context.Context) error {
		if s.answers() < sent {
			return errors.New("still waiting")
		}
		return nil
	})
	_ = s.conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	report := streamReport{Sent: sent, Lost: sent - min(s.answered, sent), Gap: s.gap}
	t.Logf("%-60s %6d sent, %5d lost, longest silence %v (until %s)", s.name, report.Sent, report.Lost,
		report.Gap.Round(time.Millisecond), s.gapAt.Format(time.TimeOnly))
	return report
}
