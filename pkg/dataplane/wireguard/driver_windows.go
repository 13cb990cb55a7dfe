package wireguard

import (
	"net/netip"
	"time"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"golang.zx2c4.com/wireguard/windows/driver"
)

// driverConfigurer configures an adapter of WireGuardNT by the handle that made it.
// wgctrl opens it anew by a path that it remembers, and tries that without end and
// pause if the adapter is there and does not let itself be opened.
type driverConfigurer struct{ adapter *driver.Adapter }

// Device returns the device's key, port and peers. The name is not looked at.
func (c driverConfigurer) Device(name string) (*wgtypes.Device, error) {
	have, err := c.adapter.Configuration()
	if err != nil {
		return nil, err
	}
	found := readDriver(have)
	found.Name = name
	return found, nil
}

// ConfigureDevice writes config. The name is not looked at.
func (c driverConfigurer) ConfigureDevice(_ string, config wgtypes.Config) error {
	return c.adapter.SetConfiguration(writeDriver(config))
}

// Close does nothing: the handle is the adapter's.
func (driverConfigurer) Close() error { return nil }

// writeDriver is config as the driver takes it: a device, each of its peers and
// behind each its prefixes. It knows what renderIPC does.
func writeDriver(config wgtypes.Config) (*driver.Interface, uint32) {
	var b driver.ConfigBuilder
	device := driver.Interface{PeerCount: uint32(len(config.Peers))}
	if config.PrivateKey != nil {
		device.PrivateKey = *config.PrivateKey
		device.Flags |= driver.InterfaceHasPrivateKey
	}
	if config.ListenPort != nil {
		device.ListenPort = uint16(*config.ListenPort)
		device.Flags |= driver.InterfaceHasListenPort
	}
	b.AppendInterface(&device)
	for i := range config.Peers {
		peer := driverPeer(&config.Peers[i])
		b.AppendPeer(&peer)
		for _, allowed := range config.Peers[i].AllowedIPs {
			to := driverPrefix(prefixOf(allowed))
			b.AppendAllowedIP(&to)
		}
	}
	return b.Interface()
}

func driverPeer(config *wgtypes.PeerConfig) driver.Peer {
	peer := driver.Peer{Flags: driver.PeerHasPublicKey, PublicKey: config.PublicKey, AllowedIPsCount: uint32(len(config.AllowedIPs))}
	if config.Remove {
		peer.Flags |= driver.PeerRemove
	}
	if config.UpdateOnly {
		peer.Flags |= driver.PeerUpdateOnly
	}
	if config.ReplaceAllowedIPs {
		peer.Flags |= driver.PeerReplaceAllowedIPs
	}
	if config.Endpoint != nil {
		endpoint := addrPort(config.Endpoint)
		if peer.Endpoint.SetAddrPort(endpoint) == nil { // it fails for no address alone
			peer.Flags |= driver.PeerHasEndpoint
		}
	}
	if config.PersistentKeepaliveInterval != nil {
		peer.PersistentKeepalive = uint16(*config.PersistentKeepaliveInterval / time.Second)
		peer.Flags |= driver.PeerHasPersistentKeepalive
	}
	return peer
}

func driverPrefix(prefix netip.Prefix) driver.AllowedIP {
	to := driver.AllowedIP{AddressFamily: familyIPv4, Cidr: uint8(prefix.Bits())}
	if prefix.Addr().Is6() {
		to.AddressFamily = familyIPv6
	}
	copy(to.Address[:], prefix.Addr().AsSlice())
	return to
}

// readDriver reads what the driver gives.
func readDriver(have *driver.Interface) *wgtypes.Device {
	found := &wgtypes.Device{Type: wgtypes.WindowsKernel}
	if have.Flags&driver.InterfaceHasPrivateKey != 0 {
		found.PrivateKey = have.PrivateKey
		found.PublicKey = found.PrivateKey.PublicKey()
	}
	if have.Flags&driver.InterfaceHasListenPort != 0 {
		found.ListenPort = int(have.ListenPort)
	}
	var peer *driver.Peer
	for range have.PeerCount {
		if peer == nil {
			peer = have.FirstPeer()
		} else {
			peer = peer.NextPeer()
		}
		found.Peers = append(found.Peers, readDriverPeer(peer))
	}
	return found
}

func readDriverPeer(have *driver.Peer) wgtypes.Peer {
	peer := wgtypes.Peer{PublicKey: have.PublicKey, ReceiveBytes: int64(have.RxBytes), TransmitBytes: int64(have.TxBytes)}
	if have.Flags&driver.PeerHasEndpoint != 0 {
		peer.Endpoint = udpAddr(have.Endpoint.AddrPort())
	}
	if have.Flags&driver.PeerHasPersistentKeepalive != 0 {
		peer.PersistentKeepaliveInterval = time.Duration(have.PersistentKeepalive) * time.Second
	}
	if have.LastHandshake != 0 {
		at := windows.Filetime{LowDateTime: uint32(have.LastHandshake), HighDateTime: uint32(have.LastHandshake >> 32)}
		peer.LastHandshakeTime = time.Unix(0, at.Nanoseconds())
	}
	var allowed *driver.AllowedIP
	for range have.AllowedIPsCount {
		if allowed == nil {
			allowed = have.FirstAllowedIP()
		} else {
			allowed = allowed.NextAllowedIP()
		}
		peer.AllowedIPs = append(peer.AllowedIPs, ipNets([]netip.Prefix{readDriverPrefix(allowed)})...)
	}
	return peer
}

func readDriverPrefix(have *driver.AllowedIP) netip.Prefix {
	if have.AddressFamily == familyIPv4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(have.Address[:4])), int(have.Cidr))
	}
	return netip.PrefixFrom(netip.AddrFrom16(have.Address), int(have.Cidr))
}
