//go:build !windows

package shim

import (
	"os"
	"path/filepath"

	"go.uber.org/goleak"
)

// ScratchSocket is a path for a daemon of a test, in a directory that Listen has
// to make, and what removes its traces. The examples use it, too.
func ScratchSocket() (path string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(dir, "zlayer", "overlayd.sock"), func() { _ = os.RemoveAll(dir) }, nil
}

// notLeaks are the goroutines that may outlive the tests: none.
func notLeaks() []goleak.Option { return nil }
