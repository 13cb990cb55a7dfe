package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf16"
)

// What there is to say of a named pipe of Windows without being there, so that
// its tests run everywhere.
const (
	// pipePrefix begins the paths of all named pipes of this machine.
	pipePrefix = `\\.\pipe\`
	// overlaydPipe is ZLayer's name of it, the same for every data directory.
	overlaydPipe = pipePrefix + "zlayer-overlayd"

	// pipeSecurity lets SYSTEM and elevated administrators open the pipe, make
	// further instances of it and read whose it is, and nobody else; a
	// protected list (P) inherits nothing. The owner is spelled out since it is
	// what a client knows the daemon by: only those two may set it
	// (SDDL, [MS-DTYP] 2.5.1).
	pipeSecurity = "O:BAD:P(A;;GA;;;SY)(A;;GA;;;BA)"

	// longestPipe is what a pipe's whole path may have, in UTF-16 units
	// (CreateNamedPipe).
	longestPipe = 256
)

// checkPipe refuses what is no pipe of this machine. A name has no folders, and
// of another machine's pipes no client may be drawn to one.
func checkPipe(path string) error {
	if len(path) < len(pipePrefix) || !strings.EqualFold(path[:len(pipePrefix)], pipePrefix) {
		return fmt.Errorf(`no named pipe, which begins with %s: %w`, pipePrefix, fs.ErrInvalid)
	}
	name := path[len(pipePrefix):]
	switch length := len(utf16.Encode([]rune(path))); {
	case name == "" || strings.ContainsAny(name, "\\\x00"):
		return fmt.Errorf("not the name of a pipe: %w", fs.ErrInvalid)
	case length > longestPipe:
		return fmt.Errorf("path of %d characters, at most %d: %w", length, longestPipe, fs.ErrInvalid)
	}
	return nil
}

// errPipeBusy tells that a daemon has the pipe, and was not there to take the
// connection as long as it was waited for.
var errPipeBusy = errors.New("pipe is busy")
