package wireguard

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestSharedIsTheSameAtBothEnds(t *testing.T) {
	a, b, c := NewPrivateKey(testKey(t)), NewPrivateKey(testKey(t)), NewPrivateKey(testKey(t))
	here, there := shared(t, a, b, "check"), shared(t, b, a, "check")
	if len(here) != 32 || !bytes.Equal(here, there) {
		t.Errorf("%d bytes at one end, %d at the other, equal: %v", len(here), len(there), bytes.Equal(here, there))
	}
	for name, other := range map[string][]byte{
		"another purpose":  shared(t, a, b, "relay"),
		"no purpose":       shared(t, a, b, ""),
		"another peer":     shared(t, a, c, "check"),
		"another own key":  shared(t, c, b, "check"),
		"with the own key": shared(t, a, a, "check"),
	} {
		if bytes.Equal(here, other) {
			t.Errorf("%s gives the same secret", name)
		}
	}
}

func shared(t *testing.T, own, peer PrivateKey, purpose string) []byte {
	t.Helper()
	secret, err := own.Shared(peer.PublicKey(), purpose)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// Nodes of different versions have to derive the same. The secret was computed
// with another implementation.
func TestSharedStays(t *testing.T) {
	own := NewPrivateKey(parseHexKey(t, "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"))
	peer := parseHexKey(t, "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
	secret, err := own.Shared(peer, "zlayer test")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hex.EncodeToString(secret), "692ad1f832539c85b9dca522bb16b57ffde321528cdb616d8189c2833ee7c63f"; got != want {
		t.Errorf("secret %s, want %s", got, want)
	}
}

func TestSharedRefuses(t *testing.T) {
	own := NewPrivateKey(testKey(t))
	for name, c := range map[string]struct {
		own  PrivateKey
		peer wgtypes.Key
	}{
		"no key of its own":   {PrivateKey{}, own.PublicKey()},
		"peer is zero":        {own, wgtypes.Key{}},
		"peer of order one":   {own, wgtypes.Key{1}},
		"peer of order eight": {own, parseHexKey(t, "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")},
	} {
		secret, err := c.own.Shared(c.peer, "check")
		if err == nil || secret != nil {
			t.Errorf("%s: %d bytes, error %v", name, len(secret), err)
		}
		if err != nil && !c.own.IsZero() && strings.Contains(err.Error(), c.own.Reveal()) {
			t.Errorf("%s: the error shows the key", name)
		}
	}
}

func parseHexKey(t *testing.T, text string) (key wgtypes.Key) {
	t.Helper()
	if n, err := hex.Decode(key[:], []byte(text)); err != nil || n != len(key) {
		t.Fatalf("%s is no key: %d bytes, %v", text, n, err)
	}
	return key
}
