package wireguard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// scriptedReceiver returns as many packets as the script says at a time, each
// of which holds its number, or an error.
type scriptedReceiver struct {
	script []any
	sent   uint32
}

func (s *scriptedReceiver) receive(bufs [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
	step := s.script[0]
	s.script = s.script[1:]
	if err, failed := step.(error); failed {
		return 0, err
	}
	for i := range step.(int) {
		s.sent++
		binary.BigEndian.PutUint32(bufs[i], s.sent)
		sizes[i] = 4
		endpoints[i] = &conn.StdNetEndpoint{}
	}
	return step.(int), nil
}

// Every packet comes through once and in order, also those that are more than
// the caller has room for, and errors of the moment do not end it.
func TestReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		script := &scriptedReceiver{script: []any{1, 64, 128, unix.ENOBUFS, 65, fmt.Errorf("receive: %w", unix.ENOMEM), unix.EIO, 3, net.ErrClosed}}
		b := &bind{out: newGate(markOut, 1000), in: newGate(markIn, 1000), log: slog.New(slog.DiscardHandler), stop: make(chan struct{})}
		r := newReceiver(script.receive, b)
		var got, calls uint32
		for {
			bufs, sizes, endpoints := buffers(batchSize), make([]int, batchSize), make([]conn.Endpoint, batchSize)
			n, err := r.receive(bufs, sizes, endpoints)
			if errors.Is(err, net.ErrClosed) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			calls++
			for i := range n {
				got++
				if number := binary.BigEndian.Uint32(bufs[i]); number != got || sizes[i] != 4 || endpoints[i] == nil {
					t.Fatalf("packet %d, %d bytes from %v; want %d", number, sizes[i], endpoints[i], got)
				}
			}
		}
		if got != 1+64+128+65+3 || calls != 7 {
			t.Errorf("%d packets in %d calls", got, calls)
		}
		if inside := b.in.inside.Load(); inside != int64(got) {
			t.Errorf("%d packets count as inside, want %d", inside, got)
		}
	})
}

func TestReceiverEndsWithItsSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bind{out: newGate(markOut, 10), in: newGate(markIn, 1), log: slog.New(slog.DiscardHandler), stop: make(chan struct{})}
		b.in.enter(buffers(1), b.out)
		r := newReceiver((&scriptedReceiver{}).receive, b)
		done := make(chan error, 1)
		go func() {
			_, err := r.receive(buffers(batchSize), make([]int, batchSize), make([]conn.Endpoint, batchSize))
			done <- err
		}()
		synctest.Wait()
		close(b.stop)
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v", err)
		}
	})
}
