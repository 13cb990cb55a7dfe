//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pairs are two pods of one node, and two of different nodes.
func pairs(pods []*pod) map[string][2]*pod {
	return map[string][2]*pod{
		"SameNode":    {pods[2], pods[3]},
		"AcrossNodes": {pods[2], pods[1]},
	}
}

// TestLargeTransfers sends many megabytes both ways at once, and compares.
func TestLargeTransfers(t *testing.T) {
	const size = 64 << 20
	pods := crew(t)
	payload := make([]byte, size)
	if _, err := rand.Read(payload); err != nil {
		t.Fatal(err)
	}
	copy(payload[size/2:], marker)
	for name, pair := range pairs(pods) {
		for _, ipv6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%s", name, family(ipv6)), func(t *testing.T) {
				watchWire(t)
				started := time.Now()
				target := netip.AddrPortFrom(pair[1].addr(ipv6), podPort)
				if err := sendAndCompare(t.Context(), pair[0].place, target, payload); err != nil {
					t.Fatal(err)
				}
				t.Logf("%d MiB there and back in %v", size>>20, time.Since(started).Round(time.Millisecond))
			})
		}
	}
}

func family(ipv6 bool) string {
	if ipv6 {
		return "IPv6"
	}
	return "IPv4"
}

func sendAndCompare(ctx context.Context, from place, target netip.AddrPort, payload []byte) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := from.dial(ctx, "tcp", target.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	written := make(chan error, 1)
	go func() {
		_, err := conn.Write(payload)
		written <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	received, err := io.ReadAll(conn)
	if err := errors.Join(<-written, err); err != nil {
		return fmt.Errorf("%d of %d bytes came back: %w", len(received), len(payload), err)
	}
	_, echo, _ := bytes.Cut(received, []byte("\n")) // after the greeting
	if sha256.Sum256(echo) != sha256.Sum256(payload) {
		return fmt.Errorf("%d bytes came back that are not the %d sent", len(echo), len(payload))
	}
	return nil
}

// TestPacketSizes sends UDP packets that must not be fragmented, up to exactly
// the MTU, both ways; the next larger one is refused where it is sent. Without
// that flag, large ones arrive in fragments.
func TestPacketSizes(t *testing.T) {
	pods := crew(t)
	for name, pair := range pairs(pods) {
		for _, ipv6 := range []bool{false, true} {
			headers := ipv4Len + 8
			if ipv6 {
				headers = ipv6Len + 8
			}
			t.Run(fmt.Sprintf("%s/%s", name, family(ipv6)), func(t *testing.T) {
				watchWire(t)
				mtu := mtuOf(t, pair[0].place)
				target := netip.AddrPortFrom(pair[1].addr(ipv6), podPort)
				for _, size := range []int{greetingRoom, mtu/2 - headers, mtu - headers - 1, mtu - headers} {
					eventually(t, fmt.Sprintf("a packet of %d bytes in an MTU of %d", size+headers, mtu), func(ctx context.Context) error {
						return echoPacket(ctx, pair[0].place, target, size, true)
					})
				}
				if err := echoPacket(t.Context(), pair[0].place, target, mtu-headers+1, true); !errors.Is(err, unix.EMSGSIZE) {
					t.Errorf("a packet of MTU+1 that must not be fragmented: %v, want %v", err, unix.EMSGSIZE)
				}
				for _, size := range []int{4000, 20000, 60000} {
					eventually(t, fmt.Sprintf("a packet of %d bytes in fragments", size), func(ctx context.Context) error {
						return echoPacket(ctx, pair[0].place, target, size, false)
					})
				}
			})
		}
	}
}

// mtuOf returns the MTU of a pod's link.
func mtuOf(t *testing.T, p place) int {
	t.Helper()
	handle, err := p.ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	link, err := handle.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().MTU
}

// echoPacket sends a packet of size bytes and wants it back. The server's
// socket lets its host fragment: a packet that came in one piece has shown
// that the way fits, and the way back is tried by its own pair.
func echoPacket(ctx context.Context, from place, target netip.AddrPort, size int, whole bool) error {
	const limit = 3 * time.Second
	conn, err := from.dial(ctx, "udp", target.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if whole {
		if err := dontFragment(conn.(*net.UDPConn), target.Addr().Is6()); err != nil {
			return err
		}
	}
	payload := bytes.Repeat([]byte(marker), size/len(marker)+1)[:size]
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := conn.Write(payload); err != nil {
		return err
	}
	answer := make([]byte, 1<<16)
	n, err := conn.Read(answer)
	if err != nil {
		return err
	}
	if !bytes.HasSuffix(answer[:n], payload) {
		return fmt.Errorf("%d other bytes came back", n)
	}
	return nil
}

func dontFragment(conn *net.UDPConn, ipv6 bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return control(raw, func(handle int) error {
		if ipv6 {
			return unix.SetsockoptInt(handle, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		}
		return unix.SetsockoptInt(handle, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
}

// control runs fn with a socket's handle.
func control(raw syscall.RawConn, fn func(handle int) error) error {
	var err error
	return errors.Join(raw.Control(func(handle uintptr) { err = fn(int(handle)) }), os.NewSyscallError("setsockopt", err))
}
