//go:build linux

package main

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// forwarderArgs say where a plain UDP forwarder receives, and whom it sends to.
type forwarderArgs struct {
	Addr netip.Addr
	// Target, if given, is who is on the other side. The ports are for one sender
	// each otherwise.
	Target netip.AddrPort
}

// playForwarder passes datagrams on between two sides, each of which sends to a
// port of its own, until stdin ends. It answers the ports. It looks into no packet
// and knows the sides by what came last: what a relay could do at best that reads
// and writes one packet at a time.
func playForwarder(r *roleInput) error {
	var args forwarderArgs
	if err := r.args(&args); err != nil {
		return err
	}
	var sides [2]forwarderSide
	var ports [2]netip.AddrPort
	for i := range sides {
		local := netip.AddrPortFrom(args.Addr, 0)
		if i == 1 && args.Target.IsValid() {
			local = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
			sides[i].sender.Store(&args.Target)
		}
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(local))
		if err != nil {
			return err // which ends the process, and the port of the other side
		}
		_ = conn.SetReadBuffer(forwarderBuffer) // less is only slower
		_ = conn.SetWriteBuffer(forwarderBuffer)
		sides[i].conn, ports[i] = conn, conn.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	var forwarding sync.WaitGroup
	forwarding.Go(func() { sides[0].passOnTo(&sides[1]) })
	forwarding.Go(func() { sides[1].passOnTo(&sides[0]) })
	err := errors.Join(answerRole(ports), r.end())
	err = errors.Join(err, sides[0].conn.Close(), sides[1].conn.Close())
	forwarding.Wait()
	return err
}

// forwarderBuffer is what the relay asks for its own port.
const forwarderBuffer = 4 << 20

// forwarderSide is a port and the last one who sent to it.
type forwarderSide struct {
	conn   *net.UDPConn
	sender atomic.Pointer[netip.AddrPort]
}

// passOnTo sends what arrives to the other side's sender, until the port is
// closed.
func (s *forwarderSide) passOnTo(other *forwarderSide) {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // of a packet that was sent before
		}
		if last := s.sender.Load(); last == nil || *last != from {
			s.sender.Store(&from)
		}
		if to := other.sender.Load(); to != nil {
			_, _ = other.conn.WriteToUDPAddrPort(buffer[:n], *to) // lost, as in a network
		}
	}
}
