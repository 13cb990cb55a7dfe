//go:build !windows

package shim

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

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

// brokenPipe tells whether a write found that the other side has hung up.
func brokenPipe(err error) bool { return errors.Is(err, syscall.EPIPE) }
