package wireguard

import (
	"runtime"
	"runtime/debug"
)

// GCPercent is what BoundMemory sets.
const GCPercent = 20

// BoundMemory sets the garbage collector of this process so that a userspace
// device stays small: it lets the heap grow by 20 percent before it collects,
// instead of 100. A userspace device holds some 40 MiB of packet buffers while it
// carries traffic, which the collector would allow as much garbage again.
// Collecting is cheap there, since buffers hold no pointers. On Linux it also
// turns transparent huge pages off for the process, with which an idle device
// took 8 MiB.
//
// Buffers and their bound are each device's own, so that one whose peers don't
// answer holds up no other: devices that carry traffic at the same time take as
// much each. One that carries none takes some 0.6 MiB.
//
// A program that has a userspace device calls it once at its start. With kernel
// devices it gains nothing.
func BoundMemory() {
	debug.SetGCPercent(GCPercent)
	smallPages()
}

// releaseBuffers gives the pooled packet buffers back to the system. A pool
// gives up what was not used between two collections.
func releaseBuffers() {
	runtime.GC()
	debug.FreeOSMemory()
}
