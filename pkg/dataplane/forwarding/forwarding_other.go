//go:build !linux

package forwarding

import "errors"

// Enable is supported on Linux only.
func Enable(string) error { return errors.ErrUnsupported }
