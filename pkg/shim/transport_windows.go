package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

// DefaultSocket is where overlayd listens unless told otherwise: a named pipe.
const DefaultSocket = overlaydPipe

const (
	// pipeBuffer is what either side may write before the other reads, in bytes:
	// with none, every write would wait for its reader.
	pipeBuffer = 64 << 10

	// remnantPatience is how long Listen waits for the clients of a daemon that
	// has ended to close their ends: as long as one is open, so is the name.
	remnantPatience = 2500 * time.Millisecond
	remnantInterval = 50 * time.Millisecond
	// probePatience bounds the look for a daemon behind a pipe. One that is busy
	// that long is one, too.
	probePatience = 20 * time.Millisecond
)

// Listen makes the daemon's pipe, which SYSTEM and elevated administrators of
// this machine may open, and nobody else. It is the pipe's first instance or
// none: if another process has the name, whoever that is, the error is
// ErrInUse, and that process is left alone. Close ends the name.
func Listen(path string) (net.Listener, error) {
	if err := CheckSocket(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := firstInstance(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// CheckSocket tells whether path may be a daemon's: that of a named pipe of
// this machine. It looks at the text alone.
func CheckSocket(path string) error { return checkPipe(path) }

// firstInstance makes a pipe that is not there yet. go-winio's ListenPipe asks
// for FILE_CREATE, which the system refuses beside another instance as it does
// with FILE_FLAG_FIRST_PIPE_INSTANCE: access denied.
func firstInstance(path string) (net.Listener, error) {
	config := winio.PipeConfig{SecurityDescriptor: pipeSecurity, InputBufferSize: pipeBuffer, OutputBufferSize: pipeBuffer}
	for deadline := time.Now().Add(remnantPatience); ; {
		l, err := winio.ListenPipe(path, &config)
		switch {
		case errors.Is(err, windows.ERROR_INVALID_OWNER):
			return nil, fmt.Errorf("only SYSTEM and elevated administrators may serve the network: %w", fs.ErrPermission)
		case !errors.Is(err, windows.ERROR_ACCESS_DENIED):
			return l, err
		case served(path):
			return nil, ErrInUse
		case time.Now().After(deadline):
			return nil, fmt.Errorf("a process still holds the pipe of a daemon that has ended: %w", err)
		}
		<-time.After(remnantInterval)
	}
}

// served tells whether a process offers the pipe, even if to others than us.
func served(path string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), probePatience)
	defer cancel()
	conn, err := winio.DialPipeContext(ctx, path)
	if err == nil {
		_ = conn.Close()
	}
	return !errors.Is(err, fs.ErrNotExist)
}

// dialSocket makes one attempt to connect. A busy pipe has a daemon behind it
// that is about to take the next connection: it is waited for until ctx ends.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	if err := CheckSocket(path); err != nil {
		return nil, err
	}
	conn, err := winio.DialPipeContext(ctx, path) // gives the server no means to act as us
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("open %s: %w: %w", path, errPipeBusy, err)
	}
	if err != nil {
		return nil, err
	}
	if err := checkOwner(conn); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return conn, nil
}

// checkOwner refuses a server that is neither SYSTEM nor an administrator:
// anybody may make a pipe of a name that nobody has.
func checkOwner(conn net.Conn) error {
	pipe, ok := conn.(interface{ Fd() uintptr })
	if !ok {
		return fmt.Errorf("ask for its owner: %w", errors.ErrUnsupported)
	}
	descriptor, err := windows.GetSecurityInfo(windows.Handle(pipe.Fd()), windows.SE_KERNEL_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("ask for its owner: %w", err)
	}
	owner, _, err := descriptor.Owner()
	if err != nil {
		return fmt.Errorf("ask for its owner: %w", err)
	}
	if owner.IsWellKnown(windows.WinLocalSystemSid) || owner.IsWellKnown(windows.WinBuiltinAdministratorsSid) {
		return nil
	}
	return fmt.Errorf("it belongs to %s, neither SYSTEM nor an administrator: %w", owner, fs.ErrPermission)
}

// shortages are what may keep the system from making another instance of the
// pipe for a while.
func shortages() []syscall.Errno {
	return []syscall.Errno{
		windows.ERROR_NO_SYSTEM_RESOURCES, windows.ERROR_NOT_ENOUGH_MEMORY, windows.ERROR_NOT_ENOUGH_QUOTA,
		windows.ERROR_TOO_MANY_OPEN_FILES, windows.ERROR_PIPE_BUSY,
	}
}

// writeWithFile is for Linux: a namespace is a GUID here.
func writeWithFile(net.Conn, []byte, *os.File) error {
	return fmt.Errorf("pass a file: %w", errors.ErrUnsupported)
}

// readWithFile reads what is there of a frame's header; no file rides on it.
func readWithFile(conn net.Conn, header []byte) (int, *os.File, error) {
	n, err := conn.Read(header)
	return n, nil, err
}
