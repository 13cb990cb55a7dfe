//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// peersArgs say what a process measures.
type peersArgs struct {
	Contender string
	Kernel    bool
	Count     int
}

// peerSetter is a contender: it makes a device have exactly these peers.
type peerSetter interface {
	set(ctx context.Context, peers []wireguard.Peer) error
	// change makes it have these, of which only peers[i] is new.
	change(ctx context.Context, peers []wireguard.Peer, i int) error
	close() error
}

// playPeers measures one contender and answers a peersResult.
func playPeers(r *roleInput) error {
	var args peersArgs
	if err := r.args(&args); err != nil {
		return err
	}
	ctx := context.Background()
	peers, err := manyPeersOf(args.Count)
	if err != nil {
		return err
	}
	setter, err := args.open(ctx)
	if err != nil {
		return err
	}
	result, err := measureSetter(ctx, setter, peers)
	if err == nil {
		result.Resident, _, err = settledMemory(ctx, os.Getpid())
	}
	if ours, ok := setter.(ourSetter); ok && err == nil {
		err = countWrites(ctx, ours, peers, &result)
	}
	if err := errors.Join(err, setter.close()); err != nil {
		return err
	}
	if err := answerRole(result); err != nil {
		return err
	}
	return r.end()
}

// measureSetter takes the times.
func measureSetter(ctx context.Context, setter peerSetter, peers []wireguard.Peer) (peersResult, error) {
	var result peersResult
	for _, step := range []struct {
		into *float64
		do   func() error
	}{
		{&result.Apply, func() error { return setter.set(ctx, peers) }},
		{&result.Change, func() error { return setter.change(ctx, peers, moveOne(peers, 1)) }},
		{&result.Unchanged, func() error { return setter.set(ctx, peers) }},
	} {
		started := time.Now()
		if err := step.do(); err != nil {
			return result, err
		}
		*step.into = inMilliseconds(time.Since(started))
	}
	return result, nil
}

// countWrites changes one peer and then none once more, and counts what is
// written; listening would disturb the times.
func countWrites(ctx context.Context, setter ourSetter, peers []wireguard.Peer, result *peersResult) error {
	setter.writes.watch()
	if err := setter.change(ctx, peers, moveOne(peers, 2)); err != nil {
		return err
	}
	result.WrittenByChange = setter.writes.written()
	setter.writes.watch()
	if err := setter.set(ctx, peers); err != nil {
		return err
	}
	result.WrittenByNone = setter.writes.written()
	return nil
}

// moveOne gives a peer in the middle a new endpoint and returns its number.
func moveOne(peers []wireguard.Peer, host byte) int {
	moved := len(peers) / 2
	peers[moved].Endpoint = netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 31, 250, host}), cluster.ListenPort)
	return moved
}

// manyPeersOf returns n peers with a slice of each family.
func manyPeersOf(n int) ([]wireguard.Peer, error) {
	peers := make([]wireguard.Peer, n)
	for i := range peers {
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return nil, err
		}
		high, low := byte((i+1)>>8), byte(i+1)
		peers[i] = wireguard.Peer{
			Node:      fmt.Sprintf("node-%d", i),
			PublicKey: key.PublicKey(),
			Endpoint:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 31, high, low}), cluster.ListenPort),
			AllowedIPs: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, high, low, 0}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x42, 6: high, 7: low}), 64),
			},
		}
	}
	return peers, nil
}

func (a peersArgs) open(ctx context.Context) (peerSetter, error) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return nil, err
	}
	switch a.Contender {
	case "ours":
		return openOurs(ctx, a.Kernel, key)
	case "bare wgctrl", "bare wgctrl and routes":
		return openBare(bareArgs{kernel: a.Kernel, key: key, routes: a.Contender == "bare wgctrl and routes"})
	}
	return nil, fmt.Errorf("unknown contender %q", a.Contender)
}

// ourSetter is the daemon's device.
type ourSetter struct {
	device *wireguard.Device
	writes *writeCounter
}

// bareMTU is wireguard-go's own default.
const bareMTU = 1420

// overlayAddrs are the device's own, outside of all peers' slices.
func overlayAddrs() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("10.255.0.1"), netip.MustParseAddr("fd42:ffff::1")}
}

func openOurs(ctx context.Context, kernel bool, key wgtypes.Key) (peerSetter, error) {
	backend := wireguard.Userspace
	if kernel {
		backend = wireguard.Kernel
	}
	writes := &writeCounter{}
	device, err := wireguard.Open(ctx, wireguard.Config{
		Name: tunnelLink, Backend: backend, PrivateKey: wireguard.NewPrivateKey(key),
		ListenPort: cluster.ListenPort, MTU: bareMTU, Addresses: overlayAddrs(), Log: slog.New(writes),
	})
	if err != nil {
		return nil, err
	}
	return ourSetter{device: device, writes: writes}, nil
}

func (o ourSetter) set(ctx context.Context, peers []wireguard.Peer) error {
	return o.device.SetPeers(ctx, peers)
}

func (o ourSetter) change(ctx context.Context, peers []wireguard.Peer, _ int) error {
	return o.device.SetPeers(ctx, peers)
}

func (o ourSetter) close() error { return o.device.Close() }

// bareSetter calls wgctrl, and netlink for routes, without reading anything
// first: the least there is to write.
type bareSetter struct {
	client      *wgctrl.Client
	link        netlink.Link
	routes      bool
	closeDevice func()
}

type bareArgs struct {
	kernel, routes bool
	key            wgtypes.Key
}

func openBare(args bareArgs) (peerSetter, error) {
	closeDevice, err := openPlainDevice(plainDevice{kernel: args.kernel, key: args.key, mtu: bareMTU})
	if err != nil {
		return nil, err
	}
	client, err := wgctrl.New()
	if err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(tunnelLink)
	if err != nil {
		return nil, err
	}
	for _, addr := range overlayAddrs() {
		full := ipNet(netip.PrefixFrom(addr, addr.BitLen()))
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &full}); err != nil {
			return nil, err
		}
	}
	return &bareSetter{client: client, link: link, routes: args.routes, closeDevice: closeDevice}, netlink.LinkSetUp(link)
}

func (s *bareSetter) set(_ context.Context, peers []wireguard.Peer) error {
	configs := make([]wgtypes.PeerConfig, len(peers))
	for i, peer := range peers {
		configs[i] = bareConfig(peer)
	}
	if err := s.client.ConfigureDevice(tunnelLink, wgtypes.Config{Peers: configs}); err != nil {
		return err
	}
	if !s.routes {
		return nil
	}
	for _, peer := range peers {
		for _, prefix := range peer.AllowedIPs {
			destination := ipNet(prefix)
			way := &netlink.Route{LinkIndex: s.link.Attrs().Index, Dst: &destination, Scope: netlink.SCOPE_LINK}
			if prefix.Addr().Is6() {
				way.Scope = netlink.SCOPE_UNIVERSE
			}
			if err := netlink.RouteReplace(way); err != nil {
				return fmt.Errorf("route to %v: %w", prefix, err)
			}
		}
	}
	return nil
}

func (s *bareSetter) change(_ context.Context, peers []wireguard.Peer, i int) error {
	return s.client.ConfigureDevice(tunnelLink, wgtypes.Config{Peers: []wgtypes.PeerConfig{bareConfig(peers[i])}})
}

func (s *bareSetter) close() error {
	s.closeDevice()
	return s.client.Close()
}

func bareConfig(peer wireguard.Peer) wgtypes.PeerConfig {
	config := wgtypes.PeerConfig{PublicKey: peer.PublicKey, Endpoint: net.UDPAddrFromAddrPort(peer.Endpoint), ReplaceAllowedIPs: true}
	for _, prefix := range peer.AllowedIPs {
		config.AllowedIPs = append(config.AllowedIPs, ipNet(prefix))
	}
	return config
}
