package wireguard

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// newIPC returns a wireguard-go without a link or a socket.
func newIPC(t *testing.T) ipcConfigurer {
	t.Helper()
	bind := deafBind{conn.NewStdNetBind()}
	dev := device.NewDevice(tuntest.NewChannelTUN().TUN(), bind, device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(dev.Close)
	return ipcConfigurer{device: dev}
}

// deafBind opens no socket.
type deafBind struct{ conn.Bind }

func (deafBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) { return nil, port, nil }
func (deafBind) Close() error                                         { return nil }

// What is written is what is read, and then nothing differs any more: with a real
// wireguard-go.
func TestIPCWritesWhatDiffWants(t *testing.T) {
	first, second, moved := planned(2), planned(3), planned(2)
	moved.AllowedIPs = prefixes("10.200.7.0/24")
	moved.Keepalive = 20 * time.Second
	ipc, key, port := newIPC(t), testKey(t), 51820
	if err := ipc.ConfigureDevice("zl-wg", wgtypes.Config{PrivateKey: &key, ListenPort: &port}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name    string
		want    []Peer
		written int
	}{
		{name: "new", want: []Peer{first, second}, written: 2},
		{name: "the same", want: []Peer{first, second}},
		{name: "one changes", want: []Peer{moved, second}, written: 2},
		{name: "one goes", want: []Peer{second}, written: 1},
	} {
		have, err := ipc.Device("zl-wg")
		if err != nil {
			t.Fatal(err)
		}
		changes := Diff(have.Peers, step.want, nil)
		if len(changes) != step.written {
			t.Errorf("%s: %d changes, want %d", step.name, len(changes), step.written)
		}
		if err := ipc.ConfigureDevice("zl-wg", wgtypes.Config{Peers: changes}); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		have, err = ipc.Device("zl-wg")
		if err != nil {
			t.Fatal(err)
		}
		if left := Diff(have.Peers, step.want, nil); len(left) > 0 {
			t.Errorf("%s: %v differs after writing", step.name, lines(left))
		}
		if have.PrivateKey != key || have.PublicKey != key.PublicKey() || have.ListenPort != port || have.Name != "zl-wg" {
			t.Errorf("%s: device %s has key %v and port %d", step.name, have.Name, have.PublicKey, have.ListenPort)
		}
	}
}

func TestRenderIPC(t *testing.T) {
	peer := named("b")
	keepalive := 25 * time.Second
	endpoint := netip.MustParseAddrPort("[2001:db8::1]:51820")
	got := renderIPC(wgtypes.Config{Peers: []wgtypes.PeerConfig{
		{PublicKey: named("a"), Remove: true},
		{PublicKey: peer, UpdateOnly: true, ReplaceAllowedIPs: true, AllowedIPs: ipNets(prefixes("10.200.2.0/24", "fd00:200:0:2::/64"))},
		{PublicKey: peer, Endpoint: udpAddr(endpoint), PersistentKeepaliveInterval: &keepalive},
	}})
	gone := named("a")
	want := "public_key=" + hex.EncodeToString(gone[:]) + "\nremove=true\n" +
		"public_key=" + hex.EncodeToString(peer[:]) + "\nupdate_only=true\nreplace_allowed_ips=true\nallowed_ip=10.200.2.0/24\nallowed_ip=fd00:200:0:2::/64\n" +
		"public_key=" + hex.EncodeToString(peer[:]) + "\nendpoint=[2001:db8::1]:51820\npersistent_keepalive_interval=25\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
}

func TestParseIPC(t *testing.T) {
	key, peer := testKey(t), named("b")
	head := fmt.Sprintf("private_key=%x\nlisten_port=51820\nfwmark=7\npublic_key=%x\n", key[:], peer[:])
	got, err := parseIPC(head + "preshared_key=00\nendpoint=192.0.2.1:51820\nlast_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\n" +
		"tx_bytes=3\nrx_bytes=4\npersistent_keepalive_interval=25\nallowed_ip=10.200.2.0/24\n")
	if err != nil {
		t.Fatal(err)
	}
	want := &wgtypes.Device{
		Type: wgtypes.Userspace, PrivateKey: key, PublicKey: key.PublicKey(), ListenPort: 51820,
		Peers: []wgtypes.Peer{{
			PublicKey: peer, Endpoint: udpAddr(netip.MustParseAddrPort("192.0.2.1:51820")), LastHandshakeTime: time.Unix(1700000000, 5),
			TransmitBytes: 3, ReceiveBytes: 4, PersistentKeepaliveInterval: 25 * time.Second, AllowedIPs: ipNets(prefixes("10.200.2.0/24")),
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}
	for name, bad := range map[string]string{
		"no pair":         head + "endpoint\n",
		"key cut off":     strings.Replace(head, "private_key=", "private_key=00", 1),
		"key no hex":      strings.Replace(head, "private_key=", "private_key=g", 1),
		"port":            strings.Replace(head, "51820", "port", 1),
		"endpoint":        head + "endpoint=192.0.2.1\n",
		"allowed IP":      head + "allowed_ip=10.200.2.0\n",
		"bytes":           head + "rx_bytes=-\n",
		"handshake":       head + "last_handshake_time_sec=x\n",
		"a peer's key":    head + "public_key=00\n",
		"keepalive empty": head + "persistent_keepalive_interval=\n",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseIPC(bad); err == nil || strings.Contains(err.Error(), hex.EncodeToString(key[:8])) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func FuzzParseIPC(f *testing.F) {
	f.Add("private_key=00\nlisten_port=1\n")
	f.Add(fmt.Sprintf("public_key=%064x\nendpoint=[::1]:2\nlast_handshake_time_sec=1\nallowed_ip=::/0\n", 7))
	f.Add("=\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		found, err := parseIPC(text)
		if err == nil && len(found.Peers) != strings.Count("\n"+text, "\npublic_key=") {
			t.Errorf("%d peers in %q", len(found.Peers), text)
		}
	})
}
