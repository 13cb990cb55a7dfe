package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// DefaultSocket is where overlayd listens unless told otherwise.
const DefaultSocket = "/run/zlayer/overlayd.sock"

// longestPath is what fits a Unix socket's address with its terminating zero.
const longestPath = 107

// Listen makes the daemon's socket, with mode 0600, in a directory made with
// mode 0700 if it is missing. It locks the file path.lock as long as the
// listener is open, so of two daemons the second gets ErrInUse; so it does if
// something answers on the socket without holding the lock. A socket that
// nobody answers on is replaced; anything else in its place is an error and
// left alone. Only processes of root and of this process's user are accepted,
// others are closed at once. Close removes the socket.
func Listen(path string) (net.Listener, error) {
	if err := CheckSocket(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	lock, err := lockBeside(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := replaceSocket(path)
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &listener{UnixListener: l, lock: lock, uid: uint32(os.Geteuid())}, nil
}

// CheckSocket tells whether path may be a daemon's: that of a Unix socket in the
// file system. It looks at the text alone.
func CheckSocket(path string) error {
	switch {
	case path == "" || path[0] == '@':
		return fmt.Errorf("no path in the file system: %w", fs.ErrInvalid)
	case len(path) > longestPath:
		return fmt.Errorf("path of %d bytes, at most %d: %w", len(path), longestPath, fs.ErrInvalid)
	}
	return nil
}

// lockBeside takes the lock that makes a daemon the only one on path. The file
// stays: to remove it would let two processes lock two files of one name.
func lockBeside(path string) (*os.File, error) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err == nil {
		return lock, nil
	}
	_ = lock.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, ErrInUse
	}
	return nil, fmt.Errorf("lock: %w", err)
}

// replaceSocket binds path. The caller holds the lock.
func replaceSocket(path string) (*net.UnixListener, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, errors.New("there is something else than a socket")
	default:
		if err := removeStale(path); err != nil {
			return nil, err
		}
	}
	// The mode set before the binding is the one that the socket is born with.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var chmodErr error
		err := raw.Control(func(fd uintptr) { chmodErr = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmodErr)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// removeStale removes a socket if nobody answers on it. A ZLayer daemon knows
// nothing of the lock, so it is tried.
func removeStale(path string) error {
	conn, err := dialSocket(context.Background(), path)
	if err == nil {
		_ = conn.Close()
		return ErrInUse
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return os.Remove(path)
}

// listener admits processes of root and of one user.
type listener struct {
	*net.UnixListener
	lock *os.File
	uid  uint32
}

// Accept returns the next connection of a process that may connect.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(conn); err == nil && l.admits(uid) {
			return conn, nil
		}
		_ = conn.Close()
	}
}

func (l *listener) admits(uid uint32) bool { return uid == 0 || uid == l.uid }

// Close removes the socket, then gives up the lock.
func (l *listener) Close() error {
	return errors.Join(l.UnixListener.Close(), l.lock.Close())
}

// peerUID returns the user of the process that connected.
func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// dialSocket makes one attempt to connect; it never blocks.
func dialSocket(_ context.Context, path string) (net.Conn, error) {
	if err := CheckSocket(path); err != nil {
		return nil, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// shortages are what may keep the system from taking another connection for a
// while.
func shortages() []syscall.Errno {
	return []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED}
}

// writeWithFile writes a frame with file riding on its first byte.
func writeWithFile(conn net.Conn, frame []byte, file *os.File) error {
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("pass a file: %w", errors.ErrUnsupported)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("pass a file: %w", err)
	}
	var n int
	var writeErr error
	// Control keeps the descriptor open while it is sent. Fd would make the
	// file blocking for its owner.
	err = raw.Control(func(fd uintptr) {
		n, _, writeErr = unix.WriteMsgUnix(frame, syscall.UnixRights(int(fd)), nil)
	})
	if err = errors.Join(err, writeErr); err != nil {
		return err
	}
	_, err = conn.Write(frame[n:])
	return err
}

// readWithFile reads what is there of a frame's header, and the file that
// rides on its first byte. The space for it ends behind one descriptor; the
// kernel closes those beyond, and what alignment lets through is closed here.
func readWithFile(conn net.Conn, header []byte) (n int, file *os.File, err error) {
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		n, err = conn.Read(header)
		return n, nil, err
	}
	space := make([]byte, syscall.CmsgSpace(4))
	n, used, _, _, err := unix.ReadMsgUnix(header, space)
	if err != nil {
		return 0, nil, err
	}
	for _, fd := range passed(space[:used]) {
		if file != nil {
			_ = syscall.Close(fd)
			continue
		}
		file = os.NewFile(uintptr(fd), "network namespace")
	}
	return n, file, nil
}

// passed returns the descriptors of control messages. They are close-on-exec:
// net asks the kernel for that.
func passed(control []byte) []int {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	var all []int
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err == nil {
			all = append(all, fds...)
		}
	}
	return all
}
