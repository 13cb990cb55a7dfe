package cni

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// readWithin reads r to its end. Where reads cannot be given a deadline, the one
// that waits is left behind when the time is over: the process ends soon after.
func readWithin(r io.Reader, timeout time.Duration, limit int) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
		done <- result{data, err}
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case read := <-done:
		if read.err == nil && len(read.data) > limit {
			return nil, fmt.Errorf("more than %d bytes", limit)
		}
		return read.data, read.err
	case <-timer.C:
		return nil, errors.New("no end within the time allowed")
	}
}
