package wireguard

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// siftPause is the wait after a failed receive.
const siftPause = 10 * time.Millisecond

// siftFailures is after how many failed receives the sockets count as deaf. On
// Windows each may have cost one of the 1024 receives that wireguard-go has under
// way and that are never replaced; without any it would wait for ever.
const siftFailures = 512

// Errors of Windows that tell of another host and leave the sockets as they are,
// from winsock2.h: what ICMP messages make of the packets sent before.
const (
	wsaNetUnreachable  = syscall.Errno(10051)
	wsaNetReset        = syscall.Errno(10052)
	wsaConnReset       = syscall.Errno(10054)
	wsaHostUnreachable = syscall.Errno(10065)
)

// siftBind is wireguard-go's own sockets, out of which STUN messages are sifted.
// It does not know to which of this node's addresses a packet came, and can choose
// none to send from.
//
// A receive that fails is tried again, and only the end of the sockets ends it:
// Windows reports ICMP's "port unreachable" there, which an answer to any peer may
// be, and wireguard-go would receive nothing more after a few. What fails too often
// for other reasons makes it deaf; then both have to be made anew.
type siftBind struct {
	conn.Bind
	onSTUN   func(at netip.Addr, from netip.AddrPort, packet []byte) // may be nil
	log      *slog.Logger
	failures atomic.Int64 // of receives since Open

	mu   sync.Mutex    // guards stop
	stop chan struct{} // closed with the sockets; nil while they are closed
}

func newSiftBind(sockets conn.Bind, cfg Config) *siftBind {
	return &siftBind{Bind: sockets, onSTUN: cfg.OnSTUN, log: cfg.Log}
}

// Open opens the sockets.
func (b *siftBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := b.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	stop := make(chan struct{})
	b.failures.Store(0)
	b.mu.Lock()
	b.stop = stop
	b.mu.Unlock()
	for i, fn := range fns {
		fns[i] = func(bufs [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
			n, err := b.receive(fn, stop, bufs, sizes, from)
			b.sift(bufs[:n], sizes, from)
			return n, err
		}
	}
	return fns, actual, nil
}

// Close closes the sockets and ends the waits of their receivers.
func (b *siftBind) Close() error {
	b.mu.Lock()
	if b.stop != nil {
		close(b.stop)
		b.stop = nil
	}
	b.mu.Unlock()
	return b.Bind.Close()
}

// receive calls fn until it has packets or the sockets are closed.
func (b *siftBind) receive(fn conn.ReceiveFunc, stop <-chan struct{}, bufs [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
	for {
		n, err := fn(bufs, sizes, from)
		if err == nil {
			return n, nil
		}
		if errors.Is(err, net.ErrClosed) {
			return 0, err
		}
		b.tell(err)
		select {
		case <-stop:
			return 0, net.ErrClosed
		case <-time.After(siftPause):
		}
	}
}

// tell counts and logs an error of receiving.
func (b *siftBind) tell(err error) {
	for _, harmless := range []syscall.Errno{wsaNetUnreachable, wsaNetReset, wsaConnReset, wsaHostUnreachable} {
		if errors.Is(err, harmless) {
			b.log.Debug("receive from underlay", "err", err)
			return
		}
	}
	switch n := b.failures.Add(1); n {
	case 1:
		b.log.Warn("receive from underlay", "err", err)
	case siftFailures:
		b.log.Warn("receive from underlay fails too often", "err", err, "failures", n)
	default:
		b.log.Debug("receive from underlay", "err", err)
	}
}

// deaf tells whether receiving failed too often.
func (b *siftBind) deaf() bool { return b.failures.Load() >= siftFailures }

// sift hands over the STUN messages among bufs. They are empty then, which
// wireguard-go passes over as too short for a message.
func (b *siftBind) sift(bufs [][]byte, sizes []int, from []conn.Endpoint) {
	if b.onSTUN == nil {
		return
	}
	for i := range bufs {
		packet := bufs[i][:sizes[i]]
		if !isSTUN(packet) {
			continue
		}
		if sender, err := netip.ParseAddrPort(from[i].DstToString()); err == nil {
			b.onSTUN(netip.Addr{}, plainAddrPort(sender), packet)
		}
		sizes[i] = 0
	}
}

// sendSTUN sends a packet that is none of wireguard-go's, from the address that
// the routes choose.
func (b *siftBind) sendSTUN(packet []byte, from netip.Addr, to netip.AddrPort) error {
	if from.IsValid() {
		return fmt.Errorf("leave from %v: the socket cannot choose: %w", from, errors.ErrUnsupported)
	}
	endpoint, err := b.ParseEndpoint(to.String())
	if err != nil {
		return err
	}
	return b.Send([][]byte{packet}, endpoint)
}
