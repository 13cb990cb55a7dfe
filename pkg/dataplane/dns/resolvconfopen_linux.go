package dns

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openBelow opens a file of the host whose files are below root. Links lead to
// where they do on that host: it has absolute ones, such as /etc/resolv.conf to
// /run/systemd/resolve/stub-resolv.conf.
func openBelow(root, name string) (*os.File, error) {
	path := filepath.Join(root, name)
	if root == "/" {
		return os.Open(path)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer func() { _ = unix.Close(dir) }()
	// openat2(2), since Linux 5.6.
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
