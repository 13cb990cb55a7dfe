package wireguard

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Diff returns what turns the peers that a device has into those wanted, and
// nothing if they are the same. It is pure.
//
// Peers that are not wanted come first, then addresses that peers lose, then
// the rest, so that an address which moves is with nobody for a moment, and no
// peer takes it from another. A peer may occur twice by that. One that stays
// keeps its session whatever changes about it.
//
// WireGuard replaces a peer's endpoint by the address its packets come from, so
// an endpoint that differs from the wanted one is not wrong. It is written only
// if the wanted endpoint is another than last time: written holds what was
// wanted last time, by public key. A peer without any endpoint always gets the
// wanted one.
func Diff(have []wgtypes.Peer, want []Peer, written map[wgtypes.Key]netip.AddrPort) []wgtypes.PeerConfig {
	wanted := make(map[wgtypes.Key]bool, len(want))
	for i := range want {
		wanted[want[i].PublicKey] = true
	}
	existing := make(map[wgtypes.Key]*wgtypes.Peer, len(have))
	var removed, shrunk, others []wgtypes.PeerConfig
	for i := range have {
		key := have[i].PublicKey
		existing[key] = &have[i]
		if !wanted[key] {
			removed = append(removed, wgtypes.PeerConfig{PublicKey: key, Remove: true})
		}
	}
	for i := range want {
		peer, known := existing[want[i].PublicKey]
		if !known {
			others = append(others, newPeer(&want[i]))
			continue
		}
		if shrink, differs := shrunkPeer(peer, &want[i]); differs {
			shrunk = append(shrunk, shrink)
		}
		if config, differs := changedPeer(peer, &want[i], written); differs {
			others = append(others, config)
		}
	}
	return slices.Concat(removed, shrunk, others)
}

func newPeer(want *Peer) wgtypes.PeerConfig {
	keepalive := want.Keepalive
	return wgtypes.PeerConfig{
		PublicKey:                   want.PublicKey,
		Endpoint:                    udpAddr(want.Endpoint),
		PersistentKeepaliveInterval: &keepalive,
		ReplaceAllowedIPs:           true,
		AllowedIPs:                  ipNets(want.AllowedIPs),
	}
}

// shrunkPeer leaves a peer those of its addresses that it is to have. It can
// only replace them, so they are gone for a moment.
func shrunkPeer(have *wgtypes.Peer, want *Peer) (wgtypes.PeerConfig, bool) {
	config := wgtypes.PeerConfig{PublicKey: want.PublicKey, UpdateOnly: true, ReplaceAllowedIPs: true}
	for _, held := range have.AllowedIPs {
		if slices.Contains(want.AllowedIPs, prefixOf(held)) {
			config.AllowedIPs = append(config.AllowedIPs, held)
		}
	}
	return config, len(config.AllowedIPs) < len(have.AllowedIPs)
}

// changedPeer sets what differs, and adds the addresses that are missing.
func changedPeer(have *wgtypes.Peer, want *Peer, written map[wgtypes.Key]netip.AddrPort) (wgtypes.PeerConfig, bool) {
	config := wgtypes.PeerConfig{PublicKey: want.PublicKey, UpdateOnly: true}
	differs := false
	current := addrPort(have.Endpoint)
	if want.Endpoint.IsValid() && current != want.Endpoint && (!current.IsValid() || written[want.PublicKey] != want.Endpoint) {
		config.Endpoint, differs = udpAddr(want.Endpoint), true
	}
	if have.PersistentKeepaliveInterval != want.Keepalive {
		keepalive := want.Keepalive
		config.PersistentKeepaliveInterval, differs = &keepalive, true
	}
	missing := slices.DeleteFunc(slices.Clone(want.AllowedIPs), func(prefix netip.Prefix) bool {
		return slices.ContainsFunc(have.AllowedIPs, func(n net.IPNet) bool { return prefixOf(n) == prefix })
	})
	if len(missing) > 0 {
		config.AllowedIPs, differs = ipNets(missing), true
	}
	return config, differs
}

// staleHandshake is the age at which a session is certainly over: WireGuard
// refuses keys after 180 s.
const staleHandshake = 180 * time.Second

// settled returns what Diff should take for the endpoints wanted last time,
// given what this process has written itself.
//
// A device found at the start may have endpoints that roamed before; they stay
// while they work, as told by a recent handshake. An endpoint that roamed and
// no longer answers falls back to the wanted one, or two nodes that both moved
// would wait for each other forever.
func settled(have []wgtypes.Peer, want []Peer, written map[wgtypes.Key]netip.AddrPort, now time.Time) map[wgtypes.Key]netip.AddrPort {
	answered := make(map[wgtypes.Key]bool, len(have))
	for i := range have {
		answered[have[i].PublicKey] = now.Sub(have[i].LastHandshakeTime) < staleHandshake
	}
	last := make(map[wgtypes.Key]netip.AddrPort, len(want))
	for i := range want {
		key := want[i].PublicKey
		if !answered[key] {
			continue
		}
		if endpoint, ours := written[key]; ours {
			last[key] = endpoint
		} else {
			last[key] = want[i].Endpoint
		}
	}
	return last
}

func udpAddr(endpoint netip.AddrPort) *net.UDPAddr {
	if !endpoint.IsValid() {
		return nil
	}
	return net.UDPAddrFromAddrPort(endpoint)
}

// addrPort drops the zone, which is about a link of ours and no part of what
// can be wanted.
func addrPort(addr *net.UDPAddr) netip.AddrPort {
	if addr == nil {
		return netip.AddrPort{}
	}
	ip, ok := netip.AddrFromSlice(addr.IP)
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(addr.Port))
}

func ipNets(prefixes []netip.Prefix) []net.IPNet {
	nets := make([]net.IPNet, len(prefixes))
	for i, prefix := range prefixes {
		nets[i] = net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
	}
	return nets
}

func prefixOf(n net.IPNet) netip.Prefix {
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, bits := n.Mask.Size()
	if bits == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, ones)
}
