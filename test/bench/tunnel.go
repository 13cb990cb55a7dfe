//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// tunnelArgs describe one end of a bare WireGuard tunnel: no daemon, no
// firewall, the libraries' own defaults.
type tunnelArgs struct {
	Kernel     bool
	PrivateKey []byte
	MTU        int
	Address    netip.Addr
	PeerKey    []byte
	Endpoint   netip.AddrPort
	AllowedIPs []netip.Prefix
	// Keepalive, if not zero, is how often to send something in any case: it opens
	// the ways of NATs and keeps them open.
	Keepalive time.Duration
}

// playTunnel is one end of the tunnel until stdin ends.
func playTunnel(r *roleInput) error {
	var args tunnelArgs
	if err := r.args(&args); err != nil {
		return err
	}
	closeDevice, err := openPlainDevice(plainDevice{kernel: args.Kernel, key: wgtypes.Key(args.PrivateKey), mtu: args.MTU})
	if err != nil {
		return err
	}
	defer closeDevice()
	if err := errors.Join(args.setPeer(), args.configureLink()); err != nil {
		return err
	}
	if err := answerRole(true); err != nil {
		return err
	}
	return r.end()
}

func (t tunnelArgs) setPeer() error {
	client, err := wgctrl.New()
	if err != nil {
		return err
	}
	peer := wgtypes.PeerConfig{PublicKey: wgtypes.Key(t.PeerKey), Endpoint: net.UDPAddrFromAddrPort(t.Endpoint)}
	if t.Keepalive != 0 {
		peer.PersistentKeepaliveInterval = &t.Keepalive
	}
	for _, prefix := range t.AllowedIPs {
		peer.AllowedIPs = append(peer.AllowedIPs, ipNet(prefix))
	}
	err = client.ConfigureDevice(tunnelLink, wgtypes.Config{Peers: []wgtypes.PeerConfig{peer}})
	return errors.Join(err, client.Close())
}

// configureLink gives the device its address and routes.
func (t tunnelArgs) configureLink() error {
	link, err := netlink.LinkByName(tunnelLink)
	if err != nil {
		return err
	}
	address := ipNet(netip.PrefixFrom(t.Address, t.Address.BitLen()))
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &address}); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link up: %w", err)
	}
	for _, prefix := range t.AllowedIPs {
		destination := ipNet(prefix)
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: &destination, Src: t.Address.AsSlice()}); err != nil {
			return fmt.Errorf("add route to %v: %w", prefix, err)
		}
	}
	return nil
}

func ipNet(prefix netip.Prefix) net.IPNet {
	return net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
