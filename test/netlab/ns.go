//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a named network namespace: a pod's, or a machine's.
type NS struct {
	// Name is unique in the lab.
	Name string
	// Path is the file to open it by, as a CNI runtime hands it to a plugin.
	Path string
}

// NewNS makes a network namespace with loopback up. It fails if the name is
// taken.
func NewNS(name string) (*NS, error) {
	n := &NS{Name: name, Path: filepath.Join(netnsDir, name)}
	file, err := os.OpenFile(n.Path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	_ = file.Close()
	current, err := os.Open(threadNetns())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make network namespace %s: %w", name, err), os.Remove(n.Path))
	}
	defer func() { _ = current.Close() }()
	err = onThread(current, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		return unix.Mount(threadNetns(), n.Path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make network namespace %s: %w", name, err), os.Remove(n.Path))
	}
	return n, nil
}

// Close unmounts and removes the name; the kernel removes the namespace when
// nothing else holds it. Closing twice is fine.
func (n *NS) Close() error {
	if err := unix.Unmount(n.Path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove network namespace %s: %w", n.Name, err)
	}
	if err := os.Remove(n.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", n.Name, err)
	}
	return nil
}

// Open returns a file descriptor of the namespace; the caller closes it.
func (n *NS) Open() (*os.File, error) { return os.Open(n.Path) }

// Do runs fn on a thread inside the namespace. Sockets opened there stay in
// it; goroutines started there do not.
func (n *NS) Do(fn func() error) error {
	file, err := n.Open()
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
	}
	defer func() { _ = file.Close() }()
	return onThread(file, fn)
}

// Handle returns a netlink handle bound to the namespace; the caller closes it.
func (n *NS) Handle() (*netlink.Handle, error) {
	file, err := n.Open()
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", n.Name, err)
	}
	defer func() { _ = file.Close() }()
	handle, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", n.Name, err)
	}
	return handle, nil
}

// Command returns a command that will run in the namespace and in a mount
// namespace of its own whose /var/run/wireguard is empty, since wgctrl would
// mix the userspace WireGuard devices of several daemons there. It is killed
// with the lab.
func (n *NS) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{n.Path, name}, args...)...)
	cmd.Args[0] = nodeProcess
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// nodeProcess is the name under which Command executes the program again.
const nodeProcess = "netlab-node"

// runIfNodeProcess turns this process into the one that Command asked for, and
// returns only if it is none.
func runIfNodeProcess() {
	if len(os.Args) < 3 || os.Args[0] != nodeProcess {
		return
	}
	err := becomeNodeProcess(os.Args[1], os.Args[2:])
	fmt.Fprintln(os.Stderr, "netlab:", err)
	os.Exit(126)
}

func becomeNodeProcess(nsPath string, argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	file, err := os.Open(nsPath)
	if err != nil {
		return err
	}
	// A new mount namespace wants a process with one thread's worth of file system state.
	return onThread(file, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare mounts: %w", err)
		}
		if err := os.MkdirAll(uapiDir, 0o755); err != nil { // whoever removes a device removes the folder, too
			return fmt.Errorf("prepare %s: %w", uapiDir, err)
		}
		if err := unix.Mount("tmpfs", uapiDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("mount an empty %s: %w", uapiDir, err)
		}
		return fmt.Errorf("run %s: %w", path, syscall.Exec(path, argv, os.Environ()))
	})
}
