package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// faultOf is why a server does not listen on an address.
func faultOf(t testing.TB, s *Server, addr netip.AddrPort) error {
	t.Helper()
	for _, l := range s.Listeners() {
		if l.Addr == addr {
			return l.Fault
		}
	}
	t.Fatalf("%s is none of the listeners", addr)
	return nil
}

// waitForFault waits until the fault has all the words, or until there is none.
func waitForFault(t testing.TB, s *Server, addr netip.AddrPort, words ...string) {
	t.Helper()
	eventually(t, func() error {
		fault := faultOf(t, s, addr)
		if len(words) == 0 {
			return fault
		}
		for _, word := range words {
			if fault == nil || !strings.Contains(fault.Error(), word) {
				return fmt.Errorf("the fault of %s lacks some of %q: %w", addr, words, fault)
			}
		}
		return nil
	})
}

func TestOnlyDifferencesAreOpenedAndClosed(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s := newTestServer(ServerConfig{}, testZone())
	kept, removed, added := freePort(t, "127.0.0.1"), freePort(t, "127.0.0.2"), freePort(t, "::1")
	stop := run(t, s, kept, removed)
	defer stop()
	dial := func(addr netip.AddrPort) *dns.Conn {
		conn, err := (&dns.Client{Net: "tcp", Timeout: patience}).Dial(addr.String())
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	asked := func(conn *dns.Conn) error {
		if err := conn.WriteMsg(question("web.overlay.local.", dns.TypeA)); err != nil {
			return err
		}
		_, err := conn.ReadMsg()
		return err
	}
	keptConn, removedConn := dial(kept), dial(removed)
	must(t, errors.Join(asked(keptConn), asked(removedConn)))

	s.SetAddresses([]netip.AddrPort{added, kept, kept})
	waitForFault(t, s, added)
	if got := s.Listeners(); len(got) != 2 || got[0].Addr != kept || got[1].Addr != added {
		t.Errorf("listeners are %v", got)
	}
	if err := asked(keptConn); err != nil {
		t.Errorf("a connection to the address that stays: %v", err)
	}
	eventually(t, func() error { // it is closed before others are opened
		if asked(removedConn) == nil {
			return errors.New("a connection to the address that goes is still served")
		}
		return nil
	})
	for _, network := range []string{"udp", "tcp"} {
		askServer(t, network, added, question("web.overlay.local.", dns.TypeA))
		askServer(t, network, kept, question("web.overlay.local.", dns.TypeA))
	}
	free, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(removed))
	must(t, err)
	_ = free.Close()

	_, _ = keptConn.Close(), removedConn.Close()
	stop()
	if conn, err := net.Dial("tcp", kept.String()); err == nil {
		_ = conn.Close()
		t.Error("still listens after Run")
	}
}

func TestAnAddressInUseIsAFault(t *testing.T) {
	s := newTestServer(ServerConfig{}, testZone())
	free := freePort(t, "127.0.0.1")
	run(t, s, free)
	for _, proto := range []protocol{udp, tcp} {
		t.Run(proto.String(), func(t *testing.T) {
			taken := freePort(t, "127.0.0.3")
			holder := holdPort(t, proto, taken)
			other := "tcp"
			if proto == tcp {
				other = "udp"
			}
			s.SetAddresses([]netip.AddrPort{free, taken})
			waitForFault(t, s, taken, taken.String(), " by "+proto.String(), "address already in use", "stop the server")
			if text := faultOf(t, s, taken).Error(); strings.Contains(text, " by "+other) {
				t.Errorf("the other protocol has a fault: %s", text)
			}
			askServer(t, other, taken, question("web.overlay.local.", dns.TypeA))
			askServer(t, "udp", free, question("web.overlay.local.", dns.TypeA))
			_ = holder.Close()
			waitForFault(t, s, taken)
			askServer(t, proto.String(), taken, question("web.overlay.local.", dns.TypeA))
		})
	}
}

// holdPort has another server on an address.
func holdPort(t *testing.T, proto protocol, addr netip.AddrPort) interface{ Close() error } {
	t.Helper()
	if proto == udp {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(addr.Port())}) // on all addresses, as dnsmasq does
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	listener, err := net.Listen("tcp", addr.String())
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

func TestAnAddressComesAndGoes(t *testing.T) {
	for _, text := range []string{"10.7.7.7", "fd00:7::7"} {
		t.Run(text, func(t *testing.T) {
			s := newTestServer(ServerConfig{}, testZone())
			run(t, s)
			addr := netip.AddrPortFrom(netip.MustParseAddr(text), 53)
			s.SetAddresses([]netip.AddrPort{addr})
			waitForFault(t, s, addr, addr.String(), "no interface has this address")

			for range 2 { // a device is made, and again
				device := makeDevice(t, "wg-test", text)
				waitForFault(t, s, addr)
				askServer(t, "udp", addr, question("web.overlay.local.", dns.TypeA))
				askServer(t, "tcp", addr, question("web.overlay.local.", dns.TypeA))
				must(t, netlink.LinkDel(device))
				waitForFault(t, s, addr, "no interface has this address")
			}
		})
	}
}

func makeDevice(t *testing.T, name, addr string) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	device := &netlink.Bridge{LinkAttrs: attrs}
	must(t, netlink.LinkAdd(device))
	t.Cleanup(func() { _ = netlink.LinkDel(device) })
	must(t, netlink.LinkSetUp(device))
	ip := netip.MustParseAddr(addr)
	addAddress(t, device, netip.PrefixFrom(ip, ip.BitLen()).String())
	return device
}

// TestGatewaysOfSeveralBridges asks the same addresses on two bridges, and on
// one that takes the place of another with its name.
func TestGatewaysOfSeveralBridges(t *testing.T) {
	s := newTestServer(ServerConfig{}, testZone())
	addrs := []netip.AddrPort{netip.MustParseAddrPort(gateway4 + ":53"), netip.MustParseAddrPort("[" + gateway6 + "%br-a]:53"), netip.MustParseAddrPort("[" + gateway6 + "%br-b]:53")}
	bridgeA := makeBridge(t, "br-a")
	podA := makePod(t, "pod-a", bridgeA, "10.1.0.1/32", "fd00::a/128", "fe80::a/64")
	run(t, s, addrs[:2]...)
	s.SetAddresses(addrs)
	waitForFault(t, s, addrs[2], "no such interface as br-b")

	podB := makePod(t, "pod-b", makeBridge(t, "br-b"), "10.1.0.2/32", "fd00::b/128")
	waitForFault(t, s, addrs[2])
	everywhere := func() {
		t.Helper()
		for _, pod := range []struct {
			name string
			ask  func(args ...string) string
		}{{"a", func(args ...string) string { return dig(t, podA, args...) }}, {"b", func(args ...string) string { return dig(t, podB, args...) }}} {
			for _, gateway := range []string{gateway4, gateway6 + "%eth0"} {
				for _, network := range []string{"+notcp", "+tcp"} {
					if got := pod.ask("@"+gateway, network, "+short", "+tries=1", "+time=5", "web.overlay.local", "AAAA"); got != "fd00::1\n" {
						t.Errorf("pod %s asked %s %s: %s", pod.name, gateway, network, got)
					}
				}
			}
		}
	}
	everywhere()

	must(t, netlink.LinkDel(bridgeA))
	waitForFault(t, s, addrs[1], "no such interface as br-a")
	again := makeBridge(t, "br-a")
	if again.Attrs().Index == bridgeA.Attrs().Index {
		t.Fatal("the bridge has the same index")
	}
	inside, err := podA.Handle()
	must(t, err)
	defer inside.Close()
	eth0, err := inside.LinkByName("eth0")
	must(t, err)
	must(t, inside.LinkDel(eth0))
	attachPod(t, podA, again, "10.1.0.1/32", "fd00::a/128", "fe80::a/64")
	eventually(t, func() error {
		fault := faultOf(t, s, addrs[1])
		if errors.Is(fault, unix.ENODEV) {
			t.Fatalf("bound to the bridge that is gone: %v", fault)
		}
		return fault
	})
	everywhere()
}

// TestReadersOfListeners counts the goroutines, each of which has buffers: the
// address of a link, which every bridge has, is read by one.
func TestReadersOfListeners(t *testing.T) {
	readers := func() int {
		stacks := make([]byte, 1<<20)
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), ".readUDP(")
	}
	makeBridge(t, "br-readers")
	several := min(udpReaders, runtime.GOMAXPROCS(0))
	for text, want := range map[string]int{gateway4: several, gateway6 + "%br-readers": 1} {
		stop := run(t, newTestServer(ServerConfig{}, testZone()), netip.AddrPortFrom(netip.MustParseAddr(text), 53))
		eventually(t, func() error {
			if got := readers(); got != want {
				return fmt.Errorf("%s: %d readers, want %d", text, got, want)
			}
			return nil
		})
		stop()
	}
}

// TestASocketThatBreaksIsOpenedAnew breaks sockets behind the server's back.
func TestASocketThatBreaksIsOpenedAnew(t *testing.T) {
	s := newTestServer(ServerConfig{}, testZone())
	addr := freePort(t, "127.0.0.1")
	open := &sockets{server: s, open: map[endpoint]*socket{}}
	s.SetAddresses([]netip.AddrPort{addr})
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); open.closeAll() }()
	for proto, breaks := range map[protocol]func(io.Closer){
		tcp: func(conn io.Closer) {
			raw, err := conn.(*net.TCPListener).SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RD) }))
		},
		udp: func(conn io.Closer) { must(t, conn.(*net.UDPConn).SetReadDeadline(time.Unix(1, 0))) }, // all reading fails
	} {
		t.Run(proto.String(), func(t *testing.T) {
			open.reconcile(ctx)
			broken := open.open[endpoint{addr, proto}]
			breaks(broken.conn)
			eventually(t, func() error {
				if !broken.broken.Load() {
					return errors.New("the socket is not broken")
				}
				return nil
			})
			open.reconcile(ctx)
			askServer(t, proto.String(), addr, question("web.overlay.local.", dns.TypeA))
		})
	}
}

func TestNoClientButOurs(t *testing.T) {
	s := newTestServer(ServerConfig{RateLimit: 5}, testZone())
	addr := freePort(t, "127.0.0.1")
	run(t, s, addr)
	dropped := func(reason string) uint64 { return s.Stats().Dropped[reason] }
	send := func(from string) {
		conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, net.UDPAddrFromAddrPort(addr))
		must(t, err)
		defer func() { _ = conn.Close() }()
		_, err = conn.Write(wire(t, question("web.overlay.local.", dns.TypeA)))
		must(t, err)
	}
	expect := func(reason string, want uint64) {
		t.Helper()
		eventually(t, func() error {
			if got := dropped(reason); got < want {
				return fmt.Errorf("dropped %d for %s, want %d", got, reason, want)
			}
			return nil
		})
	}
	s.SetClients([]netip.Prefix{netip.MustParsePrefix("127.0.0.8/32")})
	send("127.0.0.9")
	expect("client", 1)
	if conn, err := net.Dial("tcp", addr.String()); err == nil { // from 127.0.0.1
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("a stranger's connection is served")
		}
		_ = conn.Close()
	}
	expect("client", 2)
	for patient := time.Now().Add(patience); dropped("rate") < 10; { // however slow the sending is
		if send("127.0.0.8"); time.Now().After(patient) {
			t.Fatalf("%d dropped", dropped("rate"))
		}
	}
	if s.Stats().Queries[QueryKind{"udp", "A", "NOERROR", false}] < 5 {
		t.Errorf("answered %v", s.Stats().Queries)
	}
}

// TestForwardsAreBounded has more questions for others than may wait.
func TestForwardsAreBounded(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	release := make(chan struct{})
	stuck := func(ctx context.Context, question *dns.Msg) *dns.Msg {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return answerElsewhere(ctx, question)
	}
	s := newTestServer(ServerConfig{Forward: exchangerFunc(stuck)}, testZone())
	addr := freePort(t, "127.0.0.1")
	stop := run(t, s, addr)
	var full sync.WaitGroup
	codes := make(chan int, 2*forwardsEach)
	for range 2 * forwardsEach {
		full.Go(func() {
			reply, _, err := (&dns.Client{Timeout: patience}).Exchange(question("example.com.", dns.TypeA), addr.String())
			if err != nil {
				codes <- noAnswer
				return
			}
			codes <- reply.Rcode
		})
	}
	for range forwardsEach { // those that find no place are answered at once
		if code := <-codes; code != dns.RcodeServerFailure {
			t.Fatalf("got code %d", code)
		}
	}
	askServer(t, "udp", addr, question("web.overlay.local.", dns.TypeA)) // the zone does not wait
	close(release)
	for range forwardsEach {
		if code := <-codes; code != dns.RcodeSuccess {
			t.Errorf("got code %d", code)
		}
	}
	full.Wait()
	stats := s.Stats()
	if stats.Queries[QueryKind{"udp", "A", "NOERROR", true}] != forwardsEach || stats.Queries[QueryKind{"udp", "A", "SERVFAIL", false}] != forwardsEach {
		t.Errorf("counted %v", stats.Queries)
	}
	stop()
}
