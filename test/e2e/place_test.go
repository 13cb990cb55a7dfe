//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// place is somewhere sockets can be opened: in a pod, on a node, or on this
// machine, which is outside of the cluster.
type place struct {
	name  string
	ns    *netlab.NS // nil: this machine
	addrs []netip.Addr
}

// addr returns the place's address of a family.
func (p place) addr(ipv6 bool) netip.Addr {
	for _, addr := range p.addrs {
		if addr.Is6() == ipv6 {
			return addr
		}
	}
	return netip.Addr{}
}

// do runs fn where sockets that it opens belong to the place.
func (p place) do(fn func() error) error {
	if p.ns == nil {
		return fn()
	}
	return p.ns.Do(fn)
}

// dial connects from the place to an address, which has no name: resolving one
// would leave the place's thread.
func (p place) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = p.do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// marker stands in all that goes to pods by the pods' network, so that the
// capture recognises it on the wire however it is wrapped. What goes to nodes and
// out of the cluster is open: it is not encrypted, and has another word.
const (
	marker = "zlayer-e2e-not-for-the-wire"
	open   = "zlayer-e2e-open"
)

// server answers at a place: TCP connections with a line, then whatever they
// send; UDP packets with that line and the packet.
type server struct {
	port    uint16
	sockets []io.Closer
}

func (s *server) close() {
	for _, socket := range s.sockets {
		_ = socket.Close()
	}
}

// serve answers on a port of each of the place's addresses, by TCP and UDP,
// until it is closed.
func (p place) serve(port uint16) (*server, error) {
	s := &server{port: port}
	for _, addr := range p.addrs {
		if err := p.serveOn(s, netip.AddrPortFrom(addr, port).String()); err != nil {
			s.close()
			return nil, fmt.Errorf("serve on %s: %w", p.name, err)
		}
	}
	return s, nil
}

func (p place) serveOn(s *server, address string) error {
	return p.do(func() error {
		streams, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		s.sockets = append(s.sockets, streams)
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		s.sockets = append(s.sockets, packets)
		go p.answerStreams(streams)
		go p.answerPackets(packets)
		return nil
	})
}

func (p place) answerStreams(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			if _, err := fmt.Fprintf(conn, "%s %s\n", p.name, peerOf(conn.RemoteAddr())); err == nil {
				_, _ = io.Copy(conn, conn)
			}
		}()
	}
}

func (p place) answerPackets(conn net.PacketConn) {
	packet := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFrom(packet)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error that an earlier answer brought back
		}
		answer := packet[:n]
		if n < greetingRoom { // else it is the size that matters
			answer = fmt.Appendf(nil, "%s %s\n%s", p.name, peerOf(from), packet[:n])
		}
		_, _ = conn.WriteTo(answer, from)
	}
}

// greetingRoom is the size of a UDP packet from which on the answer is the
// packet alone.
const greetingRoom = 256

func peerOf(addr net.Addr) netip.Addr {
	switch addr := addr.(type) {
	case *net.TCPAddr:
		return addr.AddrPort().Addr().Unmap()
	case *net.UDPAddr:
		return addr.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// greeting is what a server said: who it is, and who asked, as it sees it.
type greeting struct {
	server string
	client netip.Addr
}

// ask makes one connection, or sends one packet, and reads the greeting. It
// also has a word echoed, so that it crosses both ways.
func (p place) ask(ctx context.Context, network string, target netip.AddrPort, word string) (greeting, error) {
	const limit = 3 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	said, err := p.askOnce(ctx, network, target, word)
	if err != nil {
		return greeting{}, fmt.Errorf("%s asks %v by %s: %w", p.name, target, network, err)
	}
	return said, nil
}

func (p place) askOnce(ctx context.Context, network string, target netip.AddrPort, word string) (greeting, error) {
	conn, err := p.dial(ctx, network, target.String())
	if err != nil {
		return greeting{}, err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := io.WriteString(conn, word+"\n"); err != nil {
		return greeting{}, err
	}
	reader := bufio.NewReader(conn)
	line, err := reader.ReadString('\n')
	if err != nil {
		return greeting{}, err
	}
	if echo, err := reader.ReadString('\n'); err != nil || echo != word+"\n" {
		return greeting{}, fmt.Errorf("echo %q: %w", echo, err)
	}
	fields := strings.Fields(line)
	if len(fields) != 2 {
		return greeting{}, fmt.Errorf("strange greeting %q", line)
	}
	client, err := netip.ParseAddr(fields[1])
	return greeting{server: fields[0], client: client}, err
}
