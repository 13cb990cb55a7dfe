//go:build !linux

package cni

import (
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// takeStdin reads standard input to its end and leaves what it read in its
// place. skel would wait for the end for ever and take any length.
func takeStdin(timeout time.Duration, limit int) error {
	conf, err := readWithin(os.Stdin, timeout, limit)
	if err != nil {
		return types.NewError(types.ErrIOFailure, "read network configuration from standard input", err.Error())
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return types.NewError(types.ErrIOFailure, "keep network configuration", err.Error())
	}
	os.Stdin = reader
	go func() {
		_, _ = writer.Write(conf) // whoever reads less finds the JSON cut off
		_ = writer.Close()
	}()
	return nil
}
