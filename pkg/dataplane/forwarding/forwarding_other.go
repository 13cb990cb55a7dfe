//go:build !linux

package forwarding

import "errors"

// Enable is supported on Linux only.
func Enable() error { return errors.ErrUnsupported }
