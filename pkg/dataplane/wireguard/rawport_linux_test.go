package wireguard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/bpf"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// ipv4Packet puts a header with some options before content.
func ipv4Packet(options int, content []byte) []byte {
	packet := make([]byte, 20+4*options, 20+4*options+len(content))
	packet[0] = byte(0x45 + options)
	packet[9] = 17
	return append(packet, content...)
}

// What the filters let through is what is to come, and nothing that is not for
// the port or has no cookie.
func TestSTUNFilter(t *testing.T) {
	good := newDatagram(40000, 51820, stunMessage(1, 8))
	for _, c := range []struct {
		name     string
		datagram []byte
		pass     bool
	}{
		{"STUN", good, true},
		{"STUN without attributes", newDatagram(1, 51820, stunMessage(1, 0)), true},
		{"to another port", newDatagram(40000, 51821, stunMessage(1, 8)), false},
		{"from the port", newDatagram(51820, 40000, stunMessage(1, 8)), false},
		{"WireGuard", newDatagram(40000, 51820, with(make([]byte, 148), 0, 1)), false},
		{"cut off in the cookie", good[:udpHeader+stunCookieAt+3], false},
		{"cut off in the UDP header", good[:3], false},
		{"nothing", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, packet := range map[string][]byte{"IPv4": ipv4Packet(0, c.datagram), "IPv4 with options": ipv4Packet(10, c.datagram)} {
				if passes(t, ipv4Filter(51820), packet) != c.pass {
					t.Errorf("%s: passes %v", name, !c.pass)
				}
			}
			if passes(t, ipv6Filter(51820), c.datagram) != c.pass {
				t.Errorf("IPv6: passes %v", !c.pass)
			}
		})
	}
}

func passes(t *testing.T, filter []bpf.Instruction, packet []byte) bool {
	t.Helper()
	vm, err := bpf.NewVM(filter)
	if err != nil {
		t.Fatal(err)
	}
	n, err := vm.Run(packet)
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

func TestParseSTUNDatagram(t *testing.T) {
	const port = 51820
	message := stunMessage(3, 12)
	good := newDatagram(40000, port, message)
	for name, datagram := range map[string][]byte{"as it is": good, "padded": append(bytes.Clone(good), 0, 0, 0)} {
		if from, packet, ok := parseSTUNDatagram(datagram, port); !ok || from != 40000 || !bytes.Equal(packet, message) {
			t.Errorf("%s: %d bytes from port %d, %v", name, len(packet), from, ok)
		}
	}
	for name, datagram := range map[string][]byte{
		"empty":             nil,
		"half a header":     good[:4],
		"another port":      newDatagram(40000, port+1, message),
		"from port 0":       newDatagram(0, port, message),
		"longer than it is": good[:len(good)-4],
		"shorter than UDP":  with(with(good, 5, 7), 4, 0),
		"shorter than STUN": with(good, 5, udpHeader+4),
		"WireGuard":         newDatagram(40000, port, with(make([]byte, 148), 0, 1)),
		"cut off":           newDatagram(40000, port, message[:len(message)-1]),
	} {
		if _, packet, ok := parseSTUNDatagram(datagram, port); ok {
			t.Errorf("%s gives %x", name, packet)
		}
	}
}

func FuzzParseSTUNDatagram(f *testing.F) {
	f.Add(newDatagram(40000, 51820, stunMessage(3, 12)))
	f.Add(newDatagram(40000, 51820, make([]byte, 148)))
	f.Add(newDatagram(40000, 51820, nil))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		from, packet, ok := parseSTUNDatagram(datagram, 51820)
		if ok && (from == 0 || !isSTUN(packet) || !bytes.HasPrefix(datagram[udpHeader:], packet)) {
			t.Fatalf("%x gives %x from port %d", datagram, packet, from)
		}
	})
}

// A receiver that adds up everything, checksum included, has to come to all ones.
func TestUDPChecksum(t *testing.T) {
	from, to := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("203.0.113.254")
	even, zero := newDatagram(51820, 3478, stunMessage(7, 8)), newDatagram(51820, 3478, stunMessage(7, 8))
	// With the checksum in its content, a datagram's own would be 0, which means that it has none.
	setChecksum(zero, from, to)
	copy(zero[len(zero)-2:], zero[udpChecksumAt:udpHeader])
	copy(zero[udpChecksumAt:], []byte{0, 0})
	for name, datagram := range map[string][]byte{
		"even": even, "odd": newDatagram(51820, 3478, stunMessage(7, 9)), "zero": zero,
		"large": newDatagram(51820, 3478, bytes.Repeat([]byte{0xff}, maxSTUN)),
	} {
		setChecksum(datagram, from, to)
		if sum := sumUDP(datagram, from, to); sum != 0xffff || binary.BigEndian.Uint16(datagram[udpChecksumAt:]) == 0 {
			t.Errorf("%s: sum %#x, checksum %x", name, sum, datagram[udpChecksumAt:udpHeader])
		}
	}
}

func sumUDP(datagram []byte, from, to netip.Addr) uint32 {
	sum := uint32(17 + len(datagram))
	for _, part := range [][]byte{from.AsSlice(), to.AsSlice(), append(bytes.Clone(datagram), 0)[:(len(datagram)+1)&^1]} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum
}

// Raw sockets share a port with the socket that has it, here one that stands for
// the kernel's WireGuard: both get STUN messages, and that one alone the rest.
func TestRawPortSTUN(t *testing.T) {
	checkLeaks(t)
	fabric := netlab.TestFabric(t, "fabric")
	a, b := newTestNode(t, fabric, Kernel, 1), newTestNode(t, fabric, Kernel, 2)
	inbox := &inbox{}
	raw := openRaw(t, a, inbox)
	for fam, here := range a.underlays() {
		at := netip.AddrPortFrom(here, a.port)
		socket, server := listenIn(t, a.ns, at), listenIn(t, b.ns, netip.AddrPortFrom(b.underlays()[fam], 3478))
		there := plainAddrPort(server.LocalAddr().(*net.UDPAddr).AddrPort())
		for i, size := range []int{0, 4, 1400, maxSTUN - stunHeader} { // the last in fragments
			request, answer := stunMessage(uint32(i), size), stunMessage(0x100|uint32(i), size)
			if err := raw.sendSTUN(request, netip.Addr{}, there); err != nil {
				t.Fatal(err)
			}
			if got, from := readFrom(t, server); !bytes.Equal(got, request) || from != at {
				t.Errorf("%d bytes came from %v, want %d from %v", len(got), from, len(request), at)
			}
			for _, packet := range [][]byte{with(make([]byte, 148), 0, 1), answer} {
				if _, err := server.WriteToUDPAddrPort(packet, at); err != nil {
					t.Fatal(err)
				}
				if got, _ := readFrom(t, socket); !bytes.Equal(got, packet) {
					t.Errorf("the port's socket has %x, want %x", got, packet)
				}
			}
			eventually(t, "the answer comes", func() error { return inbox.find(answer, there) })
		}
	}
	inbox.check(t)
	if n := len(inbox.messages); n != 8 {
		t.Errorf("%d messages, want 8", n)
	}
}

// Raw sockets say which address a message came to, and send from that.
func TestRawPortAnswersFromWhereItWasAsked(t *testing.T) {
	checkLeaks(t)
	fabric := netlab.TestFabric(t, "fabric")
	a, b := newTestNode(t, fabric, Kernel, 1), newTestNode(t, fabric, Kernel, 2)
	a.ip(t, "address", "add", "192.0.2.101/24", "dev", "eth0")
	a.ip(t, "address", "add", "2001:db8::101/64", "dev", "eth0", "nodad")
	inbox := &inbox{}
	raw := openRaw(t, a, inbox)
	for fam, second := range []string{"192.0.2.101", "2001:db8::101"} {
		server := listenIn(t, b.ns, netip.AddrPortFrom(b.underlays()[fam], 3478))
		there := plainAddrPort(server.LocalAddr().(*net.UDPAddr).AddrPort())
		for i, addr := range []netip.Addr{a.underlays()[fam], netip.MustParseAddr(second)} {
			at := netip.AddrPortFrom(addr, a.port)
			message := stunMessage(uint32(2*fam+i), 8)
			if _, err := server.WriteToUDPAddrPort(message, at); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the message comes", func() error { return inbox.find(message, there) })
			if to := inbox.lastTo(); to != addr {
				t.Errorf("it came to %v, want %v", to, addr)
			}
			if err := raw.sendSTUN(message, addr, there); err != nil {
				t.Fatal(err)
			}
			if got, from := readFrom(t, server); !bytes.Equal(got, message) || from != at {
				t.Errorf("%d bytes came from %v, want %d from %v", len(got), from, len(message), at)
			}
		}
	}
}

// An answer whose checksum is wrong is dropped where the kernel can check it.
func TestRawPortDropsBrokenSTUN(t *testing.T) {
	fabric := netlab.TestFabric(t, "fabric")
	a, b := newTestNode(t, fabric, Kernel, 1), newTestNode(t, fabric, Kernel, 2)
	inbox := &inbox{}
	openRaw(t, a, inbox)
	broken, good := stunMessage(1, 8), stunMessage(2, 8)
	datagram := newDatagram(3478, a.port, broken)
	datagram[udpChecksumAt] = 1
	err := b.ns.Do(func() error {
		conn, err := net.ListenPacket("ip6:17", "")
		if err != nil {
			return err
		}
		_, err = conn.WriteTo(datagram, &net.IPAddr{IP: a.underlays()[1].AsSlice()})
		return errors.Join(err, conn.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	server := listenIn(t, b.ns, netip.AddrPortFrom(b.underlays()[1], 3478))
	from := plainAddrPort(server.LocalAddr().(*net.UDPAddr).AddrPort())
	if _, err := server.WriteToUDPAddrPort(good, netip.AddrPortFrom(a.underlays()[1], a.port)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the good one comes", func() error { return inbox.find(good, from) })
	if inbox.find(broken, from) == nil {
		t.Error("the broken one came too")
	}
}

func TestRawPortClosesWhileItSendsSTUN(t *testing.T) {
	checkLeaks(t)
	fabric := netlab.TestFabric(t, "fabric")
	a, b := newTestNode(t, fabric, Kernel, 1), newTestNode(t, fabric, Kernel, 2)
	raw := openRaw(t, a, &inbox{})
	var running sync.WaitGroup
	for _, addr := range b.underlays() {
		running.Go(func() {
			var err error
			for err == nil {
				err = raw.sendSTUN(stunMessage(1, 0), netip.Addr{}, netip.AddrPortFrom(addr, 3478))
			}
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("to %v: %v", addr, err)
			}
		})
	}
	if err := raw.close(); err != nil {
		t.Error(err)
	}
	running.Wait()
}

// openRaw opens raw sockets in the node's namespace, for its port.
func openRaw(t *testing.T, n *testNode, inbox *inbox) (raw *rawPort) {
	t.Helper()
	space := namespaceOf(t, n.ns)
	err := space.do(func() (err error) {
		raw, err = openRawPort(Config{OnSTUN: inbox.put, Log: slog.New(slog.DiscardHandler)}, space, n.port)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if raw.ns != nil {
			_ = raw.close()
		}
	})
	return raw
}

func readFrom(t *testing.T, conn *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2*maxSTUN)
	n, from, err := conn.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], plainAddrPort(from)
}
