//go:build linux || windows

package wireguard

import (
	"fmt"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// up opens the sockets.
func (u *userspace) up(port int) error {
	if err := u.device.Up(); err != nil {
		return fmt.Errorf("bring wireguard-go up: %w", portError(port, err))
	}
	return nil
}

// dead reports whether wireguard-go has given up.
func (u *userspace) dead() bool {
	select {
	case <-u.device.Wait():
		return true
	default:
		return false
	}
}

// greet begins a handshake with each peer at once. After a start that ends the
// silence at the first round trip; by themselves the peers would notice after
// 15 s that nobody knows their sessions any more. A device that receives more
// than 128 handshakes at once begins to refuse some, so wait is called now and
// then.
func (u *userspace) greet(keys []wgtypes.Key, wait func() error) error {
	const atOnce = 32
	for i, key := range keys {
		if i > 0 && i%atOnce == 0 {
			if err := wait(); err != nil {
				return err
			}
		}
		if peer := u.device.LookupPeer(device.NoisePublicKey(key)); peer != nil {
			_ = peer.SendHandshakeInitiation(false) // it tries again by itself
		}
	}
	return nil
}
