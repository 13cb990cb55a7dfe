package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// soleFile is locked by whoever is in charge of the network namespace. It is
// named by the namespace's inode, which containers on the host's network share,
// in a folder that only root can write: nobody else can keep a daemon away.
func soleFile() (string, error) {
	var namespace unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &namespace); err != nil {
		return "", fmt.Errorf("identify network namespace: %w", err)
	}
	return filepath.Join(filepath.Dir(shim.DefaultSocket), fmt.Sprintf("netns-%d.lock", namespace.Ino)), nil
}

// soleLock is a locked soleFile.
type soleLock struct{ *os.File }

func (l soleLock) forget() error {
	err := os.Remove(l.Name())
	_ = os.Remove(filepath.Dir(l.Name())) // unless the socket is in it
	return err
}

// becomeSole makes this process the only one that may change the data plane of
// its network namespace, until it is closed. The lock beside the daemon's
// socket does not tell: a forgotten --config names another socket, on the same
// kernel.
func becomeSole() (sole, error) {
	path, err := soleFile()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("lock network namespace: %w", err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock network namespace: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w of this network namespace: end it first (`fuser %s` names it)", errInCharge, path)
		}
		return nil, fmt.Errorf("lock network namespace by %s: %w", path, err)
	}
	return soleLock{file}, nil
}
