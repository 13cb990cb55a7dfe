//go:build linux

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// probePort is where probes go that are not to be sent on to another.
const probePort = 7008

// probe is a datagram that comes out somewhere, or nowhere.
type probe struct {
	name string
	from *netlab.NS
	// source, if given, is an address that the sender may not have; device, if
	// given, the link by which the probe leaves.
	source netip.Addr
	device string
	to     netip.AddrPort
	// want is the place where it comes out, none if it shall come nowhere.
	want string
}

// prober sends probes and knows where each came out.
type prober struct {
	t *testing.T

	mu   sync.Mutex                // guards came
	came map[string]map[string]int // how often a probe came to a place
}

func newProber(t *testing.T) *prober {
	t.Helper()
	return &prober{t: t, came: map[string]map[string]int{}}
}

// watchPod makes a sandbox a place: whatever comes in by its links counts, also
// what the sandbox itself would drop.
func (p *prober) watchPod(ns *netlab.NS) {
	p.t.Helper()
	for _, protocol := range []int{unix.ETH_P_IP, unix.ETH_P_IPV6} {
		seeFrames(p.t, ns, frameKind{unix.SOCK_DGRAM, protocol}, func(packet []byte) {
			const protocol4, protocol6 = 9, 6 // offsets in the headers
			udp := len(packet) > protocol4 && (packet[0]>>4 == 4 && packet[protocol4] == unix.IPPROTO_UDP || packet[0]>>4 == 6 && packet[protocol6] == unix.IPPROTO_UDP)
			if udp { // an ICMP error quotes a probe to its own sender
				p.note(ns.Name, packet)
			}
		})
	}
}

// watchHost makes a machine a place: what its own sockets get counts.
func (p *prober) watchHost(ns *netlab.NS) {
	p.t.Helper()
	var conn net.PacketConn
	err := ns.Do(func() (err error) {
		var config net.ListenConfig
		conn, err = config.ListenPacket(p.t.Context(), "udp", fmt.Sprintf(":%d", probePort))
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		packet := make([]byte, 1<<16)
		for {
			n, _, err := conn.ReadFrom(packet)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			p.note(ns.Name, packet[:n])
		}
	})
	p.t.Cleanup(func() {
		_ = conn.Close()
		reading.Wait()
	})
}

// Every probe's payload is its name between these.
const probeBegin, probeEnd = "<<probe ", ">>"

func (p *prober) note(place string, packet []byte) {
	_, rest, found := bytes.Cut(packet, []byte(probeBegin))
	name, _, whole := bytes.Cut(rest, []byte(probeEnd))
	if !found || !whole {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.came[string(name)] == nil {
		p.came[string(name)] = map[string]int{}
	}
	p.came[string(name)][place]++
}

// count is how often a probe came to where it shall.
func (p *prober) count(one probe) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.came[one.name][one.want]
}

// check sends all probes several times, and fails the test for each that does not
// come out where it shall or comes out elsewhere. Those that shall come somewhere
// make the tunnels work before, and come once more after all others were sent.
func (p *prober) check(r *rig, probes []probe) {
	p.t.Helper()
	var wanted []sender
	var all []sender
	for _, one := range probes {
		s := p.open(one)
		all = append(all, s)
		if one.want != "" {
			wanted = append(wanted, s)
		}
	}
	p.await(r, wanted)
	const rounds = 3
	for range rounds {
		for _, s := range all {
			s.send()
		}
	}
	p.await(r, wanted)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range probes {
		for place, times := range p.came[one.name] {
			if place != one.want {
				p.t.Errorf("%s: came to %s %d times, want %s", one.name, place, times, orNowhere(one.want))
			}
		}
	}
}

func orNowhere(place string) string {
	if place == "" {
		return "nowhere"
	}
	return place
}

// await sends probes until each has come out again.
func (p *prober) await(r *rig, wanted []sender) {
	p.t.Helper()
	before := map[string]int{}
	for _, s := range wanted {
		before[s.name] = p.count(s.probe)
	}
	r.eventually("probes come out", func() error {
		var lost []string
		for _, s := range wanted {
			if p.count(s.probe) == before[s.name] {
				lost = append(lost, s.name)
				s.send()
			}
		}
		if len(lost) > 0 {
			return fmt.Errorf("%d do not, as: %s", len(lost), strings.Join(lost[:min(len(lost), 5)], "; "))
		}
		return nil
	})
}

// sender is an opened probe. Without a connection its sender had no way at all.
type sender struct {
	probe
	conn net.Conn
}

func (p *prober) open(one probe) sender {
	p.t.Helper()
	s := sender{probe: one}
	dialer := net.Dialer{Control: one.control}
	if one.source.IsValid() {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(one.source, 0))
	}
	err := one.from.Do(func() (err error) {
		s.conn, err = dialer.DialContext(p.t.Context(), "udp", one.to.String())
		return err
	})
	noWay := errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
	if err != nil && (one.want != "" || !noWay) {
		p.t.Fatalf("%s: %v", one.name, err)
	}
	p.t.Cleanup(func() {
		if s.conn != nil {
			_ = s.conn.Close()
		}
	})
	return s
}

// control lets a socket have an address that its host does not have, and binds it
// to a link.
func (one probe) control(network, _ string, raw syscall.RawConn) error {
	var err error
	outer := raw.Control(func(fd uintptr) {
		if one.source.IsValid() {
			level, option := unix.SOL_IP, unix.IP_TRANSPARENT
			if strings.HasSuffix(network, "6") {
				level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
			}
			err = unix.SetsockoptInt(int(fd), level, option, 1)
		}
		if one.device != "" {
			err = errors.Join(err, unix.BindToDevice(int(fd), one.device))
		}
	})
	return errors.Join(outer, err)
}

// send sends the probe once. What its own host refuses comes nowhere.
func (s sender) send() {
	if s.conn != nil {
		_, _ = s.conn.Write([]byte(probeBegin + s.name + probeEnd))
	}
}

// answers tells whether an address answers a ping from a namespace.
func answers(ctx context.Context, from *netlab.NS, to netip.Addr) error {
	out, err := from.Command(ctx, "ping", "-n", "-c", "1", "-W", "1", to.String()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ping %s from %s: %w: %s", to, from.Name, err, out)
	}
	return nil
}
