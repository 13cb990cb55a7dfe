//go:build linux

package main

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
)

// tunnelLink is the name of every bare device.
const tunnelLink = "wg0"

// plainDevice is a WireGuard device as the libraries make it by default.
type plainDevice struct {
	kernel bool
	key    wgtypes.Key
	mtu    int
}

// openPlainDevice makes a device without peers that wgctrl can find, and
// returns how to close it. A kernel device goes with its namespace.
func openPlainDevice(p plainDevice) (func(), error) {
	closeDevice := func() {}
	var err error
	if p.kernel {
		err = addWireGuard(&netlink.Handle{}, p.mtu)
	} else {
		closeDevice, err = openWireGuardGo(p.mtu)
	}
	if err != nil {
		return nil, err
	}
	client, err := wgctrl.New()
	if err != nil {
		return nil, err
	}
	port := cluster.ListenPort
	err = client.ConfigureDevice(tunnelLink, wgtypes.Config{PrivateKey: &p.key, ListenPort: &port})
	return closeDevice, errors.Join(err, client.Close())
}

// addWireGuard makes a kernel device.
func addWireGuard(handle *netlink.Handle, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = tunnelLink, mtu
	if err := handle.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("create WireGuard device: %w", err)
	}
	return nil
}

// openWireGuardGo is the main function of wireguard-go, in short.
func openWireGuardGo(mtu int) (func(), error) {
	tunnel, err := tun.CreateTUN(tunnelLink, mtu)
	if err != nil {
		return nil, fmt.Errorf("create tun: %w", err)
	}
	// The library's own logger writes to stdout, which is for a role's answers: it is full when nobody reads on.
	logger := &device.Logger{Verbosef: device.DiscardLogf, Errorf: log.New(os.Stderr, "", log.LstdFlags).Printf}
	dev := device.NewDevice(tunnel, conn.NewDefaultBind(), logger)
	listener, err := listenUAPI()
	if err != nil {
		dev.Close()
		return nil, err
	}
	go serveUAPI(listener, dev)
	return func() {
		_ = listener.Close()
		dev.Close()
	}, nil
}

func listenUAPI() (net.Listener, error) {
	file, err := ipc.UAPIOpen(tunnelLink)
	if err != nil {
		return nil, fmt.Errorf("open UAPI socket: %w", err)
	}
	listener, err := ipc.UAPIListen(tunnelLink, file)
	if err != nil {
		return nil, fmt.Errorf("listen on UAPI socket: %w", err)
	}
	return listener, nil
}

func serveUAPI(listener net.Listener, dev *device.Device) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return // closed
		}
		go dev.IpcHandle(conn)
	}
}
