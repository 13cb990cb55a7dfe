package wireguard

import (
	"bytes"
	"cmp"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// heard is what OnSTUN was given.
type heard struct {
	at     netip.Addr
	from   netip.AddrPort
	packet []byte
}

// newSift opens a bind on wireguard-go's sockets, and returns what it hands over.
func newSift(t *testing.T, sockets conn.Bind) (*siftBind, conn.ReceiveFunc, uint16, <-chan heard) {
	t.Helper()
	stun := make(chan heard, 1)
	bind := newSiftBind(sockets, Config{Log: slog.New(slog.DiscardHandler), OnSTUN: func(at netip.Addr, from netip.AddrPort, packet []byte) {
		stun <- heard{at, from, bytes.Clone(packet)}
	}})
	fns, port, err := bind.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bind.Close(); err != nil {
			t.Error(err)
		}
	})
	return bind, fns[0], port, stun
}

func TestSiftBind(t *testing.T) {
	bind, receive, port, stun := newSift(t, conn.NewStdNetBind())
	outside, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = outside.Close() }()
	from := outside.LocalAddr().(*net.UDPAddr).AddrPort()
	for name, c := range map[string]struct {
		packet []byte
		stun   bool
	}{
		"STUN":      {packet: stunMessage(7, 8), stun: true},
		"WireGuard": {packet: append([]byte{4, 0, 0, 0}, make([]byte, 28)...)},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := outside.WriteToUDPAddrPort(c.packet, netip.AddrPortFrom(from.Addr(), port)); err != nil {
				t.Fatal(err)
			}
			bufs, sizes, eps := batch(bind.BatchSize())
			n, err := receive(bufs, sizes, eps)
			if err != nil || n != 1 {
				t.Fatalf("received %d packets: %v", n, err)
			}
			if !c.stun {
				if !bytes.Equal(bufs[0][:sizes[0]], c.packet) {
					t.Errorf("received %x, want %x", bufs[0][:sizes[0]], c.packet)
				}
				return
			}
			if sizes[0] != 0 {
				t.Errorf("wireguard-go gets %d bytes of it", sizes[0])
			}
			if got := <-stun; got.at.IsValid() || got.from != from || !bytes.Equal(got.packet, c.packet) {
				t.Errorf("handed over %x from %v to %v", got.packet, got.from, got.at)
			}
		})
	}
}

func TestSiftBindSends(t *testing.T) {
	bind, _, port, _ := newSift(t, conn.NewStdNetBind())
	outside, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = outside.Close() }()
	to := outside.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := bind.sendSTUN(stunMessage(7, 8), netip.Addr{}, to); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if err := outside.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	n, from, err := outside.ReadFromUDPAddrPort(buf)
	if err != nil || from.Port() != port || !bytes.Equal(buf[:n], stunMessage(7, 8)) {
		t.Errorf("received %x from %v: %v; want it from port %d", buf[:n], from, err, port)
	}
	if err := bind.sendSTUN(stunMessage(7, 8), to.Addr(), to); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("from an address of choice: %v", err)
	}
}

// failingBind fails to receive a few times, as Windows does after ICMP errors.
type failingBind struct {
	conn.Bind
	failures int
	err      error
}

func (b *failingBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func(_ [][]byte, sizes []int, _ []conn.Endpoint) (int, error) {
		if b.failures--; b.failures >= 0 {
			return 0, cmp.Or(b.err, errors.New("connection reset by peer"))
		}
		sizes[0] = 3
		return 1, nil
	}}, 1, nil
}

func (b *failingBind) Close() error { return nil }

func TestSiftBindReceivesOnAfterErrors(t *testing.T) {
	_, receive, _, _ := newSift(t, &failingBind{failures: 3})
	bufs, sizes, eps := batch(1)
	if n, err := receive(bufs, sizes, eps); n != 1 || sizes[0] != 3 || err != nil {
		t.Errorf("received %d packets: %v", n, err)
	}
}

// A receive that fails may be the last one, with nobody to notice; what another host
// has to do with does not count.
func TestSiftBindGoesDeaf(t *testing.T) {
	for _, c := range []struct {
		name     string
		err      error
		failures int
		deaf     bool
	}{
		{"few", syscall.Errno(10055), siftFailures - 1, false},
		{"too many", syscall.Errno(10055), siftFailures, true},
		{"of other hosts", wsaConnReset, siftFailures, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sockets := &failingBind{failures: c.failures, err: c.err}
				bind, receive, _, _ := newSift(t, sockets)
				bufs, sizes, eps := batch(1)
				if n, err := receive(bufs, sizes, eps); n != 1 || err != nil {
					t.Fatalf("received %d packets: %v", n, err)
				}
				if bind.deaf() != c.deaf {
					t.Errorf("deaf: %v, want %v", bind.deaf(), c.deaf)
				}
				if _, _, err := bind.Open(0); err != nil || bind.deaf() {
					t.Errorf("with new sockets: deaf %v, %v", bind.deaf(), err)
				}
			})
		})
	}
}

func TestSiftBindEndsWithItsSockets(t *testing.T) {
	const forever = 1 << 30
	bind, receive, _, _ := newSift(t, &failingBind{failures: forever})
	done := make(chan error)
	go func() {
		bufs, sizes, eps := batch(1)
		_, err := receive(bufs, sizes, eps)
		done <- err
	}()
	if err := bind.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("received after the end: %v", err)
	}
}

func batch(n int) (bufs [][]byte, sizes []int, eps []conn.Endpoint) {
	bufs = make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, bufferSize)
	}
	return bufs, make([]int, n), make([]conn.Endpoint, n)
}
