package wireguard

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// siftPause is the wait after a failed receive.
const siftPause = 10 * time.Millisecond

// siftBind is wireguard-go's own sockets, out of which STUN messages are sifted.
// It does not know to which of this node's addresses a packet came, and can choose
// none to send from.
//
// A receive that fails is tried again, and only the end of the sockets ends it:
// Windows reports ICMP's "port unreachable" there, which an answer to any peer may
// be, and wireguard-go would receive nothing more after a few.
type siftBind struct {
	conn.Bind
	onSTUN func(at netip.Addr, from netip.AddrPort, packet []byte) // may be nil
	log    *slog.Logger

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
		b.log.Debug("receive from underlay", "err", err)
		select {
		case <-stop:
			return 0, net.ErrClosed
		case <-time.After(siftPause):
		}
	}
}

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
