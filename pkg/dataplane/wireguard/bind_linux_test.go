package wireguard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// scriptedReceiver returns as many packets as the script says at a time, each
// of which holds its number, or an error.
type scriptedReceiver struct {
	script []any
	sent   uint32
}

func (s *scriptedReceiver) receive(bufs [][]byte, sizes []int, endpoints []conn.Endpoint, _ []netip.Addr) (int, error) {
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

// STUN messages among the others are handed over, wherever in a batch they are,
// and then neither wireguard-go nor the gate sees anything of them.
func TestReceiverSiftsSTUN(t *testing.T) {
	from := netip.MustParseAddrPort("192.0.2.1:3478")
	var given uint32
	b := &bind{out: newGate(markOut, 1000), in: newGate(markIn, 1000), log: slog.New(slog.DiscardHandler), stop: make(chan struct{})}
	b.onSTUN = func(here netip.Addr, source netip.AddrPort, packet []byte) {
		if !isSTUN(packet) || source != from || here.As4()[3] != byte(given) || binary.BigEndian.Uint32(packet[8:]) != given {
			t.Errorf("was given %x from %v as number %d", packet, source, given)
		}
		given++
	}
	read := uint32(0)
	r := newReceiver(func(bufs [][]byte, sizes []int, endpoints []conn.Endpoint, at []netip.Addr) (int, error) {
		for i := range bufs {
			packet := []byte{4, 0, 0, 0, 'd', 'a', 't', 'a'}
			if i%3 == 0 {
				packet, at[i] = stunMessage(read, 8), netip.AddrFrom4([4]byte{192, 0, 2, byte(read)})
				read++
			}
			sizes[i] = copy(bufs[i], packet)
			endpoints[i] = &conn.StdNetEndpoint{AddrPort: netip.AddrPortFrom(netip.MustParseAddr("::ffff:192.0.2.1"), 3478)}
		}
		return len(bufs), nil
	}, b)
	bufs, sizes, endpoints := buffers(batchSize), make([]int, batchSize), make([]conn.Endpoint, batchSize)
	data := 0
	for range 2 * conn.IdealBatchSize / batchSize {
		n, err := r.receive(bufs, sizes, endpoints)
		if err != nil {
			t.Fatal(err)
		}
		for i, size := range sizes[:n] {
			if size > 0 && bufs[i][0] == 4 {
				data++
			} else if size > 0 {
				t.Errorf("wireguard-go is given %x", bufs[i][:size])
			}
		}
		bufs = buffers(batchSize) // wireguard-go keeps what it takes
	}
	if want := 2*conn.IdealBatchSize - int(read); data != want || given != read {
		t.Errorf("%d packets of data, %d STUN messages, want %d and %d", data, given, want, read)
	}
	if inside := b.in.inside.Load(); inside != int64(data) {
		t.Errorf("%d packets count as inside, want %d", inside, data)
	}
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

// What goes to IPv6 after something went to IPv4 goes where it shall.
func TestBindSendsByBothFamilies(t *testing.T) {
	fabric := netlab.TestFabric(t, "fabric")
	a, b := newTestNode(t, fabric, Userspace, 1), newTestNode(t, fabric, Userspace, 2)
	bind := bindIn(t, a.ns)
	for round := range 3 { // the sockets are others each time
		if _, _, err := bind.Open(0); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			for _, addr := range b.underlays() {
				server := listenIn(t, b.ns, netip.AddrPortFrom(addr, uint16(1000+i)))
				endpoint, err := bind.ParseEndpoint(server.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				if err := bind.Send([][]byte{[]byte("a packet")}, endpoint); err != nil {
					t.Fatal(err)
				}
				if err := server.SetReadDeadline(time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				if _, _, err := server.ReadFromUDPAddrPort(make([]byte, 100)); err != nil {
					t.Fatalf("round %d, packet %d: %v", round, i, err)
				}
				_ = server.Close()
			}
		}
		if err := bind.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A peer is sent to from the address that it sent to, as long as this node has it.
func TestBindSendsFromWhereItWasReached(t *testing.T) {
	fabric := netlab.TestFabric(t, "fabric")
	a, b := newTestNode(t, fabric, Userspace, 1), newTestNode(t, fabric, Userspace, 2)
	a.ip(t, "address", "add", "192.0.2.101/24", "dev", "eth0")
	a.ip(t, "address", "add", "2001:db8::101/64", "dev", "eth0", "nodad")
	bind := bindIn(t, a.ns)
	if _, _, err := bind.Open(0); err != nil {
		t.Fatal(err)
	}
	reader, err := newPacketReader(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	for fam, reached := range []string{"192.0.2.101", "2001:db8::101"} {
		server := listenIn(t, b.ns, netip.AddrPortFrom(b.underlays()[fam], 1000))
		endpoint := reader.endpoint(plainAddrPort(server.LocalAddr().(*net.UDPAddr).AddrPort()), sourceControl(netip.MustParseAddr(reached)))
		for _, want := range []string{reached, a.underlays()[fam].String()} {
			if err := bind.Send([][]byte{[]byte("a packet")}, endpoint); err != nil {
				t.Fatal(err)
			}
			if _, from := readFrom(t, server); from.Addr().String() != want {
				t.Errorf("came from %v, want %s", from, want)
			}
			if want == reached {
				a.ip(t, "address", "del", reached+map[int]string{0: "/24", 1: "/64"}[fam], "dev", "eth0")
			}
		}
	}
	if err := bind.Close(); err != nil {
		t.Error(err)
	}
}

// bindIn returns a bind whose sockets are in ns.
func bindIn(t *testing.T, ns *netlab.NS) *bind {
	t.Helper()
	return newBind(Config{Log: slog.New(slog.DiscardHandler)}, namespaceOf(t, ns), newGate(markOut, 1000), newGate(markIn, 1000))
}

func namespaceOf(t *testing.T, ns *netlab.NS) (space *namespace) {
	t.Helper()
	if err := ns.Do(func() (err error) { space, err = currentNamespace(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = space.close() })
	return space
}

func listenIn(t *testing.T, ns *netlab.NS, at netip.AddrPort) (conn *net.UDPConn) {
	t.Helper()
	err := ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
