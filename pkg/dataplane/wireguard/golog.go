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
	redact := redactor()
	logf := func(format string, args ...any) {
		if log.Enabled(context.Background(), slog.LevelDebug) {
			log.Debug("wireguard-go", "detail", redact(fmt.Sprintf(format, args...)))
		}
	}
	return &device.Logger{Verbosef: logf, Errorf: logf}
}

// redactor returns a function that replaces anything that could be a whole key.
func redactor() func(string) string {
	keys := regexp.MustCompile(keyMaterial)
	return func(text string) string { return keys.ReplaceAllString(text, redacted) }
}

// driverLevel is the level at which a line of a driver of Windows is passed on: 0 is
// information, 1 a warning, and 2 an error, which the caller of the driver gets, too.
func driverLevel(level uint) slog.Level {
	if level == 0 {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}
