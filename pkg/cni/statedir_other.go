//go:build !windows

package cni

// DefaultStateDir is where overlayd keeps what must outlive a reboot, and the
// plugin its tombstones.
const DefaultStateDir = "/var/lib/zlayer"
