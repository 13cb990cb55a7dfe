package main

import (
	"os"
	"runtime/debug"
)

const (
	// gcPercent trades a little more collecting for less memory: the daemon has
	// little to do and shares the node with pods. The live heap is a few MiB, and
	// half of that again is what may be garbage at any time.
	gcPercent = 50
	// memoryLimit is where the collector begins to work harder and to give memory
	// back at once, in bytes. It is above what a node with some hundred pods
	// and peers needs, so only a burst reaches it: thousands of peers, or the
	// packet buffers of wireguard-go under load. It is no hard limit.
	memoryLimit = 48 << 20
)

// tuneMemory bounds the memory of this process, unless GOGC or GOMEMLIMIT say
// what the operator wants.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
