package nat

import (
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// twoNodes starts a relay with two nodes.
func twoNodes(t testing.TB, adjust func(*RelayConfig)) (relay *relayTest, a, b testNode) {
	t.Helper()
	a, b = newTestNode(t), newTestNode(t)
	relay = startRelay(t, newTestNode(t), adjust, RelayPeer{Key: a.public}, RelayPeer{
		Key: b.public, Addrs: []netip.AddrPort{netip.AddrPortFrom(relayPeerAddr, 51820)},
	})
	return relay, a, b
}

// byTransport makes a client use one transport alone.
func byTransport(t testing.TB, kind string) func(*RelayClientConfig) {
	return func(c *RelayClientConfig) {
		switch kind {
		case "tcp":
			c.UDP, c.TCP = "", netip.AddrPortFrom(relayExternal, relayTestTCP).String()
		case "tls":
			certificate, err := NewRelayCertificate(make([]byte, 32))
			if err != nil {
				t.Fatal(err)
			}
			if c.Fingerprint, err = RelayFingerprint(certificate); err != nil {
				t.Fatal(err)
			}
			c.UDP, c.TLS = "", netip.AddrPortFrom(relayExternal, relayTestTLS).String()
		}
	}
}

func TestRelayPassesPackets(t *testing.T) {
	for _, kind := range []string{"udp", "tcp", "tls"} {
		t.Run(kind, func(t *testing.T) {
			noLeaks(t)
			relay, nodeA, nodeB := twoNodes(t, nil)
			a := relay.startPeer(t, nodeA, byTransport(t, kind), nil)
			b := relay.startPeer(t, nodeB, nil, nil)
			a.awaitUp(t)
			b.awaitUp(t)
			if got := a.client.Transport(); got != kind {
				t.Errorf("relay reached by %s, not %s", got, kind)
			}
			exchange(t, a, b, "first from a")
			exchange(t, b, a, "first from b")
			exchange(t, a, b, string(make([]byte, 1452)))
			check := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint)
			if err := a.client.Send(check.Raw, b.relayed); err != nil {
				t.Fatal(err)
			}
			select {
			case got := <-b.stun:
				if got.from != a.relayed || got.packet != string(check.Raw) {
					t.Errorf("got a STUN packet from %s, not that of %s", got.from, a.relayed)
				}
			case <-time.After(relayPatience):
				t.Error("STUN packet does not arrive")
			}
		})
	}
}

func TestRelayOverIPv6(t *testing.T) {
	relay, nodeA, nodeB := twoNodes(t, func(c *RelayConfig) { c.External = append(c.External, relayExternal6) })
	byIPv6 := func(c *RelayClientConfig) { c.UDP = netip.AddrPortFrom(relayExternal6, relayTestUDP).String() }
	a, b := relay.startPeer(t, nodeA, byIPv6, nil), relay.startPeer(t, nodeB, byIPv6, nil)
	a.awaitUp(t)
	b.awaitUp(t)
	if a.relayed.Addr() != relayExternal6 {
		t.Errorf("relayed address is %s", a.relayed)
	}
	exchange(t, a, b, "there")
	exchange(t, b, a, "and back")
}

// TestRelayBehindATranslator: the external address is not the node's own, and
// the translator need not send back what comes from behind it.
func TestRelayBehindATranslator(t *testing.T) {
	relay, nodeA, nodeB := twoNodes(t, func(c *RelayConfig) {
		c.Local = func() ([]netip.Prefix, error) { return []netip.Prefix{netip.PrefixFrom(relayInner, 24)}, nil }
	})
	a, b := relay.startPeer(t, nodeA, nil, nil), relay.startPeer(t, nodeB, nil, nil)
	a.awaitUp(t)
	b.awaitUp(t)
	if inside := relay.server.insideAddr(relayExternal); !inside.IsLoopback() {
		t.Errorf("packets between allocations go by %s", inside)
	}
	exchange(t, a, b, "there")
	exchange(t, b, a, "and back")
}

func TestRelayReachesAPeerThatHasNoRelay(t *testing.T) {
	relay, nodeA, _ := twoNodes(t, nil)
	a := relay.startPeer(t, nodeA, nil, nil)
	a.awaitUp(t)
	peer := listenAt(t, netip.AddrPortFrom(relayPeerAddr, 51820))
	a.sendVia(t, netip.AddrPortFrom(relayPeerAddr, 51820), "hello")
	if got := readOne(t, peer); got != "hello" {
		t.Fatalf("peer got %q", got)
	}
	// A symmetric translator shows the same peer at another port, and it may be
	// answered there.
	other := listenAt(t, netip.AddrPortFrom(relayPeerAddr, 0))
	if _, err := other.WriteToUDPAddrPort(wireGuard("from elsewhere"), a.relayed); err != nil {
		t.Fatal(err)
	}
	got, from := a.receive(t, relayPatience)
	if got != "from elsewhere" || from != relayAddrPort(other.LocalAddr()) {
		t.Fatalf("device got %q from %s", got, from)
	}
	a.sendVia(t, from, "answer")
	if got := readOne(t, other); got != "answer" {
		t.Fatalf("peer got %q", got)
	}
}

func listenAt(t testing.TB, addr netip.AddrPort) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// readOne returns the next packet.
func readOne(t testing.TB, conn *net.UDPConn) string {
	t.Helper()
	buffer := make([]byte, 2048)
	_ = conn.SetReadDeadline(time.Now().Add(relayPatience))
	n, err := conn.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return textOf(buffer[:n])
}

func TestRelayClientComesBack(t *testing.T) {
	for _, kind := range []string{"udp", "tcp", "tls"} {
		t.Run(kind, func(t *testing.T) {
			noLeaks(t)
			relay, nodeA, nodeB := twoNodes(t, nil)
			fast := func(c *RelayClient) { c.refresh = 100 * time.Millisecond }
			a := relay.startPeer(t, nodeA, byTransport(t, kind), fast)
			b := relay.startPeer(t, nodeB, nil, fast)
			a.awaitUp(t)
			b.awaitUp(t)
			exchange(t, a, b, "before")
			relay.stop()
			for _, p := range []*testPeer{a, b} {
				select {
				case err := <-p.down:
					t.Logf("down: %v", err)
				case <-time.After(relayPatience):
					t.Fatal("nobody says that the relay is gone")
				}
			}
			if err := a.client.Send([]byte("x"), b.relayed); err == nil {
				t.Error("a packet is sent by a relay that is gone")
			}
			startRelay(t, relay.node, nil, RelayPeer{Key: nodeA.public}, RelayPeer{Key: nodeB.public})
			a.awaitUp(t)
			b.awaitUp(t)
			exchange(t, a, b, "after")
			exchange(t, b, a, "and back")
		})
	}
}

func TestRelayClientSeesARestartWithinARefresh(t *testing.T) {
	relay, nodeA, _ := twoNodes(t, nil)
	a := relay.startPeer(t, nodeA, nil, func(c *RelayClient) { c.refresh = time.Hour })
	a.awaitUp(t)
	relay.stop()
	startRelay(t, relay.node, nil, RelayPeer{Key: nodeA.public})
	a.client.current.Load().hurry <- struct{}{}
	select {
	case err := <-a.down:
		if want := errRelayGone.Error(); err == nil || !contains(err.Error(), want) {
			t.Errorf("down says %v, not %s", err, want)
		}
	case <-time.After(relayPatience):
		t.Fatal("nobody says that the allocation is gone")
	}
	a.awaitUp(t)
}

func TestRelayClientGoesBackToUDP(t *testing.T) {
	noLeaks(t)
	relay, nodeA, nodeB := twoNodes(t, nil)
	// Nothing answers at this port at first.
	front := netip.AddrPortFrom(relayStranger, 3478)
	silent := listenAt(t, front)
	a := relay.startPeer(t, nodeA, func(c *RelayClientConfig) {
		c.UDP, c.TCP = front.String(), netip.AddrPortFrom(relayExternal, relayTestTCP).String()
	}, func(c *RelayClient) { c.upgrade, c.linger = 200*time.Millisecond, time.Hour })
	b := relay.startPeer(t, nodeB, nil, nil)
	a.awaitUp(t)
	b.awaitUp(t)
	if got := a.client.Transport(); got != "tcp" {
		t.Fatalf("relay reached by %s", got)
	}
	exchange(t, a, b, "by tcp")
	former := a.relayed
	// From now on packets are passed on to the relay.
	runForwarder(t, silent, netip.AddrPortFrom(relayExternal, relayTestUDP))
	a.awaitUp(t)
	if got := a.client.Transport(); got != "udp" {
		t.Fatalf("relay reached by %s", got)
	}
	exchange(t, a, b, "by udp")
	// What still comes by the former address arrives, too.
	b.sendVia(t, former, "late")
	waitUntil(t, "late packet arrives", func() bool {
		got, _ := a.receive(t, 100*time.Millisecond)
		return got == "late"
	})
}

// runForwarder passes packets on to a server, for one client.
func runForwarder(t testing.TB, front *net.UDPConn, to netip.AddrPort) {
	t.Helper()
	back, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = back.Close() })
	clients := make(chan netip.AddrPort, 1)
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, from, err := front.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			select {
			case <-clients:
			default:
			}
			clients <- from
			_, _ = back.Write(buffer[:n])
		}
	}()
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, err := back.Read(buffer)
			if err != nil {
				return
			}
			client := <-clients
			clients <- client
			_, _ = front.WriteToUDPAddrPort(buffer[:n], client)
		}
	}()
}

func TestRelayClientRenewsItsCredential(t *testing.T) {
	relay, nodeA, _ := twoNodes(t, nil)
	a := relay.startPeer(t, nodeA, nil, func(c *RelayClient) { c.refresh = time.Hour })
	a.awaitUp(t)
	session := a.client.current.Load()
	session.mu.Lock()
	first := session.credential.username
	session.credential.renew = time.Now().Add(-time.Second)
	session.mu.Unlock()
	session.hurry <- struct{}{}
	waitUntil(t, "relay takes the new credential", func() bool {
		relay.server.nodes.mu.Lock()
		defer relay.server.nodes.mu.Unlock()
		return len(relay.server.nodes.byKey[nodeA.public].used) == 2
	})
	session.mu.Lock()
	defer session.mu.Unlock()
	if session.credential.username == first {
		t.Error("the credential is the old one")
	}
	if got := relay.server.stats.Sessions.Load(); got != 1 {
		t.Errorf("%d allocations, not the one that was refreshed", got)
	}
}

func TestRelayClientStartsAnewAtOnce(t *testing.T) {
	relay, node, _ := twoNodes(t, nil)
	for range 3 {
		a := relay.startPeer(t, node, nil, nil)
		a.awaitUp(t)
		a.stop()
	}
	if got := relay.server.stats.Replayed.Load(); got != 0 {
		t.Errorf("refused %d times as a replay", got)
	}
}

func TestRelayClientChecksTheFingerprint(t *testing.T) {
	relay, nodeA, _ := twoNodes(t, nil)
	a := relay.startPeer(t, nodeA, func(c *RelayClientConfig) {
		byTransport(t, "tls")(c)
		c.Fingerprint = "00" + c.Fingerprint[2:]
	}, nil)
	select {
	case err := <-a.down:
		if !contains(err.Error(), "relay has key") {
			t.Errorf("down says %v", err)
		}
	case <-a.up:
		t.Error("a relay with another key is used")
	case <-time.After(relayPatience):
		t.Error("neither up nor down")
	}
}

// TestRelayClientIgnoresForgedAnswers has somebody in the relay's place who does
// not know the secret.
func TestRelayClientIgnoresForgedAnswers(t *testing.T) {
	relayAddresses(t)
	forger := listenAt(t, netip.AddrPortFrom(relayExternal, relayTestUDP))
	forged := make(chan struct{}, 100)
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, from, err := forger.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			request := &stun.Message{Raw: append([]byte(nil), buffer[:n]...)}
			if request.Decode() != nil {
				continue
			}
			answer := stun.MustBuild(&stun.Message{TransactionID: request.TransactionID},
				stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse), stun.CodeUnauthorized, stun.NewNonce("n"), stun.NewRealm("r"))
			if request.Contains(stun.AttrMessageIntegrity) {
				relayed := stun.RawAttribute{Type: stun.AttrXORRelayedAddress, Value: []byte{0, 1, 1, 2, 1, 2, 3, 4}}
				answer = stun.MustBuild(&stun.Message{TransactionID: request.TransactionID},
					stun.NewType(stun.MethodAllocate, stun.ClassSuccessResponse), relayed, stun.NewShortTermIntegrity("guess"))
				forged <- struct{}{}
			}
			_, _ = forger.WriteToUDPAddrPort(answer.Raw, from)
		}
	}()
	a := (&relayTest{node: newTestNode(t)}).startPeer(t, newTestNode(t), nil, nil)
	select {
	case err := <-a.down:
		if !contains(err.Error(), errRelayNoAnswer.Error()) {
			t.Errorf("down says %v", err)
		}
	case addr := <-a.up:
		t.Errorf("up at %s, by a forged answer", addr)
	case <-time.After(relayPatience):
		t.Error("neither up nor down")
	}
	if len(forged) == 0 {
		t.Error("nothing was forged")
	}
}

func TestRelayRemotes(t *testing.T) {
	relay, nodeA, _ := twoNodes(t, nil)
	a := relay.startPeer(t, nodeA, func(c *RelayClientConfig) { c.MaxRemotes = 2 },
		func(c *RelayClient) { c.idle, c.idleCheck = 300*time.Millisecond, 50*time.Millisecond })
	a.awaitUp(t)
	one, two, three := netip.AddrPortFrom(relayPeerAddr, 51820), netip.AddrPortFrom(relayPeerAddr, 2), netip.AddrPortFrom(relayPeerAddr, 3)
	endpoint, err := a.client.Endpoint(one)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := a.client.Endpoint(one); err != nil || again != endpoint || !endpoint.Addr().IsLoopback() {
		t.Errorf("endpoint is %s, then %s (%v)", endpoint, again, err)
	}
	if to, ok := a.client.Remote(endpoint); !ok || to != one {
		t.Errorf("remote of %s is %s", endpoint, to)
	}
	if _, ok := a.client.Remote(one); ok {
		t.Error("an address that is none of the client's has a remote")
	}
	if _, err := a.client.Endpoint(two); err != nil {
		t.Error(err)
	}
	if _, err := a.client.Endpoint(three); err == nil {
		t.Error("more remotes than there may be")
	}
	if _, err := a.client.Endpoint(netip.MustParseAddrPort("127.0.0.1:53")); err == nil {
		t.Error("an endpoint for a loopback address")
	}
	// Only the device may use an endpoint.
	peer := listenAt(t, one)
	other := listenAt(t, netip.MustParseAddrPort("127.0.0.1:0"))
	if _, err := other.WriteToUDPAddrPort(wireGuard("forged"), endpoint); err != nil {
		t.Fatal(err)
	}
	a.sendVia(t, one, "real")
	if got := readOne(t, peer); got != "real" {
		t.Errorf("peer got %q", got)
	}
	waitUntil(t, "idle remotes are closed", func() bool {
		_, ok := a.client.Remote(endpoint)
		return !ok
	})
	// What comes by a channel of a remote that was closed makes it again.
	if _, err := peer.WriteToUDPAddrPort(wireGuard("awake"), a.relayed); err != nil {
		t.Fatal(err)
	}
	if got, from := a.receive(t, relayPatience); got != "awake" || from != one {
		t.Errorf("device got %q from %s", got, from)
	}
}

// TestRelayClientDoesNotAllocate: packets of WireGuard cost no garbage, in
// either direction. Nobody else runs meanwhile, since all allocations count.
func TestRelayClientDoesNotAllocate(t *testing.T) {
	relayAddresses(t)
	relay := listenAt(t, netip.AddrPortFrom(relayExternal, relayTestUDP))
	device := listenAt(t, netip.MustParseAddrPort("127.0.0.1:0"))
	node := newTestNode(t)
	client, err := NewRelayClient(RelayClientConfig{
		UDP: relay.LocalAddr().String(), Relay: newTestNode(t).public, Self: node.public, Shared: node.shared,
		WireGuardPort: relayAddrPort(device.LocalAddr()).Port(),
		Deliver:       func(Way, netip.AddrPort, []byte) {}, Up: func(netip.AddrPort) {}, Down: func(error) {},
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	client.setRunning(true)
	t.Cleanup(func() {
		client.setRunning(false)
		client.wg.Wait()
	})
	to := netip.AddrPortFrom(relayPeerAddr, 51820)
	remote, err := client.remote(to, false)
	if err != nil {
		t.Fatal(err)
	}
	session := &turnSession{client: client, kind: "udp"}
	if session.conn, err = client.dialRelay(t.Context(), "udp"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.conn.Close() })
	session.channels[0].Store(remote)
	client.current.Store(session)
	remote.channel.Store(&relayChannel{session: session, number: channelFirst})
	packet := make([]byte, relayPool)
	binary.BigEndian.PutUint16(packet, channelFirst)
	binary.BigEndian.PutUint16(packet[2:], 1420)
	packet[channelHeader] = 4
	for what, pass := range map[string]func(){
		"a packet that leaves":      func() { _ = remote.send(packet, 1420) },
		"a packet that arrives":     func() { session.receive(packet[:channelHeader+1420]) },
		"a STUN packet that leaves": func() { _ = client.Send(packet[channelHeader:200], to) },
	} {
		if got := testing.AllocsPerRun(1000, pass); got >= 1 {
			t.Errorf("%v allocations for %s", got, what)
		}
	}
}
