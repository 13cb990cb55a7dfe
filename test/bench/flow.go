//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// route is a way for TCP from one namespace to another.
type route struct {
	name     string
	from, to *netlab.NS
	addr     netip.Addr   // of to
	pids     func() []int // of the processes that carry the packets, if any
	hop      func() int   // that of them which passes packets on between the ends; nil: none does
}

// flowResult is what a number of TCP flows achieved.
type flowResult struct {
	gigabits float64 // per second, received
	cpu      float64 // CPU seconds per gigabyte: both ends, carriers and interrupts
	hop      float64 // CPU seconds per gigabyte of the process between the ends, if there is one
}

// warmUp is left out of a measurement: TCP starts slowly.
const warmUp = 500 * time.Millisecond

// measureFlows sends as fast as TCP goes for a while.
func measureFlows(ctx context.Context, way route, flows int, seconds float64) (flowResult, error) {
	span := time.Duration(seconds * float64(time.Second))
	ctx, cancel := context.WithTimeout(ctx, warmUp+span+30*time.Second)
	defer cancel()
	var received atomic.Int64
	var group errgroup.Group
	conns, err := connect(way, flows)
	defer func() {
		for _, conn := range conns {
			_ = conn.Close() // again, for those that errors left open
		}
	}()
	if err != nil {
		return flowResult{}, fmt.Errorf("%s: %w", way.name, err)
	}
	for i, conn := range conns {
		if i%2 == 0 {
			group.Go(func() error { return send(conn) })
		} else {
			group.Go(func() error { return count(conn, &received) })
		}
	}
	result, err := window(ctx, way, span, &received)
	for _, conn := range conns {
		_ = conn.Close()
	}
	if err := errors.Join(err, group.Wait()); err != nil {
		return result, fmt.Errorf("%s: %w", way.name, err)
	}
	return result, nil
}

// window measures from the end of the warm-up on.
func window(ctx context.Context, way route, span time.Duration, received *atomic.Int64) (flowResult, error) {
	if err := pause(ctx, warmUp); err != nil {
		return flowResult{}, err
	}
	started, bytes, cpu, hop := time.Now(), received.Load(), cpuSeconds(way.pids()), way.hopSeconds()
	if err := pause(ctx, span); err != nil {
		return flowResult{}, err
	}
	took, got := time.Since(started), received.Load()-bytes
	if got == 0 {
		return flowResult{}, errors.New("nothing arrived")
	}
	gigabytes := float64(got) / 1e9
	return flowResult{
		gigabits: gigabytes * 8 / took.Seconds(),
		cpu:      (cpuSeconds(way.pids()) - cpu) / gigabytes,
		hop:      (way.hopSeconds() - hop) / gigabytes,
	}, nil
}

// hopSeconds is the CPU time of the process between the ends; what the kernel
// does for it in interrupts is not told apart from the rest.
func (r route) hopSeconds() float64 {
	if r.hop == nil {
		return 0
	}
	return float64(processTicks(r.hop())) / ticksPerSecond
}

// connect returns connected sockets: sender, receiver, sender, receiver, ...
func connect(way route, flows int) ([]net.Conn, error) {
	var conns []net.Conn
	var listener net.Listener
	err := way.to.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(way.addr, 0).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = listener.Close() }()
	for range flows {
		var sender net.Conn
		err := way.from.Do(func() (err error) {
			dialer := net.Dialer{Timeout: 10 * time.Second, FallbackDelay: -1}
			sender, err = dialer.Dial("tcp", listener.Addr().String())
			return err
		})
		if err != nil {
			return conns, err
		}
		receiver, err := listener.Accept()
		if err != nil {
			return append(conns, sender), err
		}
		conns = append(conns, sender, receiver)
	}
	return conns, nil
}

const flowBuffer = 256 << 10

// send writes until the connection is closed.
func send(conn net.Conn) error {
	buffer := make([]byte, flowBuffer)
	for {
		if _, err := conn.Write(buffer); err != nil {
			return ended(err)
		}
	}
}

// count reads until the connection is closed.
func count(conn net.Conn, received *atomic.Int64) error {
	buffer := make([]byte, flowBuffer)
	for {
		n, err := conn.Read(buffer)
		received.Add(int64(n))
		if err != nil {
			return ended(err)
		}
	}
}

// ended turns the ways in which a measurement ends a flow into nil.
func ended(err error) error {
	for _, end := range []error{net.ErrClosed, io.EOF, unix.ECONNRESET, unix.EPIPE} {
		if errors.Is(err, end) {
			return nil
		}
	}
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// ticksPerSecond is USER_HZ, the same on every architecture that Go runs on.
const ticksPerSecond = 100

// cpuSeconds is the CPU time of this process, of those that carry packets, and
// of the machine's interrupts, which is where the kernel forwards.
func cpuSeconds(pids []int) float64 {
	var ticks uint64
	for _, pid := range append(pids, os.Getpid()) {
		ticks += processTicks(pid)
	}
	const irq, softirq = 5, 6
	if all := cpuTicks(); len(all) > softirq {
		ticks += all[irq] + all[softirq]
	}
	return float64(ticks) / ticksPerSecond
}

// processTicks reads utime and stime of /proc/PID/stat (proc(5)); 0 if the
// process is gone.
func processTicks(pid int) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name in parentheses may hold anything; the fields after it are plain.
	_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')'):]), " ")
	fields := strings.Fields(rest)
	const utime, stime = 11, 12
	if len(fields) <= stime {
		return 0
	}
	var sum uint64
	for _, field := range fields[utime : stime+1] {
		value, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0
		}
		sum += value
	}
	return sum
}
