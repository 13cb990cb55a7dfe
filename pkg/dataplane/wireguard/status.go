package wireguard

import (
	"net"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// peerStatus joins the peers wanted with what the device says of them. Peers
// that the device has besides come last, without a name.
func peerStatus(want []Peer, have []wgtypes.Peer) []PeerStatus {
	existing := make(map[wgtypes.Key]*wgtypes.Peer, len(have))
	for i := range have {
		existing[have[i].PublicKey] = &have[i]
	}
	all := make([]PeerStatus, 0, len(have))
	for i := range want {
		if peer := existing[want[i].PublicKey]; peer != nil {
			all = append(all, statusOf(want[i].Node, peer))
			delete(existing, want[i].PublicKey)
		}
	}
	for i := range have {
		if existing[have[i].PublicKey] != nil {
			all = append(all, statusOf("", &have[i]))
		}
	}
	return all
}

func statusOf(node string, peer *wgtypes.Peer) PeerStatus {
	return PeerStatus{
		Node:          node,
		PublicKey:     peer.PublicKey,
		Endpoint:      addrPort(peer.Endpoint),
		LastHandshake: peer.LastHandshakeTime,
		RxBytes:       uint64(max(peer.ReceiveBytes, 0)),
		TxBytes:       uint64(max(peer.TransmitBytes, 0)),
		AllowedIPs:    prefixesOf(peer.AllowedIPs),
	}
}

func prefixesOf(nets []net.IPNet) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(nets))
	for i, n := range nets {
		prefixes[i] = prefixOf(n)
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes
}

func clonePeers(peers []Peer) []Peer {
	cloned := slices.Clone(peers)
	for i := range cloned {
		cloned[i].AllowedIPs = slices.Clone(cloned[i].AllowedIPs)
	}
	return cloned
}
