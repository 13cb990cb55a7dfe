package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
)

// ErrNotTried is the fault of a listener that was asked for a moment ago.
var ErrNotTried = errors.New("not listening yet")

var (
	errNoInterface = errors.New("no such interface")
	errNoAddress   = errors.New("no interface has this address")
)

// endpoint is what a socket is bound to.
type endpoint struct {
	addr  netip.AddrPort
	proto protocol
}

// socket is bound and has goroutines that serve it.
type socket struct {
	conn   io.Closer
	cancel context.CancelFunc // ends the wait for other servers
	// index is of the interface that the address' zone named when it was bound.
	index int
	// broken tells that it is not served any more, though nobody closed it.
	broken atomic.Bool
	served sync.WaitGroup
}

// sockets are those of a Server. Only Run's goroutine uses them.
type sockets struct {
	server *Server
	open   map[endpoint]*socket
}

// reconcile opens and closes what differs from what is wanted, and remembers
// the faults.
func (s *sockets) reconcile(ctx context.Context) {
	s.server.mu.Lock()
	wanted := s.server.wanted
	s.server.mu.Unlock()

	present := map[netip.Addr]presence{}
	keep := map[endpoint]bool{}
	for _, addr := range wanted {
		keep[endpoint{addr, udp}], keep[endpoint{addr, tcp}] = true, true
		if _, known := present[addr.Addr()]; !known {
			present[addr.Addr()] = lookFor(addr.Addr())
		}
	}
	s.closeExcept(func(p endpoint, opened *socket) bool {
		at := present[p.addr.Addr()]
		return keep[p] && !opened.broken.Load() && (at.fault != nil || at.index == opened.index)
	})
	faults := make(map[netip.AddrPort]error, len(wanted))
	for _, addr := range wanted {
		faults[addr] = s.listen(ctx, addr, present[addr.Addr()])
	}
	s.remember(faults)
}

// presence is whether an address is on this node.
type presence struct {
	// index is of the interface that the address' zone names, 0 if it has no zone.
	index int
	fault error
}

// listen has an address served by both protocols. The fault is nil if it is.
func (s *sockets) listen(ctx context.Context, addr netip.AddrPort, at presence) error {
	if at.fault != nil { // a socket that is open goes on when the address is back
		return fmt.Errorf("listen on %s by udp and tcp: %w", addr, at.fault)
	}
	var faults [protocols]error
	for proto := range protocols {
		if p := (endpoint{addr, proto}); s.open[p] == nil {
			faults[proto] = s.bind(ctx, p, at.index)
		}
	}
	if faults[udp] != nil && faults[tcp] != nil {
		return fmt.Errorf("%w; %w", faults[udp], faults[tcp])
	}
	return errors.Join(faults[:]...)
}

// bind opens a socket and starts to serve it.
func (s *sockets) bind(ctx context.Context, p endpoint, index int) error {
	ctx, cancel := context.WithCancel(ctx)
	opened := &socket{cancel: cancel, index: index}
	addr := p.addr
	if index != 0 { // package net remembers the indexes of names for a minute
		addr = netip.AddrPortFrom(addr.Addr().WithZone(strconv.Itoa(index)), addr.Port())
	}
	serve := s.server.serveUDP
	if p.proto == tcp {
		serve = s.server.serveTCP
	}
	if err := serve(ctx, addr, opened); err != nil {
		cancel()
		return p.fault(err)
	}
	s.open[p] = opened
	return nil
}

// closeExcept closes all sockets but those to be kept, and waits for their goroutines.
func (s *sockets) closeExcept(keep func(endpoint, *socket) bool) {
	for p, opened := range s.open {
		if !keep(p, opened) {
			opened.cancel()
			_ = opened.conn.Close()
			opened.served.Wait()
			delete(s.open, p)
		}
	}
}

func (s *sockets) closeAll() {
	s.closeExcept(func(endpoint, *socket) bool { return false })
}

// remember publishes the faults and logs those that came and went.
func (s *sockets) remember(faults map[netip.AddrPort]error) {
	s.server.mu.Lock()
	before := s.server.faults
	s.server.faults = faults
	s.server.mu.Unlock()
	for addr, fault := range faults {
		was := before[addr]
		switch {
		case fault != nil && (was == nil || was.Error() != fault.Error()):
			s.server.config.Log.Warn("names are not served here, will try again", "addr", addr, "err", fault)
		case fault == nil && was != nil:
			s.server.config.Log.Info("names are served here again", "addr", addr)
		}
	}
}

// network is the name that package net has for it, of one family: a socket for
// both would also take what is for others.
func (p endpoint) network() string {
	if p.addr.Addr().Is4() {
		return p.proto.String() + "4"
	}
	return p.proto.String() + "6"
}

// fault says in words for an operator why there is no listener.
func (p endpoint) fault(err error) error {
	var what string
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		what = fmt.Sprintf(": stop the server that has it (`ss -lnp 'sport = :%d'` shows it), or have it leave out this address", p.addr.Port())
	case errors.Is(err, syscall.EACCES):
		what = ": ports below 1024 need CAP_NET_BIND_SERVICE"
	}
	return fmt.Errorf("listen on %s by %s: %w%s", p.addr, p.proto, cause(err), what)
}

// cause is an error without the words of package net, which repeat ours.
func cause(err error) error {
	var op *net.OpError
	var call interface{ Unwrap() error }
	if errors.As(err, &op) {
		err = op.Err
		if errors.As(err, &call) { // os.SyscallError: "bind: "
			err = call.Unwrap()
		}
	}
	return err
}
