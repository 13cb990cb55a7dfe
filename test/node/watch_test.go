//go:build linux

package node

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// watch sees every frame of an underlay and keeps those in which a pod's
// address is readable.
type watch struct {
	pods []netip.Prefix

	mu     sync.Mutex // guards frames and found
	frames int
	found  []string
}

// startWatch watches until the test ends.
func startWatch(t *testing.T, fabric *netlab.NS, pods ...netip.Prefix) *watch {
	t.Helper()
	w := &watch{pods: pods}
	seeFrames(t, fabric, frameKind{unix.SOCK_RAW, unix.ETH_P_ALL}, w.see)
	return w
}

func (w *watch) see(frame []byte) {
	from, to, ok := ends(frame)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frames++
	if ok && slices.ContainsFunc(w.pods, func(p netip.Prefix) bool { return p.Contains(from) || p.Contains(to) }) {
		w.found = append(w.found, fmt.Sprintf("%s to %s", from, to))
	}
}

// frameKind is which frames a packet socket hands out, and how: SOCK_RAW whole,
// SOCK_DGRAM without the link's header. Those of ETH_P_ALL are all, those of any
// other protocol only what comes in.
type frameKind struct{ socket, protocol int }

// seeFrames gives see every frame of the kind in a namespace, one after the
// other, until the test ends.
func seeFrames(t *testing.T, ns *netlab.NS, kind frameKind, see func(frame []byte)) {
	t.Helper()
	var file *os.File
	err := ns.Do(func() error {
		protocol := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, uint16(kind.protocol))))
		fd, err := unix.Socket(unix.AF_PACKET, kind.socket|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "frames of "+ns.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		frame := make([]byte, 1<<16)
		for {
			n, err := file.Read(frame)
			if err != nil {
				return
			}
			see(frame[:n])
		}
	})
	t.Cleanup(func() {
		_ = file.SetReadDeadline(time.Now())
		reading.Wait()
		_ = file.Close()
	})
}

// ends are the IP addresses of an Ethernet frame.
func ends(frame []byte) (from, to netip.Addr, ok bool) {
	const etherLen, v4Ends, v6Ends = 14, 12, 8
	if len(frame) < etherLen {
		return from, to, false
	}
	ip, at, length := frame[etherLen:], 0, 0
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		at, length = v4Ends, net.IPv4len
	case unix.ETH_P_IPV6:
		at, length = v6Ends, net.IPv6len
	}
	if length == 0 || len(ip) < at+2*length {
		return from, to, false
	}
	from, _ = netip.AddrFromSlice(ip[at : at+length])
	to, _ = netip.AddrFromSlice(ip[at+length : at+2*length])
	return from, to, true
}

// clear returns what crossed the underlay in clear. A watch that saw no frame
// at all proves nothing and fails the test.
func (w *watch) clear(t *testing.T) []string {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.frames == 0 {
		t.Error("the watch saw no frame")
	}
	return w.found
}
