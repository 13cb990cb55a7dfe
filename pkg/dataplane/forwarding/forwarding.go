// Package forwarding lets the host pass packets between its interfaces, which
// every pod's packet needs, and undoes that when the network is removed.
//
// It owns the kernel's forwarding switches and the file that keeps what they,
// and what hangs on them, were before. One process at a time may call it for a
// network namespace.
package forwarding

import "path/filepath"

// RecordFile is the path of what the host's settings were, below a state directory.
func RecordFile(stateDir string) string { return filepath.Join(stateDir, "sysctls.json") }
