// Package ping asks many addresses at once whether anybody is there, by ICMP
// echo requests from addresses of this host. It needs the right to open raw
// sockets, and has no state: each call opens what it needs and closes it again. It
// waits for those who do not answer until its context ends, which needs a deadline.
package ping

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
)

// Echo sends one echo request to each of targets, from the first of from that is
// of its family, and returns who answered before ctx ended and how soon. It
// returns as soon as all have. A target that a request cannot be sent to is one
// that does not answer; an error is about this host and a family, and says nothing
// of that one's targets: who of the other answered is returned beside it.
func Echo(ctx context.Context, from, targets []netip.Addr) (map[netip.Addr]time.Duration, error) {
	rounds := []*round{{family: echo4, asked: map[netip.Addr]uint32{}}, {family: echo6, asked: map[netip.Addr]uint32{}}}
	for _, target := range targets {
		one := roundOf(rounds, target)
		if _, twice := one.asked[target.Unmap()]; !twice {
			one.asked[target.Unmap()] = uint32(len(one.targets))
			one.targets = append(one.targets, target.Unmap())
		}
	}
	for _, source := range from {
		if one := roundOf(rounds, source); !one.from.IsValid() {
			one.from = source.Unmap()
		}
	}
	var running errgroup.Group
	for _, one := range rounds {
		if len(one.targets) > 0 {
			running.Go(func() error { return one.run(ctx) })
		}
	}
	err := running.Wait()
	if err != nil {
		err = fmt.Errorf("send echo requests: %w", err)
	}
	answered := make(map[netip.Addr]time.Duration, len(targets))
	for _, one := range rounds {
		for i, took := range one.took {
			if took > 0 {
				answered[one.targets[i]] = took
			}
		}
	}
	return answered, err
}

func roundOf(rounds []*round, addr netip.Addr) *round {
	if addr.Unmap().Is4() {
		return rounds[0]
	}
	return rounds[1]
}

// family is how one family's echo is spoken.
type family int

const (
	echo4 family = iota
	echo6
)

func (f family) network() string { return []string{"ip4:icmp", "ip6:ipv6-icmp"}[f] }
func (f family) protocol() int   { return []int{1, 58}[f] } // IANA's numbers of ICMP and ICMPv6
func (f family) request() icmp.Type {
	return []icmp.Type{ipv4.ICMPTypeEcho, ipv6.ICMPTypeEchoRequest}[f]
}
func (f family) reply() icmp.Type {
	return []icmp.Type{ipv4.ICMPTypeEchoReply, ipv6.ICMPTypeEchoReply}[f]
}

// nonceSize is how many random bytes tell the answers to one round.
const nonceSize = 8

// round is one request to each of the targets of one family.
type round struct {
	family
	from    netip.Addr
	targets []netip.Addr
	asked   map[netip.Addr]uint32 // their numbers
	nonce   [nonceSize]byte
	sent    []time.Time     // is the sender's
	got     []time.Time     // is the receiver's; zero for one that did not answer
	took    []time.Duration // 0 for one that did not answer
}

func (r *round) run(ctx context.Context) error {
	if !r.from.IsValid() {
		return fmt.Errorf("this host has no address to ask %s from", r.targets[0])
	}
	conn, err := icmp.ListenPacket(r.network(), r.from.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	r.filter(conn)
	_, _ = rand.Read(r.nonce[:]) // it cannot fail
	count := len(r.targets)
	r.sent, r.got, r.took = make([]time.Time, count), make([]time.Time, count), make([]time.Duration, count)
	var left atomic.Int64 // those that may still answer
	left.Store(int64(count))
	var receiving errgroup.Group // from before the first is sent: the socket has room for few answers
	receiving.Go(func() error { return r.receive(conn, &left) })
	unsent := r.send(ctx, conn, &left)
	if err := errors.Join(unsent, receiving.Wait()); err != nil {
		return err
	}
	for i, got := range r.got {
		if !got.IsZero() {
			r.took[i] = max(got.Sub(r.sent[i]), 1)
		}
	}
	return nil
}

const (
	// burst is how many requests are sent at once, burstPause how long the
	// receiver then has for their answers: fewer than a socket's buffer takes.
	burst      = 64
	burstPause = 2 * time.Millisecond
)

// send sends all requests, and ends the receiving if none of them can be answered any more.
func (r *round) send(ctx context.Context, conn *icmp.PacketConn, left *atomic.Int64) error {
	for i, target := range r.targets {
		if i > 0 && i%burst == 0 {
			select {
			case <-time.After(burstPause):
			case <-ctx.Done():
			}
		}
		request, err := r.render(uint32(i))
		if err != nil {
			_ = conn.SetDeadline(time.Unix(1, 0))
			return err
		}
		r.sent[i] = time.Now()
		if _, err := conn.WriteTo(request, &net.IPAddr{IP: target.AsSlice(), Zone: target.Zone()}); err != nil && left.Add(-1) == 0 {
			_ = conn.SetDeadline(time.Unix(1, 0))
		}
	}
	return nil
}

// receive notes the answers, until there are all or the deadline has passed.
func (r *round) receive(conn *icmp.PacketConn, left *atomic.Int64) error {
	buf := make([]byte, 2048)
	for {
		n, peer, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive echo replies: %w", err)
		}
		if i, ok := r.match(buf[:n], peer); ok && r.got[i].IsZero() {
			r.got[i] = time.Now()
			if left.Add(-1) == 0 {
				return nil
			}
		}
	}
}

// filter has the kernel hand up replies alone, where it can.
func (r *round) filter(conn *icmp.PacketConn) {
	if p := conn.IPv4PacketConn(); p != nil {
		var filter ipv4.ICMPFilter
		filter.SetAll(true)
		filter.Accept(ipv4.ICMPTypeEchoReply)
		_ = p.SetICMPFilter(&filter) // match looks at the type as well
	}
	if p := conn.IPv6PacketConn(); p != nil {
		var filter ipv6.ICMPFilter
		filter.SetAll(true)
		filter.Accept(ipv6.ICMPTypeEchoReply)
		_ = p.SetICMPFilter(&filter)
	}
}

// id and sequence are those of request number i.
func (r *round) id() int              { return int(binary.BigEndian.Uint16(r.nonce[:])) }
func (*round) sequence(i uint32) int  { return int(i & 0xffff) }
func (r *round) data(i uint32) []byte { return binary.BigEndian.AppendUint32(r.nonce[:], i) }

// render is request number i.
func (r *round) render(i uint32) ([]byte, error) {
	message := icmp.Message{Type: r.request(), Body: &icmp.Echo{ID: r.id(), Seq: r.sequence(i), Data: r.data(i)}}
	request, err := message.Marshal(nil) // the kernel computes the checksum of IPv6
	if err != nil {
		return nil, fmt.Errorf("render an echo request to %s: %w", r.targets[i], err)
	}
	return request, nil
}

// match returns the number of the request that data answers, which may be
// anything that came in from anybody.
func (r *round) match(data []byte, peer net.Addr) (i uint32, ok bool) {
	from, isIP := peer.(*net.IPAddr)
	if !isIP {
		return 0, false
	}
	addr, _ := netip.AddrFromSlice(from.IP)
	if i, ok = r.asked[addr.Unmap()]; !ok {
		return 0, false
	}
	message, err := icmp.ParseMessage(r.protocol(), data)
	if err != nil || message.Type != r.reply() {
		return 0, false
	}
	echo, isEcho := message.Body.(*icmp.Echo)
	if !isEcho || echo.ID != r.id() || echo.Seq != r.sequence(i) {
		return 0, false
	}
	return i, string(echo.Data) == string(r.data(i))
}
