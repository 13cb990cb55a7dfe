//go:build linux

package natlab_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/test/natlab"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

// patience bounds every wait; the machine may be an emulated one.
const patience = time.Minute

// rounds is how often a packet is sent before it counts as dropped.
const rounds = 3

// endpoint is a UDP socket of a host.
type endpoint struct {
	*net.UDPConn
	t    *testing.T
	name string
	addr netip.AddrPort
	sent int
}

// listen opens a socket on a host's address of one family; port 0 is any port.
func listen(t *testing.T, host *natlab.Host, v6 bool, port uint16) *endpoint {
	t.Helper()
	e := &endpoint{t: t}
	local := netip.AddrPortFrom(address(host, v6), port)
	err := host.Do(func() (err error) {
		e.UDPConn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
		return err
	})
	if err != nil {
		t.Fatalf("listen at %s of %s: %v", local, host.Name, err)
	}
	t.Cleanup(func() { _ = e.Close() })
	e.addr = e.LocalAddr().(*net.UDPAddr).AddrPort()
	e.name = fmt.Sprintf("%s %s", host.Name, e.addr)
	return e
}

func address(host *natlab.Host, v6 bool) netip.Addr {
	if v6 {
		return host.IPv6
	}
	return host.IPv4
}

// send sends a packet with a text of its own, which it returns.
func (e *endpoint) send(to netip.AddrPort) string {
	e.t.Helper()
	e.sent++
	text := fmt.Sprintf("%s #%d to %s", e.name, e.sent, to)
	if _, err := e.WriteToUDPAddrPort([]byte(text), to); err != nil {
		e.t.Fatalf("send from %s to %s: %v", e.name, to, err)
	}
	return text
}

// packet is one that has arrived.
type packet struct {
	text string
	from netip.AddrPort
}

// receiveUntil returns what arrives until the packet with the text does, that
// one last; false if it does not in time.
func (e *endpoint) receiveUntil(text string, deadline time.Time) ([]packet, bool) {
	e.t.Helper()
	if err := e.SetReadDeadline(deadline); err != nil {
		e.t.Fatal(err)
	}
	var arrived []packet
	buffer := make([]byte, 1500)
	for {
		n, from, err := e.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return arrived, false
		}
		arrived = append(arrived, packet{text: string(buffer[:n]), from: from})
		if string(buffer[:n]) == text {
			return arrived, true
		}
	}
}

// sourceAt sends from e to the server and returns the source that arrives
// there: the mapping of e. It tries again, since the first packet may wait
// for a neighbour and be dropped.
func (e *endpoint) sourceAt(server *endpoint) netip.AddrPort {
	e.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		text := e.send(server.addr)
		if arrived, ok := server.receiveUntil(text, time.Now().Add(time.Second)); ok {
			return arrived[len(arrived)-1].from
		}
	}
	e.t.Fatalf("nothing arrives from %s at %s", e.name, server.name)
	return netip.AddrPort{}
}

// admits tells whether a packet from the stranger reaches e by its mapping. The
// friend's packet, sent afterwards, has to arrive: so nothing need be waited for.
func (e *endpoint) admits(stranger, friend *endpoint, mapping netip.AddrPort) bool {
	e.t.Helper()
	for range rounds {
		text := stranger.send(mapping)
		if slices.ContainsFunc(e.drain(friend, mapping), func(p packet) bool { return p.text == text }) {
			return true
		}
	}
	return false
}

// drain returns what has arrived at e.
func (e *endpoint) drain(friend *endpoint, mapping netip.AddrPort) []packet {
	e.t.Helper()
	text := friend.send(mapping)
	arrived, ok := e.receiveUntil(text, time.Now().Add(patience))
	if !ok {
		e.t.Fatalf("%s sends to %s, the mapping of %s for it, and nothing arrives", friend.name, mapping, e.name)
	}
	return arrived[:len(arrived)-1]
}

// world is an internet with two servers.
type world struct {
	*natlab.Internet
	t        *testing.T
	one, two *natlab.Host
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Internet: natlab.TestInternet(t, "internet"), t: t}
	w.one, w.two = must(w.Server("one"))(t), must(w.Server("two"))(t)
	return w
}

// servers returns two ports of server one and one of server two, which know the
// way to each other.
func (w *world) servers(v6 bool) (one, otherPort, otherAddress *endpoint) {
	w.t.Helper()
	one, otherPort = listen(w.t, w.one, v6, 0), listen(w.t, w.one, v6, 0)
	otherAddress = listen(w.t, w.two, v6, 0)
	otherAddress.sourceAt(one)
	return one, otherPort, otherAddress
}

// site makes routers in a row, the outermost first, with a host behind the last.
func (w *world) site(name string, configs ...natlab.Config) ([]*natlab.Router, *natlab.Host) {
	w.t.Helper()
	routers := []*natlab.Router{must(w.Router(name+"-r0", configs[0]))(w.t)}
	for i, config := range configs[1:] {
		routers = append(routers, must(routers[i].Router(fmt.Sprintf("%s-r%d", name, i+1), config))(w.t))
	}
	return routers, must(routers[len(routers)-1].Host(name))(w.t)
}

func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}
