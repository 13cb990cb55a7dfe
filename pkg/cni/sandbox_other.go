//go:build !linux

package cni

import (
	"errors"
	"os"
)

// openSandbox answers errors.ErrUnsupported: sandboxes are attached on Linux alone.
func openSandbox(path string, _ bool) (*os.File, error) {
	return nil, invalidSandbox(path, errors.ErrUnsupported.Error())
}
