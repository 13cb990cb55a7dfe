package wireguard

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestLoadKeyMakesAKeyOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "node.key")
	first, err := LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if first.IsZero() || first.PublicKey() != second.PublicKey() {
		t.Errorf("public key %v, then %v", first.PublicKey(), second.PublicKey())
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode != 0o600 {
		t.Errorf("mode %v, want 0600", mode)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v (%v), want the key alone", entries, err)
	}
}

func TestLoadKeyReadsWhatWgGenkeyWrites(t *testing.T) {
	key := testKey(t)
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(key.String()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	loaded, err := LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.PublicKey() != key.PublicKey() {
		t.Errorf("public key %v, want %v", loaded.PublicKey(), key.PublicKey())
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("a key that others could read kept mode %v (%v)", info.Mode(), err)
	}
}

func TestLoadKeyLeavesABrokenFileAlone(t *testing.T) {
	good := testKey(t).String()
	for name, content := range map[string]string{
		"empty":     "",
		"short":     good[:40],
		"two keys":  good + "\n" + good,
		"zero":      wgtypes.Key{}.String(),
		"not a key": "PrivateKey = " + good,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := LoadKey(path)
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %v does not name the file", err)
			}
			if strings.Contains(err.Error(), good[:20]) {
				t.Errorf("the error shows the key: %v", err)
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != content {
				t.Errorf("the file changed to %q (%v)", after, err)
			}
		})
	}
}

// A key must not show however carelessly it is printed, also from within
// unexported fields of what holds it.
func TestPrivateKeyDoesNotPrint(t *testing.T) {
	secret := testKey(t)
	key := NewPrivateKey(secret)
	config := Config{PrivateKey: key}
	holder := &struct{ cfg Config }{config}
	var out bytes.Buffer
	for _, value := range []any{key, &key, config, &config, holder, []PrivateKey{key}, map[string]any{"k": key}, struct{ k PrivateKey }{key}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%c", "%t", "%f"} {
			_, _ = fmt.Fprintf(&out, verb+"\n", value)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "value", value)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "value", value)
	}
	if err := json.NewEncoder(&out).Encode(map[string]any{"key": key, "holder": struct{ K PrivateKey }{key}}); err != nil {
		t.Fatal(err)
	}
	for name, trace := range map[string]string{
		"base64":      secret.String()[:12],
		"hexadecimal": fmt.Sprintf("%x", secret[:6]),
		"capitals":    fmt.Sprintf("%X", secret[:6]),
		"decimal":     strings.Trim(fmt.Sprintf("%d", secret[:6]), "[]"),
		"go syntax":   strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", secret[:4]), "[]byte{"), "}"),
	} {
		if strings.Contains(out.String(), trace) {
			t.Errorf("the key shows in %s", name)
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Error("nothing was printed at all")
	}
}

func testKey(t testing.TB) wgtypes.Key {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
