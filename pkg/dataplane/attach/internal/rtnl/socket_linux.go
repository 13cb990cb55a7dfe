// Package rtnl speaks rtnetlink: it builds batches of requests, hands each to
// the kernel in one system call, reads dumps and follows changes.
//
// It knows messages, not networks: what a bridge of ours looks like is decided
// above. A Socket belongs to one goroutine at a time; everything else is safe
// for concurrent use where it says so.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrInterrupted says that a dump changed while it was read, several times in
// a row.
var ErrInterrupted = errors.New("kernel state kept changing while it was read")

const (
	// replySize holds any single link message.
	replySize = 16 << 10
	// dumpSize is the largest piece of a dump that the kernel makes.
	dumpSize = 32 << 10
	// dumpTries bounds the repetitions of an interrupted dump.
	dumpTries = 10
)

// Error is the kernel's refusal of one request of a batch. It unwraps to its
// unix.Errno.
type Error struct {
	// What was refused, from Request.
	What string
	// Index is the request's place in the batch.
	Index int
	// Errno is the kernel's answer.
	Errno unix.Errno
	// Message is the kernel's explanation, if it gave one.
	Message string
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.What + ": " + e.Errno.Error()
	}
	return e.What + ": " + e.Errno.Error() + " (" + e.Message + ")"
}

func (e *Error) Unwrap() error { return e.Errno }

// Message is one message of the kernel. Data is valid until the socket is used
// again.
type Message struct {
	// Type is for example unix.RTM_NEWLINK.
	Type uint16
	// Data begins with the family's header, attributes follow.
	Data []byte
}

// Socket carries requests. The kernel handles rtnetlink requests inside the
// system call that sends them, so no answer is ever waited for; the call itself
// waits for the kernel's own lock and cannot be interrupted.
type Socket struct {
	fd   int
	seq  uint32
	buf  []byte
	lost bool
}

// Open opens a socket in the namespace of the calling thread.
func Open() (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &Socket{fd: fd}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// prepare asks for explanations of errors, for errors without a copy of the
// request, and for filters to be obeyed or refused.
func (s *Socket) prepare() error {
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, option, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// Close ends the socket.
func (s *Socket) Close() error { return os.NewSyscallError("close", unix.Close(s.fd)) }

// Broken tells whether a system call on the socket failed, after which answers
// may be missing. It should be closed.
func (s *Socket) Broken() bool { return s.lost }

// Do hands the batch to the kernel and empties it, also when it fails. each,
// which may be nil, gets the messages that answer or echo request number i. The
// error is the first *Error that was not tolerated; later requests were carried
// out all the same.
func (s *Socket) Do(b *Batch, each func(i int, m Message)) error {
	if b.Len() == 0 {
		return nil
	}
	defer b.Reset()
	first, err := s.send(b)
	if err != nil {
		return err
	}
	requests := b.requests
	var refused error
	for done := false; !done; {
		err := s.receive(replySize, func(h unix.NlMsghdr, data []byte) {
			i := int(h.Seq - first)
			if i < 0 || i >= len(requests) {
				return // left over from a batch that ended in an error of the socket
			}
			if h.Type != unix.NLMSG_ERROR {
				if each != nil {
					each(i, Message{Type: h.Type, Data: data})
				}
				return
			}
			if err := refusal(requests[i].Request, i, h, data); err != nil && refused == nil {
				refused = err
			}
			done = done || i == len(requests)-1
		})
		if err != nil {
			return err
		}
	}
	return refused
}

// Dump sends the batch's only request, which must carry NLM_F_DUMP, and
// returns what parse makes of each message. A dump that changed underway is
// repeated. The batch is empty afterwards, also after an error.
func Dump[T any](s *Socket, b *Batch, parse func(Message) (T, bool)) ([]T, error) {
	defer b.Reset()
	for range dumpTries {
		found, interrupted, err := dumpOnce(s, b, parse)
		if err != nil || !interrupted {
			return found, err
		}
	}
	return nil, fmt.Errorf("%s: %w", b.requests[0].What, ErrInterrupted)
}

func dumpOnce[T any](s *Socket, b *Batch, parse func(Message) (T, bool)) (found []T, interrupted bool, err error) {
	first, err := s.send(b)
	if err != nil {
		return nil, false, err
	}
	var refused error
	for done := false; !done; {
		err := s.receive(dumpSize, func(h unix.NlMsghdr, data []byte) {
			if h.Seq != first {
				return
			}
			interrupted = interrupted || h.Flags&unix.NLM_F_DUMP_INTR != 0
			switch h.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				done, refused = true, refusal(b.requests[0].Request, 0, h, data)
			default:
				if v, ok := parse(Message{Type: h.Type, Data: data}); ok {
					found = append(found, v)
				}
			}
		})
		if err != nil {
			return nil, false, err
		}
	}
	return found, interrupted, refused
}

func (s *Socket) send(b *Batch) (firstSeq uint32, err error) {
	firstSeq = s.seq + 1
	s.seq += uint32(len(b.requests))
	b.seal(firstSeq)
	for {
		err := unix.Sendto(s.fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			s.lost = s.lost || err != nil
			return firstSeq, os.NewSyscallError("sendto", err)
		}
	}
}

// receive reads one datagram, which is there already, and hands out its
// messages.
func (s *Socket) receive(size int, each func(h unix.NlMsghdr, data []byte)) error {
	if len(s.buf) < size {
		s.buf = make([]byte, size)
	}
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			s.lost = true
			return os.NewSyscallError("recvfrom", err)
		case n > len(s.buf):
			s.lost = true
			return fmt.Errorf("netlink message of %d bytes does not fit %d", n, len(s.buf))
		}
		return split(s.buf[:n], each)
	}
}

// split hands out the messages of a datagram.
func split(data []byte, each func(h unix.NlMsghdr, data []byte)) error {
	for len(data) >= unix.NLMSG_HDRLEN {
		h := unix.NlMsghdr{
			Len:   binary.NativeEndian.Uint32(data),
			Type:  binary.NativeEndian.Uint16(data[4:]),
			Flags: binary.NativeEndian.Uint16(data[6:]),
			Seq:   binary.NativeEndian.Uint32(data[8:]),
			Pid:   binary.NativeEndian.Uint32(data[12:]),
		}
		if h.Len < unix.NLMSG_HDRLEN || int64(h.Len) > int64(len(data)) {
			return fmt.Errorf("netlink message of %d bytes in %d", h.Len, len(data))
		}
		each(h, data[unix.NLMSG_HDRLEN:h.Len])
		data = data[min(align(int(h.Len)), len(data)):]
	}
	return nil
}

// refusal reads an acknowledgement: the negated errno, then the kernel's
// explanation.
func refusal(r Request, index int, h unix.NlMsghdr, data []byte) error {
	if len(data) < 4 {
		return nil // NLMSG_DONE of old kernels
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(data)))
	if errno == 0 {
		return nil
	}
	for _, tolerated := range r.Tolerate {
		if errno == tolerated {
			return nil
		}
	}
	refused := &Error{What: r.What, Index: index, Errno: errno}
	skip := 4 // NLMSG_DONE
	if h.Type == unix.NLMSG_ERROR {
		skip += unix.NLMSG_HDRLEN
	}
	if h.Flags&unix.NLM_F_ACK_TLVS != 0 && len(data) > skip {
		for attr, value := range Attrs(data[skip:]) {
			if attr == unix.NLMSGERR_ATTR_MSG {
				refused.Message = text(value)
			}
		}
	}
	return refused
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }
