//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun/v4"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/natlab"
)

// bareTunnel is a tunnel without daemons between two machines, each behind one of
// the routers of a pair of nodes.
type bareTunnel struct {
	name       string
	ends       [2]*bareTunnelEnd
	forwarders []*actor // that its packets pass, the one on the relay's machine last
}

type bareTunnelEnd struct {
	host    *natlab.Host
	key     wgtypes.Key
	tunnel  netip.Addr
	process *actor
}

// newBareTunnel makes the machines. The number is the tunnel's among all.
func newBareTunnel(pair *natPair, name string, number byte) (*bareTunnel, error) {
	t := &bareTunnel{name: name}
	for i := range t.ends {
		host, err := pair.routers[i].Host(fmt.Sprintf("%s-bare-%d", pair.member(i), number))
		if err != nil {
			return nil, err
		}
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return nil, err
		}
		t.ends[i] = &bareTunnelEnd{host: host, key: key, tunnel: netip.AddrFrom4([4]byte{10, 99, number, byte(i + 1)})}
	}
	return t, nil
}

// start runs both ends, each with the address to send to.
func (t *bareTunnel) start(ctx context.Context, endpoints [2]netip.AddrPort, args tunnelArgs) error {
	for i, end := range t.ends {
		args.Endpoint = endpoints[i]
		if err := end.start(ctx, t.ends[1-i], args); err != nil {
			return fmt.Errorf("start a bare tunnel on %s: %w", end.host.Name, err)
		}
	}
	return nil
}

// way is what is measured of the tunnel.
func (t *bareTunnel) way() route {
	way := route{name: t.name, from: t.ends[0].host.NS, to: t.ends[1].host.NS, addr: t.ends[1].tunnel}
	carriers := append([]*actor{t.ends[0].process, t.ends[1].process}, t.forwarders...)
	way.pids = func() []int {
		var pids []int
		for _, carrier := range carriers {
			pids = append(pids, carrier.pid())
		}
		return pids
	}
	if n := len(t.forwarders); n > 0 {
		way.hop = t.forwarders[n-1].pid
	}
	return way
}

func (t *bareTunnel) close() error {
	var errs []error
	for _, end := range t.ends {
		if end != nil && end.process != nil {
			errs = append(errs, end.process.end())
		}
	}
	for _, forwarder := range t.forwarders {
		errs = append(errs, forwarder.end())
	}
	return errors.Join(errs...)
}

// start runs the end towards peer. Both ends send first, so that their routers
// let in each other's packets.
func (t *bareTunnelEnd) start(ctx context.Context, peer *bareTunnelEnd, args tunnelArgs) error {
	const keepalive = 15 * time.Second // what a daemon's checks of its way amount to
	public := peer.key.PublicKey()
	args.PrivateKey, args.Address, args.PeerKey, args.Keepalive = t.key[:], t.tunnel, public[:], keepalive
	args.AllowedIPs = []netip.Prefix{netip.PrefixFrom(peer.tunnel, peer.tunnel.BitLen())}
	var ready bool
	var err error
	t.process, err = startRole(ctx, t.host.NS, "tunnel", args, &ready)
	return err
}

// mapping asks a STUN server what the router makes of the WireGuard port. It
// holds for every destination if the router's mappings do, and is still there
// when the tunnel starts.
func (t *bareTunnelEnd) mapping(server netip.AddrPort) (netip.AddrPort, error) {
	var conn *net.UDPConn
	err := t.host.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: cluster.ListenPort})
		return err
	})
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer func() { _ = conn.Close() }()
	seen, err := askSTUN(conn, server)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask %s how it sees %s: %w", server, t.host.Name, err)
	}
	return seen, nil
}

// askSTUN sends a binding request until it is answered.
func askSTUN(conn *net.UDPConn, server netip.AddrPort) (netip.AddrPort, error) {
	const tries = 10
	request, err := stun.Build(stun.TransactionID, stun.BindingRequest)
	if err != nil {
		return netip.AddrPort{}, err
	}
	buffer := make([]byte, 1500)
	for range tries {
		if _, err := conn.WriteToUDPAddrPort(request.Raw, server); err != nil {
			return netip.AddrPort{}, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return netip.AddrPort{}, err
		}
		n, err := conn.Read(buffer)
		if err != nil {
			continue
		}
		answer := &stun.Message{Raw: buffer[:n]}
		var seen stun.XORMappedAddress
		if answer.Decode() != nil || answer.TransactionID != request.TransactionID || seen.GetFrom(answer) != nil {
			continue
		}
		if addr, ok := netip.AddrFromSlice(seen.IP); ok {
			return netip.AddrPortFrom(addr.Unmap(), uint16(seen.Port)), nil
		}
	}
	return netip.AddrPort{}, errors.New("no answer")
}
