package nat

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun/v4"
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

// TestRelayCredentialsAreNeverTheSame: a relay takes each from one address, and a
// client may start anew at any time.
func TestRelayCredentialsAreNeverTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		anew := func() *relayCredentials {
			return &relayCredentials{secret: NewSecret("secret"), id: strings.Repeat("0", 32)}
		}
		c := anew()
		seen := make(map[string]bool)
		for i := range 100 {
			if i%10 == 0 {
				time.Sleep(time.Millisecond)
				c = anew()
			}
			next := c.next(time.Now())
			if seen[next.username] {
				t.Fatalf("%s twice", next.username)
			}
			seen[next.username] = true
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
		}, &stats, slog.New(slog.DiscardHandler))
		nodes.set([]wgtypes.Key{client})
		nodes.derive()
		credentials := relayCredentials{secret: NewSecret(string(secret)), id: relayID(secret, client)}
		c := credentials.next(time.Now())
		check := func(when string, want bool) {
			t.Helper()
			id, password, ok := nodes.authenticate(c.username, "a", time.Now())
			if ok != want {
				t.Errorf("%s: accepted is %v", when, ok)
			}
			if ok && (id != credentials.id || password != c.password()) {
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
		nodes.derive()
		c = credentials.next(time.Now())
		check("after another node came", true)
		if computed != 2 {
			t.Errorf("%d secrets computed for two nodes", computed)
		}
		for range relayCredentialsHeld + 1 {
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

// TestRelayNodesServeMeanwhile: nobody waits for the secrets of nodes that are new.
func TestRelayNodesServeMeanwhile(t *testing.T) {
	var stats RelayStats
	known, slow, gone := wgtypes.Key{1}, wgtypes.Key{2}, wgtypes.Key{3}
	begun, wait := make(chan struct{}, 2), make(chan struct{})
	nodes := newRelayNodes(func(peer wgtypes.Key) ([]byte, error) {
		if peer != known {
			begun <- struct{}{}
			<-wait
		}
		return peer[:], nil
	}, &stats, slog.New(slog.DiscardHandler))
	accepted := func(key wgtypes.Key) bool {
		t.Helper()
		answer := make(chan bool, 1)
		go func() {
			credentials := relayCredentials{secret: NewSecret(string(key[:])), id: relayID(key[:], key)}
			_, _, ok := nodes.authenticate(credentials.next(time.Now()).username, "a", time.Now())
			answer <- ok
		}()
		select {
		case ok := <-answer:
			return ok
		case <-time.After(10 * time.Second):
			t.Fatal("a client waits for the secrets of others")
		}
		return false
	}
	nodes.set([]wgtypes.Key{known})
	nodes.derive()
	nodes.set([]wgtypes.Key{known, slow, gone})
	done := make(chan struct{})
	go func() {
		defer close(done)
		nodes.derive()
	}()
	<-begun
	if !accepted(known) || accepted(slow) {
		t.Error("while secrets are made, the node that is known is refused, or one that is not accepted")
	}
	nodes.set([]wgtypes.Key{known, slow})
	close(wait)
	<-done
	if !accepted(known) || !accepted(slow) || accepted(gone) {
		t.Error("later a node is refused, or one accepted that is gone")
	}
}

// TestRelayTellsOfClocks: a client sees no more than that it is refused, so the relay's
// log says why, but not for each packet, nor for strangers.
func TestRelayTellsOfClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stats RelayStats
		var text strings.Builder
		client, secret := wgtypes.Key{1}, []byte("secret")
		nodes := newRelayNodes(func(wgtypes.Key) ([]byte, error) { return secret, nil }, &stats, slog.New(slog.NewTextHandler(&text, nil)))
		nodes.set([]wgtypes.Key{client})
		nodes.derive()
		at := func(off time.Duration, key wgtypes.Key) string {
			text.Reset()
			credentials := relayCredentials{secret: NewSecret(string(secret)), id: relayID(secret, key)}
			nodes.authenticate(credentials.next(time.Now().Add(off)).username, "a", time.Now())
			return text.String()
		}
		if got := at(0, client) + at(time.Hour, wgtypes.Key{2}); got != "" {
			t.Errorf("for a clock that is right, and for a stranger: %s", got)
		}
		if got := at(3*time.Minute, client); !strings.Contains(got, "peer=AQAAAAAA ahead=3m0s") {
			t.Errorf("for a clock that is fast: %q", got)
		}
		if got := at(3*time.Minute, client); got != "" {
			t.Errorf("at once again: %s", got)
		}
		time.Sleep(relayClocksPause)
		if got := at(-time.Hour, client); !strings.Contains(got, "ahead=-1h0m0s") {
			t.Errorf("for a clock that is slow: %q", got)
		}
	})
}

// TestRelaySecretsAreNotPrinted prints all that holds one, as a careless log would.
func TestRelaySecretsAreNotPrinted(t *testing.T) {
	const password = "open sesame"
	credentials := &relayCredentials{secret: NewSecret(password), id: strings.Repeat("0", 32)}
	credential := credentials.next(time.Now())
	integrity := stun.NewLongTermIntegrity(credential.username, relayRealm, credential.password())
	config := RelayClientConfig{
		UDP: "192.0.2.1:3478", Username: "user", Credential: NewSecret(password), WireGuardPort: 51820,
		Deliver: func(Way, netip.AddrPort, []byte) {}, Up: func(netip.AddrPort) {}, Down: func(error) {}, Log: slog.New(slog.DiscardHandler),
	}
	client, err := NewRelayClient(config)
	if err != nil {
		t.Fatal(err)
	}
	var stats RelayStats
	nodes := newRelayNodes(func(wgtypes.Key) ([]byte, error) { return []byte(password), nil }, &stats, slog.New(slog.DiscardHandler))
	nodes.set([]wgtypes.Key{{1}})
	nodes.derive()
	session := &turnSession{client: client, credential: credential, integrity: func() stun.MessageIntegrity { return integrity }}
	for name, value := range map[string]any{
		"configuration": config, "client": client, "credentials": credentials, "credential": credential,
		"fixed": client.credentials.fixed, "session": session, "nodes": nodes, "node": nodes.byKey[wgtypes.Key{1}],
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			text := fmt.Sprintf(verb, value)
			for _, secret := range []string{password, credential.password(), string(integrity)} {
				for _, form := range []string{"%s", "%x", "%v", "%#v"} {
					for _, shown := range []string{fmt.Sprintf(form, secret), strings.Trim(strings.TrimPrefix(fmt.Sprintf(form, []byte(secret)), "[]byte"), "[]{}")} {
						if strings.Contains(text, shown) {
							t.Errorf("%s of the %s shows a secret", verb, name)
						}
					}
				}
			}
		}
	}
}
