package nat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// rawTURN speaks TURN without any manners.
type rawTURN struct {
	t         testing.TB
	conn      *net.UDPConn
	username  string
	realm     string
	nonce     string
	integrity stun.MessageIntegrity
}

// rawClient opens a client's socket at an address of the lab.
func rawClient(t testing.TB, from netip.Addr) *rawTURN {
	t.Helper()
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(relayExternal, relayTestUDP)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &rawTURN{t: t, conn: conn}
}

// ask sends bytes and returns the answer, or nil.
func (r *rawTURN) ask(packet []byte, wait time.Duration) *stun.Message {
	r.t.Helper()
	if _, err := r.conn.Write(packet); err != nil {
		r.t.Fatal(err)
	}
	buffer := make([]byte, 2048)
	_ = r.conn.SetReadDeadline(time.Now().Add(wait))
	n, err := r.conn.Read(buffer)
	if err != nil {
		return nil
	}
	if n > len(packet) {
		r.t.Errorf("answer of %d bytes to a request of %d", n, len(packet))
	}
	m := &stun.Message{Raw: buffer[:n]}
	if err := m.Decode(); err != nil {
		r.t.Fatal(err)
	}
	return m
}

// build makes a request, with the credential if there is one.
func (r *rawTURN) build(method stun.Method, attrs ...stun.Setter) []byte {
	r.t.Helper()
	setters := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attrs...)
	if r.integrity != nil {
		setters = append(setters, stun.NewUsername(r.username), stun.NewRealm(r.realm), stun.NewNonce(r.nonce), r.integrity)
	}
	m, err := stun.Build(setters...)
	if err != nil {
		r.t.Fatal(err)
	}
	return m.Raw
}

func (r *rawTURN) request(method stun.Method, attrs ...stun.Setter) *stun.Message {
	r.t.Helper()
	answer := r.ask(r.build(method, attrs...), relayPatience)
	if answer == nil {
		r.t.Fatalf("no answer to %s", method)
	}
	return answer
}

func rawTransport() stun.Setter {
	return stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{17, 0, 0, 0}}
}

// challenge gets a nonce, and will use the credential.
func (r *rawTURN) challenge(username, password string) {
	r.t.Helper()
	answer := r.request(stun.MethodAllocate, rawTransport(), stun.NewSoftware(strings.Repeat("-", relaySoftware)))
	var nonce stun.Nonce
	var realm stun.Realm
	if err := answer.Parse(&nonce, &realm); err != nil {
		r.t.Fatal(err)
	}
	r.username, r.nonce, r.realm = username, nonce.String(), realm.String()
	r.integrity = stun.NewLongTermIntegrity(username, r.realm, password)
}

// login is challenge with a fresh credential of a node.
func (r *rawTURN) login(node testNode, relay *relayTest) {
	r.t.Helper()
	c := credentialOf(r.t, node, relay.node).next(time.Now())
	r.challenge(c.username, c.password())
}

func credentialOf(t testing.TB, node, relay testNode) *relayCredentials {
	t.Helper()
	secret, err := node.shared(relay.public)
	if err != nil {
		t.Fatal(err)
	}
	return &relayCredentials{secret: NewSecret(string(secret)), id: relayID(secret, node.public)}
}

func (r *rawTURN) mustAllocate() {
	r.t.Helper()
	answer := r.request(stun.MethodAllocate, rawTransport(), turnLifetime(time.Hour-time.Second))
	if answer.Type.Class != stun.ClassSuccessResponse {
		r.t.Fatalf("allocate: code %d", stunErrorCode(answer.Raw))
	}
}

func TestRelayRefusesCredentials(t *testing.T) {
	relay, node, _ := twoNodes(t, nil)
	stranger := newTestNode(t)
	fresh := credentialOf(t, node, relay.node)
	at := func(c *relayCredentials, when time.Time) relayCredential {
		return (&relayCredentials{secret: c.secret, id: c.id}).next(when)
	}
	own := at(fresh, time.Now())
	stats := relay.server.Stats()
	for _, test := range []struct {
		name               string
		username, password string
		counter            interface{ Load() uint64 }
	}{
		{"wrong password", own.username, "guess", &stats.WrongPassword},
		{"no password", own.username, "", &stats.WrongPassword},
		{"expired", at(fresh, time.Now().Add(-RelayCredentialLifetime-RelayClockSkew-time.Second)).username,
			at(fresh, time.Now().Add(-RelayCredentialLifetime-RelayClockSkew-time.Second)).password(), &stats.Expired},
		{"valid too long", at(fresh, time.Now().Add(RelayClockSkew+2*time.Second)).username,
			at(fresh, time.Now().Add(RelayClockSkew+2*time.Second)).password(), &stats.Expired},
		{"of no node", at(credentialOf(t, stranger, relay.node), time.Now()).username,
			at(credentialOf(t, stranger, relay.node), time.Now()).password(), &stats.Unknown},
		{"of another relay", at(credentialOf(t, node, stranger), time.Now()).username,
			at(credentialOf(t, node, stranger), time.Now()).password(), &stats.Unknown},
		{"another's name", strings.SplitN(own.username, ":", 2)[0] + ":" + strings.Repeat("0", 32), own.password(), &stats.Unknown},
		{"no name of ours", "admin", "admin", &stats.Malformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := test.counter.Load()
			raw := rawClient(t, relayStranger)
			raw.challenge(test.username, test.password)
			answer := raw.request(stun.MethodAllocate, rawTransport())
			if code := stunErrorCode(answer.Raw); code != 401 {
				t.Errorf("code %d, not 401", code)
			}
			if got := test.counter.Load() - before; got != 1 {
				t.Errorf("counted %d times", got)
			}
		})
	}
	raw := rawClient(t, relayStranger)
	raw.challenge(own.username, own.password())
	raw.mustAllocate()
	if got := stats.Sessions.Load(); got != 1 {
		t.Errorf("%d allocations", got)
	}
}

func TestRelayRefusesReplays(t *testing.T) {
	relay, node, _ := twoNodes(t, nil)
	honest := rawClient(t, relayStranger)
	honest.login(node, relay)
	captured := honest.build(stun.MethodAllocate, rawTransport())
	if answer := honest.ask(captured, relayPatience); answer == nil || answer.Type.Class != stun.ClassSuccessResponse {
		t.Fatal("the honest request fails")
	}
	thief := rawClient(t, relayPeerAddr)
	if answer := thief.ask(captured, relayPatience); answer == nil || stunErrorCode(answer.Raw) != 401 {
		t.Errorf("a replay from elsewhere is answered with %v", answer)
	}
	if got := relay.server.stats.Replayed.Load(); got != 1 {
		t.Errorf("%d replays counted", got)
	}
	if got := relay.server.stats.Sessions.Load(); got != 1 {
		t.Errorf("%d allocations", got)
	}
	if answer := honest.request(stun.MethodRefresh, turnLifetime(time.Minute)); answer.Type.Class != stun.ClassSuccessResponse {
		t.Error("the honest client is refused after a replay")
	}
}

func TestRelayDoesNotAmplify(t *testing.T) {
	relay, _, _ := twoNodes(t, nil)
	stats := relay.server.Stats()
	for _, test := range []struct {
		name    string
		packet  []byte
		counter interface{ Load() uint64 }
	}{
		{"short allocate", stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest)).Raw, &stats.Amplifying},
		{"allocate with a stale nonce", stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest),
			stun.NewNonce(""), stun.NewShortTermIntegrity("x")).Raw, &stats.Amplifying},
		{"binding", stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw, &stats.Malformed},
		{"create permission", stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodCreatePermission, stun.ClassRequest),
			stun.NewSoftware(strings.Repeat("-", 100))).Raw, &stats.Malformed},
		{"send indication", stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication),
			turnPeer(netip.AddrPortFrom(relayPeerAddr, 51820)), stun.RawAttribute{Type: stun.AttrData, Value: []byte("x")}).Raw, &stats.Malformed},
		{"channel data", []byte{0x40, 0, 0, 4, 1, 2, 3, 4}, &stats.Malformed},
		{"garbage", bytes.Repeat([]byte{0xFF}, 500), &stats.Malformed},
		{"oversized", bytes.Repeat([]byte{0}, 1700), &stats.Oversized},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := test.counter.Load()
			raw := rawClient(t, relayStranger)
			if answer := raw.ask(test.packet, 100*time.Millisecond); answer != nil {
				t.Errorf("answered with %s", answer)
			}
			waitUntil(t, "the refusal is counted", func() bool { return test.counter.Load() == before+1 })
		})
	}
	if got := stats.Sessions.Load(); got != 0 {
		t.Errorf("%d allocations", got)
	}
}

// TestRelayUnderAFlood has a node, and strangers, ask for 10,000 allocations
// each while two others speak by the relay.
func TestRelayUnderAFlood(t *testing.T) {
	flood := 10_000
	if testing.Short() {
		flood = 1000
	}
	nodeA, nodeB, greedy := newTestNode(t), newTestNode(t), newTestNode(t)
	// Long, so that those of the greedy node stay.
	relay := startRelayFor(t, newTestNode(t), time.Hour, nil,
		RelayPeer{Key: nodeA.public}, RelayPeer{Key: nodeB.public}, RelayPeer{Key: greedy.public})
	a, b := relay.startPeer(t, nodeA, nil, nil), relay.startPeer(t, nodeB, nil, nil)
	a.awaitUp(t)
	b.awaitUp(t)
	exchange(t, a, b, "before")
	credentials := credentialOf(t, greedy, relay.node)
	first := rawClient(t, relayStranger)
	c := credentials.next(time.Now())
	first.challenge(c.username, c.password())
	full := 0
	for i := range flood {
		// Addresses of one network would be slowed down, so each has its own.
		from := netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
		raw := &rawTURN{t: t, conn: dialFrom(t, from), realm: first.realm, nonce: first.nonce}
		anonymous := raw.build(stun.MethodAllocate, rawTransport(), stun.NewSoftware(strings.Repeat("-", 100)))
		if answer := raw.ask(anonymous, relayPatience); answer == nil || stunErrorCode(answer.Raw) != 401 {
			t.Fatalf("anonymous request %d is answered with %v", i, answer)
		}
		c := credentials.next(time.Now().Add(-RelayCredentialLifetime / 2))
		raw.username, raw.integrity = c.username, stun.NewLongTermIntegrity(c.username, raw.realm, c.password())
		answer := raw.ask(raw.build(stun.MethodAllocate, rawTransport()), relayPatience)
		if answer == nil {
			t.Fatalf("request %d is not answered", i)
		}
		if code := stunErrorCode(answer.Raw); code == 486 {
			full++
		}
		_ = raw.conn.Close()
		if i%(flood/10) == 0 {
			exchange(t, a, b, "during")
			exchange(t, b, a, "and back")
		}
	}
	stats := relay.server.Stats()
	t.Logf("of %d allocations: %d for lack of room, %d for too many credentials, %d beyond their time",
		flood, full, stats.Replayed.Load(), stats.Expired.Load())
	if got, want := stats.Sessions.Load(), int64(2+relayDefaultPerNode); got != want {
		t.Errorf("%d allocations, not %d", got, want)
	}
	if refused := stats.Full.Load() + stats.Replayed.Load() + stats.Expired.Load(); refused != uint64(flood-relayDefaultPerNode) {
		t.Errorf("%d refused", refused)
	}
	if got := stats.Unauthenticated.Load(); got < uint64(flood) {
		t.Errorf("%d unauthenticated counted", got)
	}
	exchange(t, a, b, "after")
}

func dialFrom(t testing.TB, from netip.Addr) *net.UDPConn {
	t.Helper()
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(relayExternal, relayTestUDP)))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestRelaySlowsDownOneAddress(t *testing.T) {
	relay, nodeA, nodeB := twoNodes(t, nil)
	a, b := relay.startPeer(t, nodeA, nil, nil), relay.startPeer(t, nodeB, nil, nil)
	a.awaitUp(t)
	b.awaitUp(t)
	noisy := rawClient(t, relayStranger)
	packet := noisy.build(stun.MethodAllocate, rawTransport(), stun.NewSoftware(strings.Repeat("-", 100)))
	waitUntil(t, "they are counted", func() bool {
		for range 200 { // those that find no room in the socket are not
			_, _ = noisy.conn.Write(packet)
		}
		return relay.server.stats.Hasty.Load() > 1000
	})
	exchange(t, a, b, "still")
}

func TestRelayBoundsAllSessions(t *testing.T) {
	const limit = 3
	node := newTestNode(t)
	relay := startRelay(t, newTestNode(t), func(c *RelayConfig) { c.MaxSessions, c.MaxPerNode = limit, 100 }, RelayPeer{Key: node.public})
	credentials := credentialOf(t, node, relay.node)
	for i := range limit + 1 {
		raw := rawClient(t, relayStranger)
		c := credentials.next(time.Now())
		raw.challenge(c.username, c.password())
		code := stunErrorCode(raw.request(stun.MethodAllocate, rawTransport()).Raw)
		if want := map[bool]int{true: 486, false: 0}[i == limit]; code != want {
			t.Errorf("allocation %d: code %d, not %d", i, code, want)
		}
	}
}

// TestRelayIsNoScanner has a node of the set look for what it could reach by
// the relay.
func TestRelayIsNoScanner(t *testing.T) {
	pods := netip.MustParsePrefix("10.244.0.0/16")
	services := netip.MustParsePrefix("10.96.0.0/12")
	node, liar := newTestNode(t), newTestNode(t)
	candidate := netip.AddrPortFrom(relayPeerAddr, 51820)
	targets := []struct {
		name string
		addr netip.AddrPort
		self bool
	}{
		{"loopback", netip.MustParseAddrPort("127.0.0.1:53"), true},
		{"inner address", netip.AddrPortFrom(relayInner, 10250), true},
		{"link-local", netip.MustParseAddrPort("169.254.169.254:80"), false},
		{"multicast", netip.MustParseAddrPort("224.0.0.251:5353"), false},
		{"unspecified", netip.MustParseAddrPort("0.0.0.0:53"), false},
		{"broadcast", netip.MustParseAddrPort("255.255.255.255:67"), false},
		{"broadcast of the node's network", netip.MustParseAddrPort("192.0.2.255:67"), true},
		{"pod", netip.MustParseAddrPort("10.244.3.4:80"), false},
		{"service", netip.MustParseAddrPort("10.96.0.10:53"), false},
		{"nobody's", netip.AddrPortFrom(relayStranger, 51820), false},
	}
	// A node that publishes all of them as its own does not help.
	peers := RelayPeer{Key: liar.public, Prefixes: []netip.Prefix{pods}}
	for _, target := range targets {
		if target.name != "nobody's" {
			peers.Addrs = append(peers.Addrs, target.addr)
		}
	}
	relay := startRelay(t, newTestNode(t), func(c *RelayConfig) { c.Forbidden = []netip.Prefix{services} },
		RelayPeer{Key: node.public, Addrs: []netip.AddrPort{candidate}}, peers)
	raw := rawClient(t, relayStranger)
	raw.login(node, relay)
	raw.mustAllocate()
	stats := relay.server.Stats()
	for _, target := range targets {
		t.Run(target.name, func(t *testing.T) {
			counter := &stats.ForbiddenPeer
			if target.self {
				counter = &stats.ForbiddenSelf
			}
			before := counter.Load()
			if code := stunErrorCode(raw.request(stun.MethodCreatePermission, turnPeer(target.addr)).Raw); code != 403 {
				t.Errorf("permission: code %d", code)
			}
			bind := raw.request(stun.MethodChannelBind, turnPeer(target.addr),
				stun.RawAttribute{Type: stun.AttrChannelNumber, Value: []byte{0x40, 1, 0, 0}})
			if bind.Type.Class != stun.ClassErrorResponse {
				t.Error("a channel is bound")
			}
			if got := counter.Load() - before; got != 2 {
				t.Errorf("counted %d times, not twice", got)
			}
		})
	}
	for _, test := range []struct {
		name    string
		addr    netip.AddrPort
		counter interface{ Load() uint64 }
	}{
		// Permissions are for addresses, so these are given; nothing is sent.
		{"service of the relay at its external address", netip.AddrPortFrom(relayExternal, 5555), &stats.ForbiddenSelf},
		{"relay's own TURN port", netip.AddrPortFrom(relayExternal, relayTestUDP), &stats.ForbiddenSelf},
		{"other port of a candidate", netip.AddrPortFrom(relayPeerAddr, 53), &stats.ForbiddenPeer},
	} {
		t.Run(test.name, func(t *testing.T) {
			var target *net.UDPConn
			if test.addr.Port() != relayTestUDP {
				target = listenAt(t, test.addr)
			}
			if answer := raw.request(stun.MethodCreatePermission, turnPeer(test.addr)); answer.Type.Class != stun.ClassSuccessResponse {
				t.Fatalf("permission: code %d", stunErrorCode(answer.Raw))
			}
			before := test.counter.Load()
			send := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), turnPeer(test.addr),
				stun.RawAttribute{Type: stun.AttrData, Value: []byte("scan")})
			if _, err := raw.conn.Write(send.Raw); err != nil {
				t.Fatal(err)
			}
			waitUntil(t, "the packet is counted", func() bool { return test.counter.Load() > before })
			if target != nil {
				_ = target.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				if n, err := target.Read(make([]byte, 100)); err == nil {
					t.Errorf("the target got %d bytes", n)
				}
			}
		})
	}
}

// TestRelayReachesItsOwnNodesWireGuard: nothing else of the node, and only if
// so configured.
func TestRelayReachesItsOwnNodesWireGuard(t *testing.T) {
	relay, nodeA, _ := twoNodes(t, func(c *RelayConfig) { c.WireGuardPort = 51820 })
	a := relay.startPeer(t, nodeA, nil, nil)
	a.awaitUp(t)
	own := netip.AddrPortFrom(relayExternal, 51820)
	device := listenAt(t, own)
	a.sendVia(t, own, "hello")
	if got := readOne(t, device); got != "hello" {
		t.Fatalf("the relay's device got %q", got)
	}
	if _, err := device.WriteToUDPAddrPort(wireGuard("answer"), a.relayed); err != nil {
		t.Fatal(err)
	}
	if got, from := a.receive(t, relayPatience); got != "answer" || from != own {
		t.Errorf("device got %q from %s", got, from)
	}
}

func TestRelayTakesNothingFromStrangers(t *testing.T) {
	relay, nodeA, _ := twoNodes(t, nil)
	a := relay.startPeer(t, nodeA, nil, nil)
	a.awaitUp(t)
	peer := netip.AddrPortFrom(relayPeerAddr, 51820)
	honest := listenAt(t, peer)
	a.sendVia(t, peer, "open")
	if got := readOne(t, honest); got != "open" {
		t.Fatal(got)
	}
	stranger := listenAt(t, netip.AddrPortFrom(relayStranger, 51820))
	for _, packet := range []string{"stranger", strings.Repeat("x", 1700)} {
		if _, err := stranger.WriteToUDPAddrPort(wireGuard(packet), a.relayed); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := honest.WriteToUDPAddrPort(wireGuard(strings.Repeat("x", 1700)), a.relayed); err != nil {
		t.Fatal(err)
	}
	if _, err := honest.WriteToUDPAddrPort(wireGuard("honest"), a.relayed); err != nil {
		t.Fatal(err)
	}
	if got, _ := a.receive(t, relayPatience); got != "honest" {
		t.Errorf("device got %q", got)
	}
	if stats := relay.server.Stats(); stats.Stranger.Load() != 2 || stats.Oversized.Load() != 1 {
		t.Errorf("%d strangers' packets and %d too long counted", stats.Stranger.Load(), stats.Oversized.Load())
	}
}

func TestRelayRefusesOtherAllocations(t *testing.T) {
	relay, node, _ := twoNodes(t, nil)
	credentials := credentialOf(t, node, relay.node)
	for _, test := range []struct {
		name  string
		attrs []stun.Setter
		code  int
	}{
		{"TCP", []stun.Setter{stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{6, 0, 0, 0}}}, 508},
		{"even port", []stun.Setter{rawTransport(), stun.RawAttribute{Type: stun.AttrEvenPort, Value: []byte{0x80}}}, 508},
		{"reserved port", []stun.Setter{rawTransport(), stun.RawAttribute{Type: stun.AttrReservationToken, Value: []byte("12345678")}}, 508},
		{"IPv6 without an address", []stun.Setter{rawTransport(), stun.RawAttribute{Type: stun.AttrRequestedAddressFamily, Value: []byte{2, 0, 0, 0}}}, 508},
		{"no family", []stun.Setter{rawTransport(), stun.RawAttribute{Type: stun.AttrRequestedAddressFamily, Value: []byte{9, 0, 0, 0}}}, 440},
	} {
		t.Run(test.name, func(t *testing.T) {
			raw := rawClient(t, relayStranger)
			c := credentials.next(time.Now())
			raw.challenge(c.username, c.password())
			if code := stunErrorCode(raw.request(stun.MethodAllocate, test.attrs...).Raw); code != test.code {
				t.Errorf("code %d, not %d", code, test.code)
			}
		})
	}
	if got := relay.server.stats.Sessions.Load(); got != 0 {
		t.Errorf("%d allocations", got)
	}
}

func TestRelayEndsAllocations(t *testing.T) {
	t.Run("not refreshed, whatever lifetime was asked for", func(t *testing.T) {
		relay, node, _ := twoNodes(t, nil)
		raw := rawClient(t, relayStranger)
		raw.login(node, relay)
		raw.mustAllocate()
		waitUntil(t, "the allocation ends", func() bool { return relay.server.stats.Sessions.Load() == 0 })
	})
	t.Run("of a node that is gone", func(t *testing.T) {
		gone, stays := newTestNode(t), newTestNode(t)
		relay := startRelayFor(t, newTestNode(t), time.Hour, nil, RelayPeer{Key: gone.public}, RelayPeer{Key: stays.public})
		for _, node := range []testNode{gone, stays} {
			raw := rawClient(t, relayStranger)
			raw.login(node, relay)
			raw.mustAllocate()
		}
		relay.server.SetPeers([]RelayPeer{{Key: stays.public}})
		waitUntil(t, "its allocation ends", func() bool { return relay.server.stats.Sessions.Load() == 1 })
	})
}

func TestRelayKeepsWhatIsRefreshed(t *testing.T) {
	const lifetime = time.Second
	node := newTestNode(t)
	relay := startRelayFor(t, newTestNode(t), lifetime, nil, RelayPeer{Key: node.public})
	a := relay.startPeer(t, node, nil, func(c *RelayClient) { c.refresh = lifetime / 10 })
	a.awaitUp(t)
	select {
	case err := <-a.down:
		t.Error(err)
	case <-time.After(2 * lifetime):
	}
}

func TestRelayBoundsBandwidth(t *testing.T) {
	relay, nodeA, _ := twoNodes(t, func(c *RelayConfig) { c.Bandwidth = 1000 })
	a := relay.startPeer(t, nodeA, nil, nil)
	a.awaitUp(t)
	peer := netip.AddrPortFrom(relayPeerAddr, 51820)
	target := listenAt(t, peer)
	a.sendVia(t, peer, "open")
	readOne(t, target)
	waitUntil(t, "the quota is used up", func() bool {
		for range 100 {
			a.sendVia(t, peer, strings.Repeat("x", 1000))
		}
		return relay.server.stats.Throttled.Load() > 100
	})
	if got := relay.server.stats.ToPeers.Load(); got > relayBurst+relayBurst/4 {
		t.Errorf("%d bytes relayed", got)
	}
}

func TestRelayBoundsConnections(t *testing.T) {
	relay, nodeA, _ := twoNodes(t, nil)
	stats := relay.server.Stats()
	dial := func(t *testing.T) net.Conn {
		t.Helper()
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(relayStranger, 0))}
		conn, err := dialer.Dial("tcp", netip.AddrPortFrom(relayExternal, relayTestTCP).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	ends := func(t *testing.T, conn net.Conn) {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(relayPatience))
		n, err := conn.Read(make([]byte, 1))
		if timeout, ok := err.(net.Error); n > 0 || ok && timeout.Timeout() { //nolint:errorlint // as it comes
			t.Errorf("the connection stays: %d bytes, %v", n, err)
		}
	}
	t.Run("garbage", func(t *testing.T) {
		before := stats.Malformed.Load()
		conn := dial(t)
		_, _ = conn.Write([]byte("SSH-2.0-scanner\r\n"))
		ends(t, conn)
		if stats.Malformed.Load() == before {
			t.Error("not counted")
		}
	})
	t.Run("frame too long", func(t *testing.T) {
		before := stats.Oversized.Load()
		conn := dial(t)
		_, _ = conn.Write([]byte{0, 3, 0xFF, 0xFC})
		ends(t, conn)
		if stats.Oversized.Load() == before {
			t.Error("not counted")
		}
	})
	t.Run("many requests", func(t *testing.T) {
		conn := dial(t)
		request := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), rawTransport())
		for range relayHelloFrames + 1 {
			_, _ = conn.Write(request.Raw)
		}
		_, _ = conn.Read(make([]byte, 1<<16))
		waitUntil(t, "it is counted", func() bool { return stats.Hasty.Load() > 0 })
	})
	t.Run("slow, and too many", func(t *testing.T) {
		before := stats.Connections.Load()
		var conns []net.Conn
		for range relayConnsPerAddr + 5 {
			conns = append(conns, dial(t))
		}
		for _, conn := range conns {
			_, _ = conn.Write([]byte{0, 3})
		}
		// Another address gets in meanwhile.
		a := relay.startPeer(t, nodeA, byTransport(t, "tcp"), nil)
		a.awaitUp(t)
		for _, conn := range conns[:5] {
			ends(t, conn) // while the others still have time
		}
		if got := stats.Connections.Load() - before; got != 5 {
			t.Errorf("%d connections closed at once, not 5", got)
		}
		for _, conn := range conns {
			ends(t, conn)
		}
		if got := stats.Connections.Load() - before; got != relayConnsPerAddr+5 {
			t.Errorf("%d connections counted", got)
		}
		a.client.current.Load().hurry <- struct{}{}
		select {
		case err := <-a.down:
			t.Errorf("a good connection is closed: %v", err)
		case <-time.After(500 * time.Millisecond):
		}
	})
	t.Run("TLS without a handshake", func(t *testing.T) {
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(relayStranger, 0))}
		conn, err := dialer.Dial("tcp", netip.AddrPortFrom(relayExternal, relayTestTLS).String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		ends(t, conn)
	})
}

// TestRelayMakesRoomForConnections has strangers hold all connections that a relay
// takes, while a node has one and another one wants one.
func TestRelayMakesRoomForConnections(t *testing.T) {
	inside, comes := newTestNode(t), newTestNode(t)
	relay := startRelayFor(t, newTestNode(t), time.Hour, func(c *RelayConfig) { c.MaxSessions = 2 },
		RelayPeer{Key: inside.public}, RelayPeer{Key: comes.public})
	a := relay.startPeer(t, inside, byTransport(t, "tcp"), nil)
	a.awaitUp(t)
	hold := func(from netip.Addr, count int) {
		t.Helper()
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		for range count {
			conn, err := dialer.Dial("tcp", netip.AddrPortFrom(relayExternal, relayTestTCP).String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
		}
	}
	for i := range byte(5) {
		hold(netip.AddrFrom4([4]byte{127, 0, 1, i}), relayConnsPerAddr)
	}
	b := relay.startPeer(t, comes, byTransport(t, "tcp"), nil)
	b.awaitUp(t)
	exchange(t, a, b, "there")
	// A neighbour of the node that is inside takes all that is one address's.
	hold(relayAddrPort(a.client.current.Load().conn.(*relayStream).LocalAddr()).Addr(), 2*relayConnsPerAddr)
	exchange(t, b, a, "and back")
	if len(a.down)+len(b.down) > 0 {
		t.Error("a node's connection was closed")
	}
	// The last ones dialed may not be accepted yet.
	waitUntil(t, "as many refused or closed as were too many", func() bool {
		return relay.server.stats.Connections.Load() >= 5*relayConnsPerAddr
	})
}

// TestRelayMakesRoomWhereItIsMissing: who fills up the places of one address costs no
// other one its own.
func TestRelayMakesRoomWhereItIsMissing(t *testing.T) {
	relay, _, _ := twoNodes(t, nil)
	l := newRelayListener(relay.server, nil, nil)
	begin := time.Now()
	add := func(addr netip.Addr, second int) *relayConn {
		t.Helper()
		conn := &relayConn{listener: l, from: relayNeighbourhood(addr), hello: begin.Add(time.Duration(second) * time.Second)}
		ok, gone := l.add(conn)
		if !ok {
			t.Fatalf("no room for one more of %s", addr)
		}
		if gone == nil {
			return conn
		}
		return gone
	}
	add(relayPeerAddr, 0)
	oldest := add(relayStranger, 1)
	for i := range relayConnsPerAddr - 1 {
		add(relayStranger, 2+i)
	}
	if gone := add(relayStranger, 100); gone != oldest {
		t.Errorf("that of %s and %v had to go, not the oldest of the same address", gone.from, gone.hello.Sub(begin))
	}
	if got := l.perAddr[oldest.from]; got != relayConnsPerAddr {
		t.Errorf("%d connections of one address counted", got)
	}
}

// TestRelayServesAgain: an error of a socket that is closed ends no later run.
func TestRelayServesAgain(t *testing.T) {
	relay, node, _ := twoNodes(t, nil)
	relay.stop()
	relay.server.fail(errors.New("of a second socket"))
	stop := runRelay(t, relay.server.Run)
	relay.startPeer(t, node, nil, nil).awaitUp(t)
	stop()
}

// TestRelayRefreshAnswerFitsAnyRequest: 437 goes to anybody.
func TestRelayRefreshAnswerFitsAnyRequest(t *testing.T) {
	twoNodes(t, nil)
	raw := rawClient(t, relayStranger)
	request := raw.build(stun.MethodRefresh, turnLifetime(time.Minute))
	answer := raw.ask(request, relayPatience)
	if answer == nil || stunErrorCode(answer.Raw) != 437 || answer.Type != stun.NewType(stun.MethodRefresh, stun.ClassErrorResponse) {
		t.Fatalf("answered with %v", answer)
	}
	if !bytes.Equal(answer.TransactionID[:], request[8:20]) || binary.BigEndian.Uint16(answer.Raw[2:]) != 8 {
		t.Errorf("answered with % x", answer.Raw)
	}
}
