//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// wireGuardPort is where nodes expect each other's tunnels.
const wireGuardPort = 51820

// underlay is the link by which kind connects a node.
const underlay = "eth0"

// capture reads what crosses the underlay at every node, and keeps what must
// not.
type capture struct {
	taps []*tap

	mu     sync.Mutex // guards leaks and slices
	leaks  []string
	slices []netip.Prefix
}

// tap is the capture at one node.
type tap struct {
	node   string
	file   *os.File
	done   chan struct{}
	frames atomic.Int64 // all
	tunnel atomic.Int64 // WireGuard's
}

// startCapture counts frames from its return on.
func startCapture(nodes []*node) (*capture, error) {
	c := &capture{}
	for _, n := range nodes {
		c.slices = append(c.slices, n.slices...)
	}
	for _, n := range nodes {
		t := &tap{node: n.name, done: make(chan struct{})}
		if err := n.do(t.open); err != nil {
			return nil, errors.Join(fmt.Errorf("capture at %s: %w", n.name, err), c.close())
		}
		c.taps = append(c.taps, t)
		go c.read(t)
	}
	return c, nil
}

// watch adds slices that a node got later.
func (c *capture) watch(more []netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slices = append(c.slices, more...)
}

func (t *tap) open() error {
	handle, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	t.file = os.NewFile(uintptr(handle), "capture")
	if err := t.prepare(handle); err != nil {
		return errors.Join(err, t.file.Close())
	}
	return nil
}

// prepare sets the socket up before the first frame can reach it.
func (t *tap) prepare(handle int) error {
	const buffer = 64 << 20
	if err := unix.SetsockoptInt(handle, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		return fmt.Errorf("enlarge buffer: %w", err)
	}
	filter, err := shortenWireGuard()
	if err != nil {
		return err
	}
	if err := unix.SetsockoptSockFprog(handle, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, filter); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	link, err := interfaceIndex(underlay)
	if err != nil {
		return err
	}
	return unix.Bind(handle, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: link})
}

func interfaceIndex(name string) (int, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	handle, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(handle) }()
	if err := unix.IoctlIfreq(handle, unix.SIOCGIFINDEX, request); err != nil {
		return 0, fmt.Errorf("find link %s: %w", name, err)
	}
	return int(request.Uint32()), nil
}

// tunnelLength is how much of a WireGuard frame is copied: headers, which are
// enough to count it.
const tunnelLength = 80

// shortenWireGuard is a socket filter that passes the beginning of frames to
// WireGuard's port, and all of every other, which is looked at closely. A load
// test sends little but the former.
func shortenWireGuard() (*unix.SockFprog, error) {
	const whole = 1 << 18
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipTrue: 6},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 10},
		bpf.LoadAbsolute{Off: ethernetLen + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 8},
		bpf.LoadMemShift{Off: ethernetLen},
		bpf.LoadIndirect{Off: ethernetLen + 2, Size: 2},
		bpf.Jump{Skip: 3},
		bpf.LoadAbsolute{Off: ethernetLen + 6, Size: 1}, // IPv6
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 3},
		bpf.LoadAbsolute{Off: ethernetLen + ipv6Len + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: wireGuardPort, SkipTrue: 1}, // both
		bpf.RetConstant{Val: tunnelLength},
		bpf.RetConstant{Val: whole},
	})
	if err != nil {
		return nil, fmt.Errorf("assemble filter: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, instruction := range raw {
		code[i] = unix.SockFilter{Code: instruction.Op, Jt: instruction.Jt, Jf: instruction.Jf, K: instruction.K}
	}
	return &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}, nil
}

// read judges frames until the tap is closed.
func (c *capture) read(t *tap) {
	defer close(t.done)
	frame := make([]byte, 1<<18)
	for {
		n, err := t.file.Read(frame)
		if err != nil {
			return
		}
		t.frames.Add(1)
		c.judge(t, frame[:n])
	}
}

func (c *capture) judge(t *tap, frame []byte) {
	f := parse(frame)
	if f.wireGuard {
		t.tunnel.Add(1)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, slice := range c.slices {
		if slice.Contains(f.from) || slice.Contains(f.to) {
			c.leak(t, fmt.Sprintf("%s from %v to %v", f.what, f.from, f.to))
			return
		}
	}
	if bytes.Contains(frame, []byte(marker)) {
		c.leak(t, fmt.Sprintf("readable pod traffic in %s from %v to %v", f.what, f.from, f.to))
	}
}

// leak notes a frame; the caller holds the lock.
func (c *capture) leak(t *tap, what string) {
	const most = 20
	if len(c.leaks) < most {
		c.leaks = append(c.leaks, fmt.Sprintf("%s at %s: %s", time.Now().Format(time.TimeOnly), t.node, what))
	}
}

// takeLeaks returns what leaked since the last call.
func (c *capture) takeLeaks() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.leaks
	c.leaks = nil
	return slices.Clone(taken)
}

// close ends the capture and says what it saw. It fails if pod traffic leaked
// that no test has reported yet, or if frames were missed.
func (c *capture) close() error {
	var errs []error
	for _, t := range c.taps {
		errs = append(errs, t.close())
		<-t.done
		fmt.Printf("underlay at %s: %d frames, %d of them WireGuard\n", t.node, t.frames.Load(), t.tunnel.Load())
	}
	for _, leak := range c.takeLeaks() {
		errs = append(errs, fmt.Errorf("pod traffic on the underlay: %s", leak))
	}
	return errors.Join(errs...)
}

func (t *tap) close() error {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return err
	}
	var stats *unix.TpacketStats
	var statsErr error
	err = raw.Control(func(handle uintptr) {
		stats, statsErr = unix.GetsockoptTpacketStats(int(handle), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err := errors.Join(err, statsErr, t.file.Close()); err != nil {
		return fmt.Errorf("end the capture at %s: %w", t.node, err)
	}
	if stats.Drops > 0 {
		return fmt.Errorf("the capture at %s missed %d frames, so it proves nothing", t.node, stats.Drops)
	}
	return nil
}

// watchWire blames a test for what leaked while it ran.
func watchWire(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		for _, leak := range lab.capture.takeLeaks() {
			t.Errorf("pod traffic on the underlay: %s", leak)
		}
	})
}

// Lengths of headers, in bytes.
const (
	ethernetLen = 14
	ipv4Len     = 20
	ipv6Len     = 40
)

// frame is what the capture knows of one.
type frame struct {
	what      string
	from, to  netip.Addr
	wireGuard bool
}

// parse reads a frame as far as it is IP, ARP or neighbour discovery.
func parse(raw []byte) frame {
	if len(raw) < ethernetLen {
		return frame{what: "a short frame"}
	}
	body := raw[ethernetLen:]
	switch kind := binary.BigEndian.Uint16(raw[12:]); {
	case kind == unix.ETH_P_IP && len(body) >= ipv4Len:
		f := frame{what: fmt.Sprintf("IP protocol %d", body[9]), from: addrOf(body[12:16]), to: addrOf(body[16:20])}
		header := int(body[0]&0xf) * 4
		f.wireGuard = body[9] == unix.IPPROTO_UDP && isWireGuard(body[min(header, len(body)):])
		return f
	case kind == unix.ETH_P_IPV6 && len(body) >= ipv6Len:
		f := frame{what: fmt.Sprintf("IP protocol %d", body[6]), from: addrOf(body[8:24]), to: addrOf(body[24:40])}
		f.wireGuard = body[6] == unix.IPPROTO_UDP && isWireGuard(body[ipv6Len:])
		const solicitation, target = 135, 8 // RFC 4861: who has this address
		if icmp := body[ipv6Len:]; body[6] == unix.IPPROTO_ICMPV6 && len(icmp) >= target+16 && icmp[0] == solicitation {
			f.what, f.to = "neighbour solicitation", addrOf(icmp[target:target+16])
		}
		return f
	case kind == unix.ETH_P_ARP && len(body) >= 28:
		return frame{what: "ARP", from: addrOf(body[14:18]), to: addrOf(body[24:28])}
	default:
		return frame{what: fmt.Sprintf("a frame of EtherType %#04x", kind)}
	}
}

func addrOf(raw []byte) netip.Addr {
	addr, _ := netip.AddrFromSlice(raw)
	return addr
}

// isWireGuard recognises the port and the four message types.
func isWireGuard(packet []byte) bool {
	const header = 8
	if len(packet) < header+4 || binary.BigEndian.Uint16(packet[2:]) != wireGuardPort {
		return false
	}
	kind := binary.LittleEndian.Uint32(packet[header:]) // a byte of type, three of zero
	return kind >= 1 && kind <= 4
}

// bigEndian is how the kernel wants a protocol number in a socket address.
func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}

// TestCaptureSeesPodTraffic shows that the capture would notice what the other
// tests trust it with: the marker, readable between two nodes, and addresses of
// pods.
func TestCaptureSeesPodTraffic(t *testing.T) {
	watchWire(t)
	from, to := lab.nodes[1], lab.nodes[2]
	serve(t, to.place, nodePort)
	if _, err := from.ask(t.Context(), "udp", netip.AddrPortFrom(to.addr(false), nodePort), marker); err != nil {
		t.Fatal(err)
	}
	const twoPacketsAtTwoNodes = 4
	seen := 0
	eventually(t, "readable packets are noticed", func(context.Context) error {
		if seen += len(lab.capture.takeLeaks()); seen < twoPacketsAtTwoNodes {
			return fmt.Errorf("%d of %d", seen, twoPacketsAtTwoNodes)
		}
		return nil
	})
	for _, slice := range to.slices {
		raw := packetTo(slice.Addr().Next())
		alone := &capture{slices: to.slices}
		if alone.judge(&tap{}, raw); len(alone.takeLeaks()) != 1 {
			t.Errorf("a packet to %v passes", slice.Addr().Next())
		}
	}
}

// packetTo is a frame with an IP packet without contents.
func packetTo(addr netip.Addr) []byte {
	if addr.Is4() {
		raw := make([]byte, ethernetLen+ipv4Len)
		binary.BigEndian.PutUint16(raw[12:], unix.ETH_P_IP)
		copy(raw[ethernetLen+16:], addr.AsSlice())
		return raw
	}
	raw := make([]byte, ethernetLen+ipv6Len)
	binary.BigEndian.PutUint16(raw[12:], unix.ETH_P_IPV6)
	copy(raw[ethernetLen+24:], addr.AsSlice())
	return raw
}
