package cni

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containernetworking/cni/pkg/types"
)

// takeStdin reads standard input to its end and leaves what it read in its
// place. skel would wait for the end for ever and take any length.
//
// Polling needs no more than this thread, unlike a timer or a deadline of
// package os, which would start the runtime's poller (0.1 ms).
func takeStdin(timeout time.Duration, limit int) error {
	conf, err := readAll(unix.Stdin, time.Now().Add(timeout), limit)
	if err != nil {
		return types.NewError(types.ErrIOFailure, "read network configuration from standard input", err.Error())
	}
	fd, err := unix.MemfdCreate("network configuration", unix.MFD_CLOEXEC)
	if err != nil {
		return types.NewError(types.ErrIOFailure, "keep network configuration", err.Error())
	}
	os.Stdin = os.NewFile(uintptr(fd), os.Stdin.Name())
	if _, err := os.Stdin.WriteAt(conf, 0); err != nil {
		return types.NewError(types.ErrIOFailure, "keep network configuration", err.Error())
	}
	return nil
}

func readAll(fd int, deadline time.Time, limit int) ([]byte, error) {
	data := make([]byte, 0, 4096)
	for {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		if err := waitReadable(fd, deadline); err != nil {
			return nil, err
		}
		n, err := unix.Read(fd, data[len(data):cap(data)])
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return data, nil
		}
		if data = data[:len(data)+n]; len(data) > limit {
			return nil, fmt.Errorf("more than %d bytes", limit)
		}
	}
}

func waitReadable(fd int, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errors.New("no end within the time allowed")
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
