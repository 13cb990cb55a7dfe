//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/zlayer/zlayer-cni/test/netlab"
	"golang.org/x/sys/unix"
)

// snapLength is how much of a frame the kernel copies out: all of a ping.
const snapLength = 256

// tally is what a capture has seen so far.
type tally struct {
	// Frames counts frames by kind.
	Frames map[kind]int
	// Strangers describes the first few frames of the kinds that must not occur.
	Strangers []string
	// Missed counts frames that the kernel dropped because the capture was too slow.
	Missed int
}

// fabricBridge is the name that netlab gives the underlay's bridge.
const fabricBridge = "fabric"

// capture reads every frame that a host sends into the underlay, once.
type capture struct {
	file   *os.File
	bridge int // index of the fabric's bridge, whose own copies of frames do not count
	filter classifier

	mu   sync.Mutex // guards seen
	seen tally
}

// startCapture opens the capture; frames count from its return on. The caller
// runs it.
func startCapture(fabric *netlab.NS, filter classifier) (*capture, error) {
	handle, err := fabric.Handle()
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	bridge, err := handle.LinkByName(fabricBridge)
	if err != nil {
		return nil, fmt.Errorf("capture the underlay: find its bridge: %w", err)
	}
	c := &capture{bridge: bridge.Attrs().Index, filter: filter, seen: tally{Frames: map[kind]int{}}}
	if err := fabric.Do(c.open); err != nil {
		return nil, fmt.Errorf("capture the underlay: %w", err)
	}
	return c, nil
}

func (c *capture) open() error {
	handle, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(handle), "underlay capture")
	if err := c.prepare(handle); err != nil {
		return errors.Join(err, file.Close())
	}
	c.file = file
	return nil
}

// prepare sets the socket up before the first frame can reach it.
func (c *capture) prepare(handle int) error {
	const buffer = 8 << 20
	if err := unix.SetsockoptInt(handle, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		// Without the privilege the kernel's default has to do; frames missed are counted.
		_ = unix.SetsockoptInt(handle, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	if err := unix.SetsockoptSockFprog(handle, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, incomingOnly()); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return unix.Bind(handle, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL)})
}

// incomingOnly is a socket filter that passes frames which enter the fabric.
// The same frames leave it again by another port, and would count twice.
func incomingOnly() *unix.SockFprog {
	const packetType = 1<<32 - 0x1000 + 4 // SKF_AD_OFF + SKF_AD_PKTTYPE of linux/filter.h
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: packetType},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OUTGOING, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: snapLength},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	return &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
}

// run counts frames until ctx ends, then closes the capture.
func (c *capture) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.file.SetReadDeadline(time.Now()) })
	defer stop()
	defer func() { _ = c.file.Close() }()
	for {
		err := c.readOne()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("capture the underlay: %w", err)
		}
	}
}

func (c *capture) readOne() error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var frame [snapLength]byte
	var length int
	var from unix.Sockaddr
	var readErr error
	err = raw.Read(func(handle uintptr) bool {
		length, from, readErr = unix.Recvfrom(int(handle), frame[:], 0)
		return !errors.Is(readErr, unix.EAGAIN)
	})
	if err := errors.Join(err, readErr); err != nil {
		return err
	}
	if link, ok := from.(*unix.SockaddrLinklayer); ok && link.Ifindex != c.bridge {
		c.count(frame[:length])
	}
	return nil
}

func (c *capture) count(frame []byte) {
	const strangersKept = 5
	what := c.filter.classify(frame)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen.Frames[what]++
	if !what.expected() && len(c.seen.Strangers) < strangersKept {
		c.seen.Strangers = append(c.seen.Strangers, describe(frame))
	}
}

// tally returns what was seen up to now.
func (c *capture) tally() (tally, error) {
	missed, err := c.missed()
	if err != nil {
		return tally{}, fmt.Errorf("read capture statistics: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen.Missed += missed
	copied := tally{Frames: map[kind]int{}, Missed: c.seen.Missed}
	for what, n := range c.seen.Frames {
		copied.Frames[what] = n
	}
	copied.Strangers = append(copied.Strangers, c.seen.Strangers...)
	return copied, nil
}

// reset forgets what was seen.
func (c *capture) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = tally{Frames: map[kind]int{}}
}

// missed returns the frames dropped since the last call: the kernel resets its
// counter when it is read.
func (c *capture) missed() (int, error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stats *unix.TpacketStats
	var statsErr error
	err = raw.Control(func(handle uintptr) {
		stats, statsErr = unix.GetsockoptTpacketStats(int(handle), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err := errors.Join(err, statsErr); err != nil {
		return 0, err
	}
	return int(stats.Drops), nil
}

// bigEndian is how the kernel wants a protocol number in a socket address.
func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}
