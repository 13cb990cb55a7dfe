package rtnl

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Values of the kernel's ABI that golang.org/x/sys/unix does not hold.
const (
	// VethInfoPeer nests the other half's ifinfomsg and attributes (VETH_INFO_PEER).
	VethInfoPeer = 1
	// NeighProtocol says who wrote a neighbour (NDA_PROTOCOL).
	NeighProtocol = 12
	// SkipStats leaves counters out of link messages (RTEXT_FILTER_SKIP_STATS).
	SkipStats = 1 << 3
	// AddrGenNone keeps the kernel from adding a link-local address (IN6_ADDR_GEN_MODE_NONE).
	AddrGenNone = 1
)

// Request names one message of a batch.
type Request struct {
	// What is done, for errors: "create veth".
	What string
	// Type is the message's, for example unix.RTM_NEWLINK.
	Type uint16
	// Flags are added to NLM_F_REQUEST.
	Flags uint16
	// Tolerate holds the errors that count as success: unix.ESRCH of a delete.
	Tolerate []unix.Errno
}

// Batch is a row of requests that one system call hands to the kernel. The
// kernel carries them out in order and goes on after one that fails. The zero
// value is empty and ready.
type Batch struct {
	buf      []byte
	requests []request
}

type request struct {
	Request
	start int
}

// Len is the number of requests.
func (b *Batch) Len() int { return len(b.requests) }

// Reset empties the batch.
func (b *Batch) Reset() { b.buf, b.requests = b.buf[:0], b.requests[:0] }

// Link begins a request about a link; the attributes follow.
func (b *Batch) Link(r Request, h unix.IfInfomsg) {
	b.begin(r)
	b.linkHeader(h)
}

func (b *Batch) linkHeader(h unix.IfInfomsg) {
	b.buf = append(b.buf, h.Family, 0)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, h.Type)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, uint32(h.Index))
	b.buf = binary.NativeEndian.AppendUint32(b.buf, h.Flags)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, h.Change)
}

// Addr begins a request about an address.
func (b *Batch) Addr(r Request, h unix.IfAddrmsg) {
	b.begin(r)
	b.buf = append(b.buf, h.Family, h.Prefixlen, h.Flags, h.Scope)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, h.Index)
}

// Rule begins a request about a routing policy rule, whose header is laid out
// like a route's: the action is in Type.
func (b *Batch) Rule(r Request, h unix.RtMsg) { b.Route(r, h) }

// Route begins a request about a route.
func (b *Batch) Route(r Request, h unix.RtMsg) {
	b.begin(r)
	b.buf = append(b.buf, h.Family, h.Dst_len, h.Src_len, h.Tos, h.Table, h.Protocol, h.Scope, h.Type)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, h.Flags)
}

// Neigh begins a request about a neighbour or a forwarding entry.
func (b *Batch) Neigh(r Request, h unix.NdMsg) {
	b.begin(r)
	b.buf = append(b.buf, h.Family, 0, 0, 0)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, uint32(h.Ifindex))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, h.State)
	b.buf = append(b.buf, h.Flags, h.Type)
}

// NetNS begins a request about the number under which this namespace knows
// another.
func (b *Batch) NetNS(r Request) {
	b.begin(r)
	b.buf = append(b.buf, unix.AF_UNSPEC, 0, 0, 0)
}

// PeerLink begins the nested description of a veth's other half; close it with
// End.
func (b *Batch) PeerLink(h unix.IfInfomsg) (nest int) {
	nest = b.Nest(VethInfoPeer)
	b.linkHeader(h)
	return nest
}

// Uint8 adds an attribute of one byte.
func (b *Batch) Uint8(attr uint16, v uint8) { b.attr(attr, 1); b.buf = append(b.buf, v, 0, 0, 0) }

// Uint16 adds an attribute of two bytes.
func (b *Batch) Uint16(attr, v uint16) {
	b.attr(attr, 2)
	b.buf = append(binary.NativeEndian.AppendUint16(b.buf, v), 0, 0)
}

// Uint32 adds an attribute of four bytes.
func (b *Batch) Uint32(attr uint16, v uint32) {
	b.attr(attr, 4)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, v)
}

// String adds a zero-terminated string.
func (b *Batch) String(attr uint16, v string) {
	b.attr(attr, len(v)+1)
	b.buf = append(b.buf, v...)
	b.buf = append(b.buf, 0)
	b.pad()
}

// Bytes adds an attribute as it is.
func (b *Batch) Bytes(attr uint16, v []byte) {
	b.attr(attr, len(v))
	b.buf = append(b.buf, v...)
	b.pad()
}

// IP adds an address in network byte order.
func (b *Batch) IP(attr uint16, addr netip.Addr) {
	if addr.Is4() {
		v := addr.As4()
		b.Bytes(attr, v[:])
		return
	}
	v := addr.As16()
	b.Bytes(attr, v[:])
}

// Nest begins an attribute that holds attributes; End closes it.
func (b *Batch) Nest(attr uint16) (nest int) {
	nest = len(b.buf)
	b.attr(attr|unix.NLA_F_NESTED, 0)
	return nest
}

// End closes the attribute that Nest or PeerLink began.
func (b *Batch) End(nest int) {
	binary.NativeEndian.PutUint16(b.buf[nest:], uint16(len(b.buf)-nest))
}

func (b *Batch) attr(attr uint16, length int) {
	b.buf = binary.NativeEndian.AppendUint16(b.buf, uint16(unix.SizeofNlAttr+length))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, attr)
}

func (b *Batch) pad() {
	for len(b.buf)%unix.NLMSG_ALIGNTO != 0 {
		b.buf = append(b.buf, 0)
	}
}

func (b *Batch) begin(r Request) {
	b.finish()
	b.requests = append(b.requests, request{Request: r, start: len(b.buf)})
	b.buf = append(b.buf, make([]byte, unix.NLMSG_HDRLEN)...)
}

// finish writes the length of the last message, which is known only now.
func (b *Batch) finish() {
	if len(b.requests) > 0 {
		start := b.requests[len(b.requests)-1].start
		binary.NativeEndian.PutUint32(b.buf[start:], uint32(len(b.buf)-start))
	}
}

// seal fills the headers. Only the last request asks for an acknowledgement:
// the kernel answers in order, and answers a failure in any case.
func (b *Batch) seal(firstSeq uint32) {
	b.finish()
	for i, r := range b.requests {
		flags := r.Flags | unix.NLM_F_REQUEST
		if i == len(b.requests)-1 && flags&unix.NLM_F_DUMP != unix.NLM_F_DUMP {
			flags |= unix.NLM_F_ACK
		}
		header := b.buf[r.start:]
		binary.NativeEndian.PutUint16(header[4:], r.Type)
		binary.NativeEndian.PutUint16(header[6:], flags)
		binary.NativeEndian.PutUint32(header[8:], firstSeq+uint32(i))
	}
}
