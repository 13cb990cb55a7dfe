// Package forwarding lets the host pass packets between its interfaces, which
// every pod's packet needs, and undoes that when the network is removed.
//
// It owns the kernel's forwarding switches and the file that keeps what they,
// and what hangs on them, were before. One process at a time may call it for a
// network namespace.
package forwarding

import (
	"net/netip"
	"path/filepath"
)

// Config says where the host's switches are.
type Config struct {
	// Sysctls is where the kernel's /proc/sys/net is writable, on Linux. Wherever it is mounted, it shows the network
	// namespace of the process that looks.
	Sysctls string
	// StateDir is where what the host had before is kept, on Linux.
	StateDir string
	// Addresses are those of the interfaces that forward, on Windows, where each interface has a switch of its own.
	Addresses []netip.Addr
}

// RecordFile is the path of what the host's settings were, below a state directory.
func RecordFile(stateDir string) string { return filepath.Join(stateDir, "sysctls.json") }
