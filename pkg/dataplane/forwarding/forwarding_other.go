//go:build !linux

package forwarding

import "errors"

// Enable is supported on Linux only.
func Enable(string, string) error { return errors.ErrUnsupported }

// Restore is supported on Linux only.
func Restore(string, string) ([]string, error) { return nil, errors.ErrUnsupported }
