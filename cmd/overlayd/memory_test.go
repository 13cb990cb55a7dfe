package main

import (
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

func TestMemoryLimitLeavesRoomForPeers(t *testing.T) {
	// What wireguard-go was measured to hold for 5,000 peers, less its buffers.
	const measured = 170 << 20
	if got := memoryLimit(wireguard.Userspace, 5000); got < measured+baseMemory {
		t.Errorf("limit for 5,000 peers in this process: %d MiB", got>>20)
	}
	if got := memoryLimit(wireguard.Kernel, 10); got > baseMemory+1<<20 {
		t.Errorf("limit for 10 peers in the kernel: %d MiB", got>>20)
	}
}
