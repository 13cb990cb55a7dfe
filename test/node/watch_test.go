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
	file *os.File
	done sync.WaitGroup

	mu     sync.Mutex // guards frames and found
	frames int
	found  []string
}

// startWatch watches until the test ends.
func startWatch(t *testing.T, fabric *netlab.NS, pods ...netip.Prefix) *watch {
	t.Helper()
	w := &watch{pods: pods}
	err := fabric.Do(func() error {
		everything := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, everything)
		if err != nil {
			return err
		}
		w.file = os.NewFile(uintptr(fd), "underlay")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w.done.Go(w.read)
	t.Cleanup(func() {
		_ = w.file.SetReadDeadline(time.Now())
		w.done.Wait()
		_ = w.file.Close()
	})
	return w
}

func (w *watch) read() {
	frame := make([]byte, 1<<16)
	for {
		n, err := w.file.Read(frame)
		if err != nil {
			return
		}
		from, to, ok := ends(frame[:n])
		w.mu.Lock()
		w.frames++
		if ok && slices.ContainsFunc(w.pods, func(p netip.Prefix) bool { return p.Contains(from) || p.Contains(to) }) {
			w.found = append(w.found, fmt.Sprintf("%s to %s", from, to))
		}
		w.mu.Unlock()
	}
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
