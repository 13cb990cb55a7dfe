package nat

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what should happen soon: tests also run
// in an emulated machine that is 30 times slower.
const patience = 60 * time.Second

// watch runs WatchNetwork in h until the test ends, and returns a channel of
// its calls.
func (h host) watch(t *testing.T) <-chan struct{} {
	t.Helper()
	calls := make(chan struct{}, 100)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- h.ns.Do(func() error { return WatchNetwork(ctx, func() { calls <- struct{}{} }) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	called(t, calls, "when it began")
	return calls
}

func called(t *testing.T, calls <-chan struct{}, when string) {
	t.Helper()
	select {
	case <-calls:
	case <-time.After(patience):
		t.Fatalf("no call %s", when)
	}
}

// quiet fails if there is a call within the time in which there would be one.
func quiet(t *testing.T, calls <-chan struct{}, when string) {
	t.Helper()
	select {
	case <-calls:
		t.Errorf("a call %s", when)
	case <-time.After(2 * settleTime):
	}
}

func TestWatchNetwork(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	h := newHost(t, "watched")
	h.uplink(t, "up0", "192.0.2.5/24")
	h.route(t, "up0", "0.0.0.0/0", "192.0.2.1")
	h.has(t, "192.0.2.5")
	calls := h.watch(t)
	quiet(t, calls, "without a change")

	h.addr(t, "up0", "192.0.2.6/24", nil)
	called(t, calls, "for a new address")
	h.addr(t, "up0", "2001:db8::5/64", nil)
	called(t, calls, "for a new IPv6 address")
	h.delAddr(t, "up0", "192.0.2.6/24")
	called(t, calls, "for an address that went")
	h.route(t, "up0", "::/0", "2001:db8::1")
	called(t, calls, "for a new default route")

	h.uplink(t, "pod0", "10.9.0.1/32")
	h.route(t, "pod0", "10.9.0.2/32", "")
	h.add(t, &netlink.Bridge{LinkAttrs: attrs("cni0")}, "10.9.1.1/24")
	for i := range 20 {
		h.addr(t, "cni0", fmt.Sprintf("10.9.1.%d/24", 100+i), nil)
	}
	quiet(t, calls, "for a pod")

	for i := range 20 {
		h.addr(t, "up0", fmt.Sprintf("192.0.2.%d/24", 200+i), nil)
	}
	called(t, calls, "for many new addresses")
	if err := h.LinkSetDown(h.link(t, "up0-peer")); err != nil {
		t.Fatal(err)
	}
	called(t, calls, "when the carrier was lost")
	h.up(t, "up0-peer")
	called(t, calls, "when it was back")
	if err := h.LinkDel(h.link(t, "up0")); err != nil {
		t.Fatal(err)
	}
	called(t, calls, "when the link went")
}

// TestWatchOverrun has the kernel announce more than the socket holds.
func TestWatchOverrun(t *testing.T) {
	h := newHost(t, "overrun")
	h.uplink(t, "up0")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done, events := make(chan error, 1), make(chan struct{}, 1)
	err := h.ns.Do(func() error {
		socket, err := openEvents()
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { _ = socket.Close() })
		raw, err := socket.SyscallConn()
		if err != nil {
			return err
		}
		err = raw.Control(func(fd uintptr) {
			if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			return err
		}
		for i := range 100 {
			h.addr(t, "up0", fmt.Sprintf("192.0.2.%d/24", i+1), nil)
		}
		go func() { done <- receiveEvents(ctx, socket, events) }()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	called(t, events, "for what was lost")
	h.addr(t, "up0", "198.51.100.1/24", nil)
	called(t, events, "after the socket was empty")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestWatchEnds checks that a watch ends with its context.
func TestWatchEnds(t *testing.T) {
	h := newHost(t, "ends")
	ctx, cancel := context.WithCancel(t.Context())
	err := h.ns.Do(func() error { return WatchNetwork(ctx, cancel) })
	if err != nil {
		t.Error(err)
	}
}

// TestEventFilter checks that routes of pods are dropped in the kernel.
func TestEventFilter(t *testing.T) {
	h := newHost(t, "filter")
	h.uplink(t, "up0", "192.0.2.5/24", "2001:db8::5/64")
	var socket *os.File
	err := h.ns.Do(func() (err error) {
		socket, err = openEvents()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	if err := socket.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for _, dst := range []string{"10.9.0.2/32", "2001:db8:9::2/128", "0.0.0.0/1", "0.0.0.0/0", "::/0"} {
		h.route(t, "up0", dst, "")
	}
	buf := make([]byte, 1<<16)
	for families := map[byte]bool{}; len(families) < 2; {
		if _, err := socket.Read(buf); err != nil {
			t.Fatal(err)
		}
		if binary.NativeEndian.Uint16(buf[4:]) != unix.RTM_NEWROUTE {
			continue
		}
		if bits := buf[unix.SizeofNlMsghdr+1]; bits != 0 {
			t.Errorf("a route of %d bits came through", bits)
		}
		families[buf[unix.SizeofNlMsghdr]] = true
	}
}
