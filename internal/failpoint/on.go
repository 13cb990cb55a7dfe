//go:build failpoints

package failpoint

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Hit ends the process or returns an error when ZLAYER_FAILPOINT arms name,
// and returns nil otherwise.
func Hit(name string) error {
	armed, action, found := strings.Cut(os.Getenv(Env), "=")
	if !found || armed != name {
		return nil
	}
	action, object, _ := strings.Cut(action, ":")
	switch action {
	case "hold":
		return hold(object)
	case "kill":
		self, err := os.FindProcess(os.Getpid())
		if err != nil {
			return fmt.Errorf("failpoint %s: find own process: %w", name, err)
		}
		if err := self.Kill(); err != nil {
			return fmt.Errorf("failpoint %s: kill own process: %w", name, err)
		}
		select {} // the signal is on its way; nothing of the caller's may run before it arrives
	case "error":
		return fmt.Errorf("failpoint %s", name)
	default:
		return fmt.Errorf("failpoint %s: %s knows the actions kill, error and hold:FIFO, not %q", name, Env, action)
	}
}

// hold returns when the other end of the FIFO has come and gone.
func hold(fifo string) error {
	_, err := os.ReadFile(fifo)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("hold: %w", err)
	}
	return nil
}
