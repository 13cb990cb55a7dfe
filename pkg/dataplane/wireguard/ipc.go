package wireguard

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// ipcConfigurer configures a wireguard-go of this process, by the text of
// https://www.wireguard.com/xplatform/ and without a socket or a pipe.
type ipcConfigurer struct{ device *device.Device }

// Device returns the device's key, port and peers. The name is not looked at.
func (c ipcConfigurer) Device(name string) (*wgtypes.Device, error) {
	text, err := c.device.IpcGet()
	if err != nil {
		return nil, err
	}
	found, err := parseIPC(text)
	if err != nil {
		return nil, err
	}
	found.Name = name
	return found, nil
}

// ConfigureDevice writes config. The name is not looked at.
func (c ipcConfigurer) ConfigureDevice(_ string, config wgtypes.Config) error {
	return c.device.IpcSet(renderIPC(config))
}

// Close does nothing: there is nothing to close.
func (ipcConfigurer) Close() error { return nil }

// renderIPC writes config as a set operation without its first line. Of a
// device it knows the key and the port, of peers all that Diff writes.
func renderIPC(config wgtypes.Config) string {
	var b strings.Builder
	line := func(key string, value any) { _, _ = fmt.Fprintf(&b, "%s=%v\n", key, value) }
	if config.PrivateKey != nil {
		line("private_key", hex.EncodeToString(config.PrivateKey[:]))
	}
	if config.ListenPort != nil {
		line("listen_port", *config.ListenPort)
	}
	for i := range config.Peers {
		peer := &config.Peers[i]
		line("public_key", hex.EncodeToString(peer.PublicKey[:]))
		if peer.Remove {
			line("remove", true)
			continue
		}
		if peer.UpdateOnly {
			line("update_only", true)
		}
		if peer.Endpoint != nil {
			line("endpoint", addrPort(peer.Endpoint))
		}
		if peer.PersistentKeepaliveInterval != nil {
			line("persistent_keepalive_interval", int(*peer.PersistentKeepaliveInterval/time.Second))
		}
		if peer.ReplaceAllowedIPs {
			line("replace_allowed_ips", true)
		}
		for _, allowed := range peer.AllowedIPs {
			line("allowed_ip", prefixOf(allowed))
		}
	}
	return b.String()
}

// parseIPC reads the answer to a get operation. Keys that it does not know are
// skipped. Its errors do not show values, one of which is the private key.
func parseIPC(text string) (*wgtypes.Device, error) {
	found := &wgtypes.Device{Type: wgtypes.Userspace}
	lines := bufio.NewScanner(strings.NewReader(text))
	for number := 1; lines.Scan(); number++ {
		key, value, isPair := strings.Cut(lines.Text(), "=")
		if !isPair {
			return nil, fmt.Errorf("line %d of wireguard-go's answer is no pair", number)
		}
		if err := setIPC(found, key, value); err != nil {
			return nil, fmt.Errorf("%s in wireguard-go's answer: %w", key, err)
		}
	}
	found.PublicKey = found.PrivateKey.PublicKey()
	return found, lines.Err()
}

// setIPC takes one pair into the device, or into its last peer once there is one.
func setIPC(found *wgtypes.Device, key, value string) (err error) {
	switch key {
	case "private_key":
		found.PrivateKey, err = keyOfHex(value)
		return err
	case "listen_port":
		found.ListenPort, err = ipcNumber[int](value)
		return err
	case "public_key":
		public, err := keyOfHex(value)
		found.Peers = append(found.Peers, wgtypes.Peer{PublicKey: public})
		return err
	}
	if len(found.Peers) == 0 {
		return nil
	}
	return setIPCPeer(&found.Peers[len(found.Peers)-1], key, value)
}

func setIPCPeer(peer *wgtypes.Peer, key, value string) (err error) {
	switch key {
	case "endpoint":
		endpoint, parseErr := netip.ParseAddrPort(value)
		peer.Endpoint, err = net.UDPAddrFromAddrPort(endpoint), parseErr
	case "last_handshake_time_sec":
		var seconds int64
		if seconds, err = ipcNumber[int64](value); seconds != 0 {
			peer.LastHandshakeTime = time.Unix(seconds, 0)
		}
	case "last_handshake_time_nsec": // stands behind the seconds
		var nanoseconds int64
		if nanoseconds, err = ipcNumber[int64](value); nanoseconds != 0 && !peer.LastHandshakeTime.IsZero() {
			peer.LastHandshakeTime = peer.LastHandshakeTime.Add(time.Duration(nanoseconds))
		}
	case "rx_bytes":
		peer.ReceiveBytes, err = ipcNumber[int64](value)
	case "tx_bytes":
		peer.TransmitBytes, err = ipcNumber[int64](value)
	case "persistent_keepalive_interval":
		var seconds int64
		seconds, err = ipcNumber[int64](value)
		peer.PersistentKeepaliveInterval = time.Duration(seconds) * time.Second
	case "allowed_ip":
		var prefix netip.Prefix
		if prefix, err = netip.ParsePrefix(value); err == nil {
			peer.AllowedIPs = append(peer.AllowedIPs, ipNets([]netip.Prefix{prefix})...)
		}
	}
	return err
}

func ipcNumber[T int | int64](value string) (T, error) {
	number, err := strconv.ParseInt(value, 10, 64)
	return T(number), err
}

// keyOfHex parses a key. The errors of package hex show single bytes only.
func keyOfHex(value string) (wgtypes.Key, error) {
	raw, err := hex.DecodeString(value)
	if err != nil {
		return wgtypes.Key{}, err
	}
	return wgtypes.NewKey(raw)
}
