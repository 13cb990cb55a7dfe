package main

import (
	"os"
	"runtime/debug"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

const (
	// gcPercent trades a little more collecting for less memory: the daemon has
	// little to do and shares the node with pods. Its live heap is a few MiB,
	// and half of that again is what may be garbage.
	gcPercent = 50
	// baseMemory is where the collector starts to work harder and to give memory
	// back at once, in bytes: beyond what a node with a hundred pods and ten
	// peers needs, packet buffers of wireguard-go included, so that only a burst
	// gets there.
	baseMemory = 64 << 20
	// A peer takes some 6 KiB while its state is read, and 40 KiB of buffers,
	// queues and stacks more where wireguard-go runs it. The limit must stay
	// above what is in use, else the collector takes half the processor for
	// nothing: measured with 5,000 peers and a fixed limit.
	peerMemoryKernel    = 16 << 10
	peerMemoryUserspace = 80 << 10
)

// memoryLimit is the soft limit for a number of peers, in bytes.
func memoryLimit(backend wireguard.Backend, peers int) int64 {
	perPeer := int64(peerMemoryKernel)
	if backend == wireguard.Userspace {
		perPeer = peerMemoryUserspace
	}
	return baseMemory + int64(peers)*perPeer
}

// boundMemory tells the runtime how much memory this process should need. GOGC
// and GOMEMLIMIT say otherwise if the operator set them.
func boundMemory(backend wireguard.Backend, peers int) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit(backend, peers))
	}
	switch {
	case os.Getenv("GOGC") != "":
	case backend == wireguard.Userspace:
		wireguard.BoundMemory()
	default:
		debug.SetGCPercent(gcPercent)
	}
}
