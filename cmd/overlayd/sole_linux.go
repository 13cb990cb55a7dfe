package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

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

// errInCharge means that another process is the sole one.
var errInCharge = errors.New("another overlayd is in charge of this network namespace")

// becomeSole makes this process the only one that may change the data plane of
// its network namespace, until the file is closed. The lock beside the daemon's
// socket does not tell: a forgotten --config names another socket, on the same
// kernel.
func becomeSole() (*os.File, error) {
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
			return nil, fmt.Errorf("%w: end it first (`fuser %s` names it)", errInCharge, path)
		}
		return nil, fmt.Errorf("lock network namespace by %s: %w", path, err)
	}
	return file, nil
}

// succeed is becomeSole that waits until the one in charge has ended. A daemon
// lets go of its socket and its metrics address before.
func succeed(ctx context.Context, log *slog.Logger) (*os.File, error) {
	const interval = 10 * time.Millisecond // traffic between nodes may be waiting
	for said := false; ; said = true {
		sole, err := becomeSole()
		if !errors.Is(err, errInCharge) {
			return sole, err
		}
		if !said {
			log.Info("waiting until the daemon in charge ends", "op", "run")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(interval):
		}
	}
}
