//go:build !linux && !windows

package forwarding

import "errors"

// Enable is supported on Linux and Windows.
func Enable(Config) error { return errors.ErrUnsupported }

// Restore is supported on Linux and Windows.
func Restore(string, string) ([]string, error) { return nil, errors.ErrUnsupported }
