//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// ICMP echo, RFC 792 and RFC 4443.
const (
	echoRequest4 = 8
	echoReply4   = 0
	echoRequest6 = 128
	echoReply6   = 129
	echoLen      = 8
)

// pinger sends echo requests from one namespace to one address.
type pinger struct {
	conn    *net.IPConn
	target  netip.Addr
	id      uint16
	payload []byte
}

// openPinger opens a raw socket in ns; payload rides in every request. The
// caller closes the pinger.
func openPinger(ns *netlab.NS, target netip.Addr, payload []byte) (*pinger, error) {
	network := "ip4:icmp"
	if target.Is6() {
		network = "ip6:ipv6-icmp"
	}
	p := &pinger{target: target, id: uint16(rand.Uint32()), payload: payload}
	err := ns.Do(func() error {
		conn, err := net.DialIP(network, nil, &net.IPAddr{IP: target.AsSlice()})
		p.conn = conn
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping %v from %s: %w", target, ns.Name, err)
	}
	return p, nil
}

func (p *pinger) close() error { return p.conn.Close() }

func (p *pinger) send(sequence uint16) error {
	packet := make([]byte, echoLen, echoLen+len(p.payload))
	packet[0] = echoRequest6 // the kernel fills ICMPv6's checksum in
	if p.target.Is4() {
		packet[0] = echoRequest4
	}
	binary.BigEndian.PutUint16(packet[4:], p.id)
	binary.BigEndian.PutUint16(packet[6:], sequence)
	packet = append(packet, p.payload...)
	if p.target.Is4() {
		binary.BigEndian.PutUint16(packet[2:], internetChecksum(packet))
	}
	_, err := p.conn.Write(packet)
	return err
}

// receive returns the sequence number of the next reply.
func (p *pinger) receive() (uint16, error) {
	want := byte(echoReply6)
	if p.target.Is4() {
		want = echoReply4
	}
	buffer := make([]byte, 2048)
	for {
		n, _, err := p.conn.ReadFromIP(buffer)
		if err != nil {
			return 0, err
		}
		if n >= echoLen && buffer[0] == want && binary.BigEndian.Uint16(buffer[4:]) == p.id {
			return binary.BigEndian.Uint16(buffer[6:]), nil
		}
	}
}

// echo sends requests until one is answered and returns that one's round trip
// and how many were sent. A tunnel's first packets may be lost while sessions
// are made, so it tries again every half second, until ctx ends.
func (p *pinger) echo(ctx context.Context) (took time.Duration, attempts int, err error) {
	const patience = 500 * time.Millisecond
	for attempts = 1; ; attempts++ {
		sent := time.Now()
		if err := p.send(uint16(attempts)); err != nil {
			return 0, attempts, fmt.Errorf("ping %v: %w", p.target, err)
		}
		err := p.await(uint16(attempts), sent.Add(patience))
		switch {
		case err == nil:
			return time.Since(sent), attempts, nil
		case ctx.Err() != nil:
			return 0, attempts, fmt.Errorf("ping %v: no answer to %d requests: %w", p.target, attempts, ctx.Err())
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return 0, attempts, fmt.Errorf("ping %v: %w", p.target, err)
		}
	}
}

func (p *pinger) await(sequence uint16, deadline time.Time) error {
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	for {
		got, err := p.receive()
		if err != nil {
			return err
		}
		if got == sequence {
			return nil
		}
	}
}

// internetChecksum is that of RFC 1071.
func internetChecksum(packet []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(packet); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(packet[i:]))
	}
	if len(packet)%2 == 1 {
		sum += uint32(packet[len(packet)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
