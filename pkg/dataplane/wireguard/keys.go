package wireguard

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/internal/durable"
)

// redacted is all that ever shows of a private key.
const redacted = "redacted"

// PrivateKey holds a WireGuard private key that can be used but not printed:
// every fmt verb, slog and every encoder see the word "redacted". The key
// itself sits in a function, because fmt looks through the unexported fields of
// whatever holds a key without asking, and follows pointers for verbs that do not
// suit them. The zero value holds no key.
type PrivateKey struct {
	reveal func() wgtypes.Key
}

// NewPrivateKey wraps key.
func NewPrivateKey(key wgtypes.Key) PrivateKey {
	return PrivateKey{reveal: func() wgtypes.Key { return key }}
}

// IsZero reports whether k holds no key.
func (k PrivateKey) IsZero() bool { return k.reveal == nil || k.reveal() == wgtypes.Key{} }

// PublicKey returns the public half, which may be shown to anybody. Without a
// key it is the zero key.
func (k PrivateKey) PublicKey() wgtypes.Key {
	if k.IsZero() {
		return wgtypes.Key{}
	}
	return k.reveal().PublicKey()
}

// Reveal returns the key in base64, for the one whose it is, and nobody else.
// It is empty if k holds no key.
func (k PrivateKey) Reveal() string {
	if k.IsZero() {
		return ""
	}
	return k.reveal().String()
}

// String returns "redacted".
func (k PrivateKey) String() string { return redacted }

// Format writes "redacted" for every verb and flag.
func (k PrivateKey) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, redacted) }

// LogValue returns "redacted".
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "redacted".
func (k PrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LoadKey returns the private key kept in the file path, and makes one there
// if the file does not exist. The file holds the key in base64 and a newline,
// as `wg genkey` writes it, has mode 0600, and appears whole or not at all: a
// process that dies half-way leaves either no key or a good one. A file that
// others may read is given mode 0600. A file with anything else in it is an
// error and stays as it is.
//
// One process at a time may call it for a path.
func LoadKey(path string) (PrivateKey, error) {
	key, err := readKey(path)
	if !errors.Is(err, os.ErrNotExist) {
		return key, err
	}
	secret, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return PrivateKey{}, fmt.Errorf("make private key %s: %w", path, err)
	}
	if err := writeKey(path, secret); err != nil {
		return PrivateKey{}, fmt.Errorf("keep private key %s: %w", path, err)
	}
	return NewPrivateKey(secret), nil
}

func readKey(path string) (PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("read private key: %w", err)
	}
	// Neither the parser's error nor the content goes any further: both may hold key material.
	key, err := wgtypes.ParseKey(string(bytes.TrimSpace(data)))
	if err != nil || key == (wgtypes.Key{}) {
		return PrivateKey{}, fmt.Errorf("read private key %s: not 32 bytes in base64", path)
	}
	if runtime.GOOS != "windows" { // where modes mean nothing
		if err := os.Chmod(path, 0o600); err != nil {
			return PrivateKey{}, fmt.Errorf("read private key: %w", err)
		}
	}
	return NewPrivateKey(key), nil
}

func writeKey(path string, key wgtypes.Key) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.Replace(path, strings.NewReader(key.String()+"\n"), 0o600)
}
