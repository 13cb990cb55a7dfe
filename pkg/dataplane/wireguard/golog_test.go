package wireguard

import (
	"bytes"
	"encoding/hex"
	"log/slog"
	"strings"
	"testing"
)

func TestGoLoggerShowsNoKeys(t *testing.T) {
	key := testKey(t)
	var out bytes.Buffer
	logger := newGoLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	logger.Errorf("failed to parse line %q", "private_key="+hex.EncodeToString(key[:]))
	logger.Verbosef("%v - Sending handshake initiation to %s", "peer(abcd…wxyz)", key)
	text := out.String()
	if strings.Contains(text, key.String()[:20]) || strings.Contains(text, hex.EncodeToString(key[:8])) {
		t.Errorf("a key shows:\n%s", text)
	}
	if !strings.Contains(text, "peer(abcd…wxyz)") || strings.Count(text, "level=DEBUG") != 2 {
		t.Errorf("too little shows:\n%s", text)
	}
}
