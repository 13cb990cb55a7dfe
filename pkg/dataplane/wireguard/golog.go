package wireguard

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"

	"golang.zx2c4.com/wireguard/device"
)

// keyMaterial matches anything as long as a key in base64 or hexadecimal.
const keyMaterial = `[0-9A-Za-z+/]{43}=?|[0-9a-fA-F]{64}`

// newGoLogger passes what wireguard-go says on to log, at Debug, since it
// repeats itself with every packet of a broken flow. It names peers by eight
// characters of their public key; anything that could be a whole key is removed.
func newGoLogger(log *slog.Logger) *device.Logger {
	keys := regexp.MustCompile(keyMaterial)
	logf := func(format string, args ...any) {
		if log.Enabled(context.Background(), slog.LevelDebug) {
			log.Debug("wireguard-go", "detail", keys.ReplaceAllString(fmt.Sprintf(format, args...), redacted))
		}
	}
	return &device.Logger{Verbosef: logf, Errorf: logf}
}
