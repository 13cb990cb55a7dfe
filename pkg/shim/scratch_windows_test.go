package shim

import (
	"crypto/rand"

	"go.uber.org/goleak"
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
