package nat

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestRelayUsernames(t *testing.T) {
	id := strings.Repeat("0f", relayIDBytes)
	for _, test := range []struct {
		name, username string
		ok             bool
	}{
		{"as made", "1700000000:" + id, true},
		{"empty", "", false},
		{"no id", "1700000000", false},
		{"short id", "1700000000:0f", false},
		{"long id", "1700000000:" + id + "00", false},
		{"upper case", "1700000000:" + strings.ToUpper(id), false},
		{"leading zero", "01700000000:" + id, false},
		{"sign", "+1700000000:" + id, false},
		{"space", " 1700000000:" + id, false},
		{"no number", "soon:" + id, false},
		{"too large", "99999999999999999999:" + id, false},
		{"more behind", "1700000000:" + id + ":x", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := parseRelayUsername(test.username)
			if (err == nil) != test.ok {
				t.Errorf("parse: %v", err)
			}
		})
	}
}

func FuzzRelayUsername(f *testing.F) {
	f.Add("1700000000:" + strings.Repeat("0f", relayIDBytes))
	f.Add("0:")
	f.Add(":")
	f.Add("-1:" + strings.Repeat("0", 32))
	f.Fuzz(func(t *testing.T, username string) {
		expiry, id, err := parseRelayUsername(username)
		if err == nil && relayUsername(expiry, id) != username {
			t.Errorf("%q is read as %s of %q", username, expiry, id)
		}
	})
}

// TestRelayCredentialsAreNeverTheSame: a relay takes each from one address.
func TestRelayCredentialsAreNeverTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := relayCredentials{secret: []byte("secret"), id: strings.Repeat("0", 32)}
		seen := make(map[string]bool)
		for range 100 {
			next := c.next(time.Now())
			if seen[next.username] {
				t.Fatalf("%s twice", next.username)
			}
			seen[next.username] = true
			time.Sleep(300 * time.Millisecond)
		}
	})
}

func TestRelayNodesByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stats RelayStats
		secret := []byte("secret")
		var client wgtypes.Key
		client[0] = 1
		computed := 0
		nodes := newRelayNodes(func(wgtypes.Key) ([]byte, error) {
			computed++
			return secret, nil
		}, &stats)
		nodes.set([]wgtypes.Key{client})
		credentials := relayCredentials{secret: secret, id: relayID(secret, client)}
		c := credentials.next(time.Now())
		check := func(when string, want bool) {
			t.Helper()
			id, password, ok := nodes.authenticate(c.username, "a", time.Now())
			if ok != want {
				t.Errorf("%s: accepted is %v", when, ok)
			}
			if ok && (id != credentials.id || password != c.password) {
				t.Errorf("%s: id %s", when, id)
			}
		}
		check("fresh", true)
		nodes.bind(c.username, "a")
		time.Sleep(RelayCredentialLifetime + RelayClockSkew)
		check("at the end", true)
		time.Sleep(2 * time.Second)
		check("expired", false)
		for range 1000 { // strangers cost nothing
			nodes.authenticate("1:"+strings.Repeat("0", 32), "b", time.Now())
			nodes.authenticate(relayUsername(time.Now(), strings.Repeat("0", 32)), "b", time.Now())
		}
		nodes.set([]wgtypes.Key{client, {2}})
		c = credentials.next(time.Now())
		check("after another node came", true)
		if computed > 2 {
			t.Errorf("%d secrets computed for two nodes", computed)
		}
		for range relayCredentialsHeld {
			c = credentials.next(time.Now().Add(-time.Minute))
			if _, _, ok := nodes.authenticate(c.username, "a", time.Now()); ok {
				nodes.bind(c.username, "a")
			}
		}
		check("used too often", false)
		time.Sleep(2 * (RelayCredentialLifetime + RelayClockSkew))
		c = credentials.next(time.Now())
		check("later", true)
		nodes.set(nil)
		check("of a node that is gone", false)
	})
}
