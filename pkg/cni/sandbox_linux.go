package cni

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// nsGetType is NS_GET_NSTYPE of ioctl_ns(2), which x/sys does not name.
const nsGetType = 0xb703

// sandboxOf names the sandbox of an ADD or a CHECK, with its opened namespace,
// which release closes.
func sandboxOf(args *skel.CmdArgs, ownAllowed bool) (sandbox shim.Handle, release func(), err error) {
	file, err := openSandbox(args.Netns, ownAllowed)
	if err != nil {
		return nil, nil, err
	}
	return namedBy(args, file), func() { _ = file.Close() }, nil // only read
}

// keyOnly names the sandbox of a DEL, whose namespace may be gone.
func keyOnly(args *skel.CmdArgs) shim.Handle { return namedBy(args, nil) }

func namedBy(args *skel.CmdArgs, file *os.File) *shim.LinuxNetns {
	return &shim.LinuxNetns{ContainerID: args.ContainerID, IfName: args.IfName, Netns: args.Netns, File: file}
}

// openSandbox opens the network namespace at path. It refuses what is none
// and, unless ownAllowed, the namespace that the plugin itself runs in, which
// is the host's: nothing may be attached there.
//
// The type is asked before the file is opened, since opening may block (a
// named pipe) or have effects (a device).
func openSandbox(path string, ownAllowed bool) (*os.File, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return nil, invalidSandbox(path, err.Error())
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, invalidSandbox(path, "not a namespace")
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, invalidSandbox(path, err.Error())
	}
	file := os.NewFile(uintptr(fd), path)
	if err := checkSandbox(fd, ownAllowed); err != nil {
		_ = file.Close() // only read
		return nil, invalidSandbox(path, err.Error())
	}
	return file, nil
}

func checkSandbox(fd int, ownAllowed bool) error {
	kind, err := unix.IoctlRetInt(fd, nsGetType)
	if err != nil {
		return fmt.Errorf("ask for its type: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		return errors.New("a namespace, but not a network namespace")
	}
	if ownAllowed {
		return nil
	}
	var sandbox, own unix.Stat_t
	if err := unix.Fstat(fd, &sandbox); err != nil {
		return err
	}
	// The process's threads all share one network namespace: nothing here calls setns.
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return fmt.Errorf("compare with the plugin's own: %w", err)
	}
	if sandbox.Dev == own.Dev && sandbox.Ino == own.Ino {
		return errors.New("the plugin's own network namespace is not a sandbox")
	}
	return nil
}
