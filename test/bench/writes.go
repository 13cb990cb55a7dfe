//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// watchWrites puts itself between wgctrl and a userspace device's socket and
// returns a function that counts the peers written so far. For a kernel device
// there is nothing to put oneself between, and it returns -1.
func watchWrites(device string) (func() int, error) {
	const uapiDir = "/var/run/wireguard"
	public := filepath.Join(uapiDir, device+".sock")
	hidden := filepath.Join(uapiDir, "behind", device+".sock")
	err := os.Mkdir(filepath.Dir(hidden), 0o700)
	if err == nil {
		err = os.Rename(public, hidden)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return func() int { return -1 }, nil
	}
	if err != nil {
		return nil, fmt.Errorf("watch writes: %w", err)
	}
	listener, err := net.Listen("unix", public)
	if err != nil {
		return nil, fmt.Errorf("watch writes: %w", err)
	}
	var written atomic.Int64
	go func() { // until the process ends, which measures one contender
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go relay(conn, hidden, &written)
		}
	}()
	return func() int { return int(written.Load()) }, nil
}

// relay passes one conversation of WireGuard's cross-platform protocol on. In
// it every peer of a "set" begins with its public key.
func relay(client net.Conn, device string, written *atomic.Int64) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("unix", device)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	go func() {
		defer func() { _ = server.Close() }()
		lines := bufio.NewReader(client)
		for {
			line, err := lines.ReadString('\n')
			if strings.HasPrefix(line, "public_key=") {
				written.Add(1)
			}
			if _, writeErr := io.WriteString(server, line); err != nil || writeErr != nil {
				return
			}
		}
	}()
	_, _ = io.Copy(client, server) // an end either way ends the conversation
}
