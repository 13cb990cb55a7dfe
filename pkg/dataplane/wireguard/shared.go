package wireguard

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// sharedLen is the length of shared secrets in bytes.
const sharedLen = 32

// Shared returns a secret of 32 bytes that only the holders of k and of the
// private key of peer can derive, each from the other's public key: HKDF-SHA256
// of their X25519 secret, with both public keys, the smaller first, as the salt.
// Another purpose gives another secret, none of which tells anything of the
// others or of the keys. A public key that no private key has is an error.
func (k PrivateKey) Shared(peer wgtypes.Key, purpose string) ([]byte, error) {
	if k.IsZero() {
		return nil, errors.New("derive shared secret: no private key")
	}
	secret, err := k.exchange(peer)
	if err != nil {
		return nil, fmt.Errorf("derive shared secret with %v: %w", peer, err)
	}
	own := k.PublicKey()
	first, second := own[:], peer[:]
	if bytes.Compare(first, second) > 0 {
		first, second = second, first
	}
	shared, err := hkdf.Key(sha256.New, secret, slices.Concat(first, second), purpose, sharedLen)
	if err != nil {
		return nil, fmt.Errorf("derive shared secret with %v: %w", peer, err)
	}
	return shared, nil
}

// exchange is X25519.
func (k PrivateKey) exchange(peer wgtypes.Key) ([]byte, error) {
	secret := k.reveal()
	private, err := ecdh.X25519().NewPrivateKey(secret[:])
	if err != nil {
		return nil, err
	}
	public, err := ecdh.X25519().NewPublicKey(peer[:])
	if err != nil {
		return nil, err
	}
	return private.ECDH(public) // refuses points of low order
}
