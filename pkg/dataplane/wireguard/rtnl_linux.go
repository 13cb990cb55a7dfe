package wireguard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// rtnlTimeout bounds the wait for the kernel's answer. It comes at once
	// unless another program holds the kernel's network lock.
	rtnlTimeout = 30 * time.Second
	// rtnlBatch is how many requests go in one system call: their answers, if
	// all of them fail, have to fit the socket's buffer.
	rtnlBatch = 256
	rtnlBuf   = 1 << 18
	// dumpTries bounds how often a dump that changed under way is read again.
	dumpTries = 10
	hdrLen    = unix.SizeofNlMsghdr
	rtmLen    = unix.SizeofRtMsg
)

// routeSocket reads and writes routes in the namespace it was opened in. One
// message per route and one system call per message would make a large cluster's
// routes cost more than its peers, so it sends requests in batches in which only
// failures are answered. Not safe for concurrent use.
type routeSocket struct {
	fd    int
	table uint32
	seq   uint32
	buf   []byte
}

// openRouteSocket opens a socket for one routing table; 0 is the main table.
func openRouteSocket(table int) (*routeSocket, error) {
	if table == 0 {
		table = unix.RT_TABLE_MAIN
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open route socket: %w", err)
	}
	timeout := unix.NsecToTimeval(rtnlTimeout.Nanoseconds())
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1), // errors without the request
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open route socket: %w", err), unix.Close(fd))
	}
	// The kernel filters dumps if it can (since 4.20). What it does not filter is filtered here.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &routeSocket{fd: fd, table: uint32(table), buf: make([]byte, rtnlBuf)}, nil
}

func (s *routeSocket) close() error { return unix.Close(s.fd) }

// ours returns the table's routes that carry our protocol number and
// either go through the link index or refuse.
func (s *routeSocket) ours(index int) ([]route, error) {
	var routes []route
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := s.dump(fam, index)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		routes = append(routes, found...)
	}
	return routes, nil
}

func (s *routeSocket) dump(fam uint8, index int) ([]route, error) {
	for range dumpTries {
		request := s.begin(nil, unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		request = append(request, fam, 0, 0, 0, unix.RT_TABLE_UNSPEC, RouteProtocol, 0, 0, 0, 0, 0, 0)
		request = s.appendTable(request)
		finish(request, 0)
		if err := s.send(request); err != nil {
			return nil, err
		}
		var routes []route
		interrupted, done := false, false
		for !done {
			err := s.receive(func(kind, flags uint16, seq uint32, body []byte) error {
				if seq != s.seq { // an answer that came after its time limit
					return nil
				}
				interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
				switch kind {
				case unix.NLMSG_DONE, unix.NLMSG_ERROR:
					done = true
					return noRoutes(errnoOf(body))
				case unix.RTM_NEWROUTE:
					if r, ok := parseRoute(body, s.table, index); ok {
						routes = append(routes, r)
					}
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
		if !interrupted {
			return routes, nil
		}
	}
	return nil, errors.New("they keep changing")
}

// noRoutes forgives a kernel without IPv6, and a table that does not exist yet:
// neither has routes.
func noRoutes(err error) error {
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// parseRoute reads an RTM_NEWROUTE, and returns false unless the route is ours
// and of the table.
func parseRoute(body []byte, wanted uint32, index int) (route, bool) {
	if len(body) < rtmLen || body[5] != RouteProtocol || binary.NativeEndian.Uint32(body[8:])&unix.RTM_F_CLONED != 0 {
		return route{}, false
	}
	bits, table, kind := int(body[1]), uint32(body[4]), body[7]
	dst, src, oif, metric := netip.IPv4Unspecified(), netip.Addr{}, 0, uint32(0)
	if body[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for attrs := body[rtmLen:]; len(attrs) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < unix.SizeofRtAttr || size > len(attrs) {
			break
		}
		value := attrs[unix.SizeofRtAttr:size]
		switch binary.NativeEndian.Uint16(attrs[2:]) {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(value)
		case unix.RTA_PREFSRC:
			src, _ = netip.AddrFromSlice(value)
		case unix.RTA_OIF:
			oif = int(uint32Of(value))
		case unix.RTA_PRIORITY:
			metric = uint32Of(value)
		case unix.RTA_TABLE:
			table = uint32Of(value)
		}
		attrs = attrs[min(align(size), len(attrs)):]
	}
	r := route{dst: netip.PrefixFrom(dst, bits), src: src, metric: metric, unreachable: kind == unix.RTN_UNREACHABLE}
	return r, table == wanted && (r.unreachable || kind == unix.RTN_UNICAST && oif == index)
}

func uint32Of(value []byte) uint32 {
	if len(value) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(value)
}

// remove deletes routes; those that are already gone are no error.
func (s *routeSocket) remove(routes []route, index int) error {
	return s.write(routes, index, unix.RTM_DELROUTE, 0, func(err error) bool { return errors.Is(err, unix.ESRCH) })
}

// add makes routes. A destination that another program routes is an error for
// that one; the others are made.
func (s *routeSocket) add(routes []route, index int) error {
	return s.write(routes, index, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, func(error) bool { return false })
}

// write sends routes in batches of which only the last request asks for an
// answer: the kernel answers in order, so what failed is known by then.
func (s *routeSocket) write(routes []route, index int, kind, flags uint16, fine func(error) bool) error {
	var errs []error
	for len(routes) > 0 {
		batch := routes[:min(rtnlBatch, len(routes))]
		routes = routes[len(batch):]
		first := s.seq + 1
		var request []byte
		for i, r := range batch {
			ask := flags
			if i == len(batch)-1 {
				ask |= unix.NLM_F_ACK
			}
			request = s.appendRoute(request, r, index, kind, ask)
		}
		if err := s.send(request); err != nil {
			return errors.Join(append(errs, fmt.Errorf("write routes: %w", err))...)
		}
		for done := false; !done; {
			err := s.receive(func(kind, _ uint16, seq uint32, body []byte) error {
				if kind != unix.NLMSG_ERROR || seq-first >= uint32(len(batch)) {
					return nil
				}
				done = done || seq == s.seq
				if err := errnoOf(body); err != nil && !fine(err) {
					errs = append(errs, routeError(batch[seq-first], err))
				}
				return nil
			})
			if err != nil {
				return errors.Join(append(errs, fmt.Errorf("write routes: %w", err))...)
			}
		}
	}
	return errors.Join(errs...)
}

func routeError(r route, err error) error {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("route %v: another program has a route to it", r.dst)
	}
	return fmt.Errorf("route %v: %w", r.dst, err)
}

func (s *routeSocket) appendRoute(request []byte, r route, index int, kind, flags uint16) []byte {
	start := len(request)
	request = s.begin(request, kind, flags)
	fam, scope, routeType := uint8(unix.AF_INET), uint8(unix.RT_SCOPE_UNIVERSE), uint8(unix.RTN_UNICAST)
	switch {
	case r.unreachable:
		routeType = unix.RTN_UNREACHABLE
	case r.dst.Addr().Is4():
		scope = unix.RT_SCOPE_LINK
	}
	if r.dst.Addr().Is6() {
		fam = unix.AF_INET6
	}
	request = append(request, fam, uint8(r.dst.Bits()), 0, 0, unix.RT_TABLE_UNSPEC, RouteProtocol, scope, routeType, 0, 0, 0, 0)
	request = s.appendTable(request)
	request = appendAttr(request, unix.RTA_DST, r.dst.Addr().AsSlice())
	if r.metric != 0 {
		request = appendAttr(request, unix.RTA_PRIORITY, binary.NativeEndian.AppendUint32(nil, r.metric))
	}
	if r.src.IsValid() {
		request = appendAttr(request, unix.RTA_PREFSRC, r.src.AsSlice())
	}
	if !r.unreachable {
		request = appendAttr(request, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	}
	finish(request, start)
	return request
}

// appendTable names the table, which the header has no room for if its number is
// above 255.
func (s *routeSocket) appendTable(request []byte) []byte {
	return appendAttr(request, unix.RTA_TABLE, binary.NativeEndian.AppendUint32(nil, s.table))
}

// begin appends a message header whose length finish fills in.
func (s *routeSocket) begin(request []byte, kind, flags uint16) []byte {
	s.seq++
	request = append(request, 0, 0, 0, 0)
	request = binary.NativeEndian.AppendUint16(request, kind)
	request = binary.NativeEndian.AppendUint16(request, flags|unix.NLM_F_REQUEST)
	request = binary.NativeEndian.AppendUint32(request, s.seq)
	return append(request, 0, 0, 0, 0)
}

func finish(request []byte, start int) {
	binary.NativeEndian.PutUint32(request[start:], uint32(len(request)-start))
}

// appendAttr relies on every attribute here being a multiple of four bytes long.
func appendAttr(request []byte, kind uint16, value []byte) []byte {
	request = binary.NativeEndian.AppendUint16(request, uint16(unix.SizeofRtAttr+len(value)))
	request = binary.NativeEndian.AppendUint16(request, kind)
	return append(request, value...)
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

func (s *routeSocket) send(request []byte) error {
	err := unix.Sendto(s.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	return os.NewSyscallError("send", err)
}

// receive reads one datagram and passes on its messages up to the first error.
func (s *routeSocket) receive(each func(kind, flags uint16, seq uint32, body []byte) error) error {
	var n int
	var err error
	for {
		n, _, err = unix.Recvfrom(s.fd, s.buf, 0)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return os.NewSyscallError("receive", err)
	}
	for data := s.buf[:n]; len(data) >= hdrLen; {
		size := int(binary.NativeEndian.Uint32(data))
		if size < hdrLen || size > len(data) {
			return errors.New("truncated netlink message")
		}
		kind, flags := binary.NativeEndian.Uint16(data[4:]), binary.NativeEndian.Uint16(data[6:])
		if err := each(kind, flags, binary.NativeEndian.Uint32(data[8:]), data[hdrLen:size]); err != nil {
			return err
		}
		data = data[min(align(size), len(data)):]
	}
	return nil
}

// errnoOf reads an NLMSG_ERROR: zero is a success.
func errnoOf(body []byte) error {
	if len(body) < 4 {
		return errors.New("truncated netlink error")
	}
	if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}
