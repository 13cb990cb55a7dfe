package wireguard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// rawPort sends and receives STUN messages by the UDP port of a kernel device.
// The kernel keeps the port's socket to itself, so this takes raw sockets: what
// they send has the port as its source, and they get a copy of what comes for it
// and has STUN's cookie. The kernel's WireGuard gets that too, and drops it. To
// the firewall and to NAT both are one flow. Safe for concurrent use.
//
// Every UDP packet that comes to this node, WireGuard's among them, is paid for
// while they are open: the kernel clones it for the family's raw socket, before it
// looks at the filter, and in IPv6 sums up those whose checksum the network card
// has not verified once more. So they are there only while they are needed. IPv4
// packets come with their UDP checksum unchecked, as the kernel gives raw sockets
// of IPv4 no way to have it checked.
type rawPort struct {
	port      uint16
	conns     [2]*net.IPConn // by family; nil where the kernel lacks it
	onSTUN    func(at netip.Addr, from netip.AddrPort, packet []byte)
	log       *slog.Logger
	stop      chan struct{}
	receivers sync.WaitGroup

	mu sync.Mutex // guards ns, and has close wait for who uses it
	ns *namespace // nil once closed
}

const (
	udpHeader = 8
	// udpChecksumAt is where the checksum is.
	udpChecksumAt = 6
	// rawBuffer has room for a packet with the longest header of IPv4.
	rawBuffer = 60 + udpHeader + maxSTUN
)

// openRawPort must run in the namespace; its sockets stay there. It needs
// CAP_NET_RAW.
func openRawPort(cfg Config, ns *namespace, port uint16) (*rawPort, error) {
	p := &rawPort{port: port, onSTUN: cfg.OnSTUN, log: cfg.Log, stop: make(chan struct{}), ns: ns}
	if err := p.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open raw sockets for UDP port %d: %w", port, err), p.close())
	}
	for _, conn := range p.conns {
		if conn != nil {
			p.receivers.Go(func() { p.receive(conn) })
		}
	}
	return p, nil
}

func (p *rawPort) open() (err error) {
	if p.conns[0], err = listenRaw("ip4:17"); err != nil {
		return err
	}
	packets4 := ipv4.NewPacketConn(p.conns[0])
	if err := packets4.SetControlMessage(ipv4.FlagDst, true); err != nil { // for parseControl
		return err
	}
	if err := setFilter(packets4, ipv4Filter(p.port)); err != nil {
		return err
	}
	if p.conns[1], err = listenRaw("ip6:17"); errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	if err != nil {
		return err
	}
	packets6 := ipv6.NewPacketConn(p.conns[1])
	if err := packets6.SetControlMessage(ipv6.FlagDst, true); err != nil {
		return err
	}
	if err := packets6.SetChecksum(true, udpChecksumAt); err != nil { // both ways
		return err
	}
	return setFilter(packets6, ipv6Filter(p.port))
}

func listenRaw(network string) (*net.IPConn, error) {
	var config net.ListenConfig
	packets, err := config.ListenPacket(context.Background(), network, "") // it waits for nothing
	if err != nil {
		return nil, err
	}
	return packets.(*net.IPConn), nil
}

// close ends the receivers before it returns.
func (p *rawPort) close() error {
	p.mu.Lock()
	p.ns = nil
	p.mu.Unlock()
	close(p.stop)
	var errs []error
	for _, conn := range p.conns {
		if conn != nil {
			errs = append(errs, conn.Close())
		}
	}
	p.receivers.Wait()
	return errors.Join(errs...)
}

// ipv4Filter passes UDP datagrams to port that begin as STUN does; a raw socket
// of IPv4 sees the IP header.
func ipv4Filter(port uint16) []bpf.Instruction {
	return append([]bpf.Instruction{bpf.LoadMemShift{Off: 0}}, udpFilter(port)...)
}

// ipv6Filter is the same for IPv6, where the packet begins after the IP header.
func ipv6Filter(port uint16) []bpf.Instruction {
	return append([]bpf.Instruction{bpf.LoadConstant{Dst: bpf.RegX, Val: 0}}, udpFilter(port)...)
}

// udpFilter looks at the UDP header at register X. A packet too short for that
// does not pass either.
func udpFilter(port uint16) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(port), SkipTrue: 3},
		bpf.LoadIndirect{Off: udpHeader + stunCookieAt, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: stunCookie, SkipTrue: 1},
		bpf.RetConstant{Val: rawBuffer},
		bpf.RetConstant{Val: 0},
	}
}

func setFilter(conn interface {
	SetBPF([]bpf.RawInstruction) error
}, filter []bpf.Instruction) error {
	program, err := bpf.Assemble(filter)
	if err != nil {
		return err
	}
	return conn.SetBPF(program)
}

// receive hands over what arrives until conn is closed.
func (p *rawPort) receive(conn *net.IPConn) {
	buf, control := make([]byte, rawBuffer), make([]byte, controlSize)
	for {
		n, controls, _, from, err := conn.ReadMsgIP(buf, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.log.Debug("receive STUN from underlay", "err", err)
			select {
			case <-p.stop:
				return
			case <-time.After(receivePause):
			}
			continue
		}
		datagram := buf[:n]
		if conn == p.conns[0] {
			datagram = withoutHeader(datagram)
		}
		addr, _ := netip.AddrFromSlice(from.IP)
		if port, packet, ok := parseSTUNDatagram(datagram, p.port); ok {
			at, _ := parseControl(control[:controls])
			p.onSTUN(at, plainAddrPort(netip.AddrPortFrom(addr, port)), packet)
		}
	}
}

// withoutHeader returns what an IPv4 packet holds, nil if it is none.
func withoutHeader(packet []byte) []byte {
	if len(packet) < ipv4.HeaderLen {
		return nil
	}
	return packet[min(len(packet), int(packet[0]&0xf)*4):]
}

// parseSTUNDatagram returns source port and content of a UDP datagram if it is
// a STUN message for port to. The filter does not see to all of that, and what
// came before it was set has not been filtered at all.
func parseSTUNDatagram(datagram []byte, to uint16) (from uint16, packet []byte, ok bool) {
	if len(datagram) < udpHeader || binary.BigEndian.Uint16(datagram[2:]) != to {
		return 0, nil, false
	}
	length := int(binary.BigEndian.Uint16(datagram[4:]))
	if length < udpHeader || length > len(datagram) {
		return 0, nil, false
	}
	from, packet = binary.BigEndian.Uint16(datagram), datagram[udpHeader:length]
	return from, packet, from != 0 && isSTUN(packet)
}

// sendSTUN builds the UDP header; the kernel does the rest, for IPv6 with the
// checksum.
func (p *rawPort) sendSTUN(packet []byte, from netip.Addr, to netip.AddrPort) error {
	conn := p.conns[family(to.Addr())]
	if conn == nil {
		return unix.EAFNOSUPPORT
	}
	datagram := newDatagram(p.port, to.Port(), packet)
	if to.Addr().Is4() {
		if !from.IsValid() { // the checksum is right for one address only
			source, err := p.source(to.Addr())
			if err != nil {
				return err
			}
			from = source
		}
		setChecksum(datagram, from, to.Addr())
	}
	_, _, err := conn.WriteMsgIP(datagram, sourceControl(from), &net.IPAddr{IP: to.Addr().AsSlice()})
	return err
}

// source returns the address from which packets to an IPv4 address leave.
func (p *rawPort) source(to netip.Addr) (source netip.Addr, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ns == nil {
		return netip.Addr{}, net.ErrClosed
	}
	err = p.ns.do(func() error {
		source, err = routeSource(to)
		return err
	})
	return source, err
}

// routeSource asks a socket that it connects. Netlink would wait for the kernel's
// network lock, which those who delete pods hold for long, and a UDP socket
// would take a port for the time, maybe that of a device which is being made.
func routeSource(to netip.Addr) (source netip.Addr, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("look up source address: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		return netip.Addr{}, fmt.Errorf("look up source address: %w", err)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("look up source address: %w", err)
	}
	v4, ok := local.(*unix.SockaddrInet4)
	if !ok {
		return netip.Addr{}, fmt.Errorf("look up source address: have a %T", local)
	}
	return netip.AddrFrom4(v4.Addr), nil
}

// newDatagram returns a UDP datagram without its checksum.
func newDatagram(from, to uint16, content []byte) []byte {
	datagram := make([]byte, 0, udpHeader+len(content))
	datagram = binary.BigEndian.AppendUint16(datagram, from)
	datagram = binary.BigEndian.AppendUint16(datagram, to)
	datagram = binary.BigEndian.AppendUint16(datagram, uint16(udpHeader+len(content)))
	datagram = append(datagram, 0, 0)
	return append(datagram, content...)
}

// setChecksum sets the checksum of a UDP datagram over IPv4 that has none yet.
func setChecksum(datagram []byte, from, to netip.Addr) {
	sum := uint32(unix.IPPROTO_UDP) + uint32(len(datagram))
	for _, part := range [][]byte{from.AsSlice(), to.AsSlice(), datagram} {
		for ; len(part) > 1; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	checksum := ^uint16(sum)
	if checksum == 0 {
		checksum = 0xffff // 0 stands for no checksum
	}
	binary.BigEndian.PutUint16(datagram[udpChecksumAt:], checksum)
}
