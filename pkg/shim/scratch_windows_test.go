package shim

import (
	"crypto/rand"
	"errors"

	"go.uber.org/goleak"
	"golang.org/x/sys/windows"
)

// ScratchSocket is a path for a daemon of a test. A pipe leaves no traces.
func ScratchSocket() (path string, remove func(), err error) {
	return pipePrefix + "zlayer-test-" + rand.Text(), func() {}, nil
}

// notLeaks are the goroutines that may outlive the tests: go-winio has one for
// the whole process, from the first pipe on.
func notLeaks() []goleak.Option {
	return []goleak.Option{goleak.IgnoreAnyFunction("github.com/Microsoft/go-winio.ioCompletionProcessor")}
}

// brokenPipe tells whether a write found that the other side has hung up: it is
// closing the pipe, or has.
func brokenPipe(err error) bool {
	return errors.Is(err, windows.ERROR_NO_DATA) || errors.Is(err, windows.ERROR_BROKEN_PIPE) || errors.Is(err, windows.ERROR_PIPE_NOT_CONNECTED)
}
