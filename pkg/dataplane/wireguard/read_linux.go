package wireguard

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"reflect"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// maxSegments is how many packets the kernel joins at most.
	maxSegments = 64
	// controlSize has room for the address and the size of segments.
	controlSize = 128
)

// packetReader reads from one of wireguard-go's sockets as that does itself, but
// also says which of this node's addresses a packet came to. wireguard-go loses
// that where the kernel joins packets of one sender.
type packetReader struct {
	socket   batchSocket
	joins    bool // the kernel may join packets
	source   uintptr
	messages []ipv6.Message
}

type batchSocket interface {
	ReadBatch(messages []ipv6.Message, flags int) (int, error)
}

// newPacketReader returns a reader, or an error if wireguard-go's endpoints are
// not as they were.
func newPacketReader(socket batchSocket, joins bool) (*packetReader, error) {
	source, is := reflect.TypeFor[conn.StdNetEndpoint]().FieldByName("src")
	if !is || source.Type != reflect.TypeFor[[]byte]() {
		return nil, errors.New("wireguard-go's endpoint has no field src of bytes")
	}
	r := &packetReader{socket: socket, joins: joins, source: source.Offset, messages: make([]ipv6.Message, conn.IdealBatchSize)}
	for i := range r.messages {
		r.messages[i].Buffers, r.messages[i].OOB = make([][]byte, 1), make([]byte, controlSize)
	}
	return r, nil
}

// newPacketReaders returns a reader for each socket, of IPv4 first.
func newPacketReaders(s sockets) ([]*packetReader, error) {
	var readers []*packetReader
	for fam, socket := range s {
		if socket == nil {
			continue
		}
		joins, err := joinsPackets(socket)
		if err != nil {
			return nil, err
		}
		var batches batchSocket = ipv6.NewPacketConn(socket)
		if fam == 0 {
			batches = ipv4.NewPacketConn(socket)
		}
		reader, err := newPacketReader(batches, joins)
		if err != nil {
			return nil, err
		}
		readers = append(readers, reader)
	}
	return readers, nil
}

// joinsPackets tells whether wireguard-go could have the kernel join packets.
func joinsPackets(socket *net.UDPConn) (joins bool, err error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return false, err
	}
	err = raw.Control(func(fd uintptr) {
		value, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO)
		joins = err == nil && value == 1
	})
	return joins, err
}

// read waits for packets and fills bufs, of which there are as many as
// wireguard-go insists on: the kernel's joined ones are read into the last and
// cut into the others.
func (r *packetReader) read(bufs [][]byte, sizes []int, from []conn.Endpoint, at []netip.Addr) (int, error) {
	first := 0
	if r.joins {
		first = len(bufs) - len(bufs)/maxSegments
	}
	for i := first; i < len(bufs); i++ {
		r.messages[i].Buffers[0] = bufs[i]
	}
	n, err := r.socket.ReadBatch(r.messages[first:len(bufs)], 0)
	if err != nil {
		return 0, err
	}
	packets := 0
	for i := first; i < first+n; i++ {
		message := &r.messages[i]
		here, segment := parseControl(message.OOB[:message.NN])
		source := sourceControl(here)
		sender := message.Addr.(*net.UDPAddr).AddrPort()
		for rest, n := bufs[i][:message.N], 0; len(rest) > 0 && n < maxSegments; packets, n = packets+1, n+1 { // more have no room and are lost
			size := len(rest)
			if segment > 0 {
				size = min(size, segment)
			}
			sizes[packets] = copy(bufs[packets], rest[:size])
			from[packets], at[packets] = r.endpoint(sender, source), here
			rest = rest[size:]
		}
	}
	return packets, nil
}

// endpoint is where a packet came from, to which WireGuard sends from the address
// that it came to, as a control message says. The routes choose the link, as they
// do for checks: nothing tells wireguard-go here when a link goes out of use.
func (r *packetReader) endpoint(sender netip.AddrPort, source []byte) *conn.StdNetEndpoint {
	endpoint := &conn.StdNetEndpoint{AddrPort: sender}
	*(*[]byte)(unsafe.Add(unsafe.Pointer(endpoint), r.source)) = source
	return endpoint
}

// parseControl returns which of this node's addresses a packet came to, and the
// size of the segments that it was joined from, each zero if it does not say.
func parseControl(control []byte) (at netip.Addr, segment int) {
	for len(control) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		control = rest
		switch {
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			at = netip.AddrFrom4([4]byte(data[4:])) // the address to answer from, behind the interface
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			at = netip.AddrFrom16([16]byte(data))
		case header.Level == unix.SOL_UDP && header.Type == unix.UDP_GRO && len(data) >= 2:
			segment = int(binary.NativeEndian.Uint16(data))
		}
	}
	return at, segment
}

// sourceControl has a packet leave from an address of this node's, or by the
// routes' choice if there is none.
func sourceControl(from netip.Addr) []byte {
	switch {
	case from.Is4():
		return (&ipv4.ControlMessage{Src: from.AsSlice()}).Marshal()
	case from.Is6():
		return (&ipv6.ControlMessage{Src: from.AsSlice()}).Marshal()
	}
	return nil
}
