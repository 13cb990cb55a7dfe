package nat

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	// RelayCredentialLifetime is how long a credential for a relay of this cluster
	// is valid from when it was made.
	RelayCredentialLifetime = 5 * time.Minute
	// RelayClockSkew is how much the clocks of a client and of a relay may differ:
	// a relay takes a credential for that much longer, and one that expires that
	// much later than a fresh one would.
	RelayClockSkew = 2 * time.Minute

	relayIDBytes = 16
)

// SharedSecret returns what this node and another one share, and nobody else:
// it is derived from X25519 of their WireGuard keys.
type SharedSecret func(peer wgtypes.Key) ([]byte, error)

// Secret is a password or a key. It is a function, since nothing else keeps fmt from
// showing it in a struct whose field is not exported.
type Secret func() string

// NewSecret returns a text that does not show when printed.
func NewSecret(text string) Secret { return func() string { return text } }

// relayID is how a client names itself to a relay, in 32 hexadecimal digits:
// only the two of them can tell whom it means.
func relayID(secret []byte, client wgtypes.Key) string {
	mac := hmac.New(sha256.New, secret)
	_, _ = mac.Write(client[:])
	return hex.EncodeToString(mac.Sum(nil)[:relayIDBytes])
}

// relayUsername says until when a credential is valid and whose it is. The time is
// in nanoseconds, so that a client that starts anew makes no name a second time.
func relayUsername(expiry time.Time, id string) string {
	return strconv.FormatInt(expiry.UnixNano(), 10) + ":" + id
}

// relayPassword belongs to a user name. No other message is signed with the
// secret of which this could be a part: an id signs 32 bytes, and this has more.
func relayPassword(secret []byte, username string) string {
	mac := hmac.New(sha256.New, secret)
	_, _ = mac.Write([]byte("turn" + username))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// parseRelayUsername takes a user name apart. It accepts only what
// relayUsername makes, so that a credential has one name.
func parseRelayUsername(username string) (expiry time.Time, id string, err error) {
	nanoseconds, id, _ := strings.Cut(username, ":")
	unix, err := strconv.ParseInt(nanoseconds, 10, 64)
	if err != nil {
		return time.Time{}, "", fmt.Errorf("user name of %d bytes: no time of expiry", len(username))
	}
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != relayIDBytes {
		return time.Time{}, "", fmt.Errorf("user name of %d bytes: no id", len(username))
	}
	expiry = time.Unix(0, unix)
	if relayUsername(expiry, id) != username || id != strings.ToLower(id) {
		return time.Time{}, "", fmt.Errorf("user name of %d bytes: not as it is made", len(username))
	}
	return expiry, id, nil
}

// relayCredential is a user name with its password.
type relayCredential struct {
	username string
	password Secret
	renew    time.Time // from when on another one should be used
}

// relayCredentials makes a client's credentials.
type relayCredentials struct {
	fixed  *relayCredential // of a server that is not of this cluster
	secret Secret
	id     string

	mu   sync.Mutex // guards last
	last time.Time
}

// next returns a credential that was never used. A relay takes each from one
// address only, so every connection needs its own.
func (c *relayCredentials) next(now time.Time) relayCredential {
	if c.fixed != nil {
		return *c.fixed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	expiry := now.Add(RelayCredentialLifetime)
	if !expiry.After(c.last) {
		expiry = c.last.Add(1)
	}
	c.last = expiry
	username := relayUsername(expiry, c.id)
	return relayCredential{
		username: username,
		password: NewSecret(relayPassword([]byte(c.secret()), username)),
		renew:    now.Add(RelayCredentialLifetime / 2),
	}
}
