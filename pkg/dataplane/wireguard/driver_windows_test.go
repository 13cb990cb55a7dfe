package wireguard

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"golang.zx2c4.com/wireguard/windows/driver"
)

// What is written for the driver reads as it was meant, and flags say what is set.
func TestDriverConfiguration(t *testing.T) {
	key, port, keepalive := testKey(t), 51820, 25*time.Second
	first, second := planned(2), planned(3)
	config := wgtypes.Config{PrivateKey: &key, ListenPort: &port, Peers: []wgtypes.PeerConfig{
		newPeer(&first),
		{PublicKey: second.PublicKey, UpdateOnly: true, Endpoint: udpAddr(netip.MustParseAddrPort("[2001:db8::3]:51821")), PersistentKeepaliveInterval: &keepalive},
		{PublicKey: planned(4).PublicKey, Remove: true},
	}}
	written, size := writeDriver(config)
	if size == 0 || written.PeerCount != 3 {
		t.Fatalf("%d peers in %d bytes", written.PeerCount, size)
	}
	want := &wgtypes.Device{
		Type: wgtypes.WindowsKernel, PrivateKey: key, PublicKey: key.PublicKey(), ListenPort: port,
		Peers: []wgtypes.Peer{
			{PublicKey: first.PublicKey, Endpoint: udpAddr(first.Endpoint), PersistentKeepaliveInterval: first.Keepalive, AllowedIPs: ipNets(first.AllowedIPs)},
			{PublicKey: second.PublicKey, Endpoint: udpAddr(netip.MustParseAddrPort("[2001:db8::3]:51821")), PersistentKeepaliveInterval: keepalive},
			{PublicKey: planned(4).PublicKey},
		},
	}
	if diff := cmp.Diff(want, readDriver(written)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	added := written.FirstPeer()
	updated := added.NextPeer()
	removed := updated.NextPeer()
	for at, flags := range map[*driver.Peer]driver.PeerFlag{
		added:   driver.PeerHasPublicKey | driver.PeerHasEndpoint | driver.PeerHasPersistentKeepalive | driver.PeerReplaceAllowedIPs,
		updated: driver.PeerHasPublicKey | driver.PeerHasEndpoint | driver.PeerHasPersistentKeepalive | driver.PeerUpdateOnly,
		removed: driver.PeerHasPublicKey | driver.PeerRemove,
	} {
		if at.Flags != flags {
			t.Errorf("flags %#x, want %#x", at.Flags, flags)
		}
	}
	removed.LastHandshake = 133_000_000_000_000_000 // in 100 ns since 1601
	if got, want := readDriverPeer(removed).LastHandshakeTime.UTC(), time.Date(2022, 6, 18, 4, 26, 40, 0, time.UTC); !got.Equal(want) {
		t.Errorf("last handshake %v, want %v", got, want)
	}
}
