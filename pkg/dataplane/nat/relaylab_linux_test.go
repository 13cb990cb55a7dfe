package nat

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// labRoleEnv holds a labRole: the test binary is then a machine of the lab.
const labRoleEnv = "NAT_RELAY_LAB_ROLE"

// labRole is what a machine of the lab does: be the relay, or a peer that
// answers what it gets and sends what it reads.
type labRole struct {
	Relay   bool
	Private wgtypes.Key
	Peers   []wgtypes.Key // of the relay: who may use it; of a peer: the relay
	TLSKey  string
}

// TestRelayLabMachine is no test, but what the machines of the lab run.
func TestRelayLabMachine(t *testing.T) {
	text := os.Getenv(labRoleEnv)
	if text == "" {
		return
	}
	var role labRole
	if err := json.Unmarshal([]byte(text), &role); err != nil {
		t.Fatal(err)
	}
	node := testNode{private: role.Private, public: role.Private.PublicKey()}
	if role.Relay {
		labRelay(t, node, role)
		return
	}
	labPeer(t, node, role)
}

func labRelay(t *testing.T, node testNode, role labRole) {
	certificate, err := NewRelayCertificate(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	server, err := NewRelayServer(RelayConfig{
		External: []netip.Addr{relayExternal}, ListenPort: relayTestUDP, TCPPort: relayTestTCP, TLSPort: relayTestTLS,
		Certificate: &certificate, Shared: node.shared, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	var peers []RelayPeer
	for _, key := range role.Peers {
		peers = append(peers, RelayPeer{Key: key})
	}
	server.SetPeers(peers)
	if err := server.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// labPeer is an echo in place of WireGuard. It prints its relayed addresses and
// what it gets; a line "ADDRESS TEXT" on its input is sent there.
func labPeer(t *testing.T, node testNode, role labRole) {
	device := listenAt(t, netip.MustParseAddrPort("0.0.0.0:51820"))
	address := func(port uint16) string { return netip.AddrPortFrom(relayExternal, port).String() }
	var client *RelayClient
	client, err := NewRelayClient(RelayClientConfig{
		UDP: address(relayTestUDP), TCP: address(relayTestTCP), TLS: address(relayTestTLS), Fingerprint: role.TLSKey,
		Relay: role.Peers[0], Self: node.public, Shared: node.shared, WireGuardPort: 51820,
		Deliver: func(Way, netip.AddrPort, []byte) {},
		Up:      func(addr netip.AddrPort) { fmt.Println("up", addr, client.Transport()) },
		Down:    func(err error) { fmt.Fprintln(os.Stderr, "down", err) },
		Log:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	client.refresh = time.Second
	go func() { _ = client.Run(context.Background()) }()
	go labSend(client, device)
	buffer := make([]byte, 2048)
	for {
		n, from, err := device.ReadFromUDPAddrPort(buffer)
		if err != nil {
			t.Fatal(err)
		}
		text := textOf(buffer[:n])
		fmt.Printf("got %s\n", text)
		if echo, ok := strings.CutPrefix(text, "ping "); ok {
			_, _ = device.WriteToUDPAddrPort(wireGuard("pong "+echo), from)
		}
	}
}

func labSend(client *RelayClient, device *net.UDPConn) {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		to, text, _ := bytes.Cut(lines.Bytes(), []byte(" "))
		endpoint, err := client.Endpoint(netip.MustParseAddrPort(string(to)))
		if err == nil && len(text) > 0 {
			_, _ = device.WriteToUDPAddrPort(wireGuard(string(text)), endpoint)
		}
	}
	os.Exit(0)
}

// labMachine is such a process.
type labMachine struct {
	in    io.WriteCloser
	lines chan string
	stop  func()
}

func startMachine(t *testing.T, ns *netlab.NS, role labRole) *labMachine {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(role)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := ns.Command(ctx, self, "-test.run=^TestRelayLabMachine$", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), labRoleEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	m := &labMachine{lines: make(chan string, 100)}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if m.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			m.lines <- lines.Text()
		}
	}()
	stopped := false
	m.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		<-read
		_ = cmd.Wait() // killed
	}
	t.Cleanup(m.stop)
	return m
}

// await returns what follows a word at the beginning of a line.
func (m *labMachine) await(t *testing.T, word string, wait time.Duration) string {
	t.Helper()
	deadline := time.After(wait)
	for {
		select {
		case line := <-m.lines:
			if rest, ok := bytes.CutPrefix([]byte(line), []byte(word+" ")); ok {
				return string(rest)
			}
		case <-deadline:
			return ""
		}
	}
}

// up waits for a relayed address, and how the relay is reached.
func (m *labMachine) up(t *testing.T) (addr, transport string) {
	t.Helper()
	if _, err := fmt.Sscan(m.await(t, "up", relayPatience), &addr, &transport); err != nil {
		t.Fatalf("no relayed address: %v", err)
	}
	return addr, transport
}

// TestRelayBetweenNetworks has two machines that have no route to each other,
// only to the relay.
func TestRelayBetweenNetworks(t *testing.T) {
	certificate, err := NewRelayCertificate(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, err := RelayFingerprint(certificate)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		transport string
		blocked   string // of what a leaves by
	}{
		{"udp", ""},
		{"tcp", "meta l4proto udp drop"},
		{"tls", "meta l4proto udp drop; add rule inet lab out tcp dport 3479 drop"},
	} {
		t.Run(test.transport, func(t *testing.T) {
			fabric := netlab.TestFabric(t, "underlay")
			relayNS := labHost(t, fabric, "relay", "192.0.2.1/24", "203.0.113.1/24")
			a := labHost(t, fabric, "a", "192.0.2.10/24")
			b := labHost(t, fabric, "b", "203.0.113.10/24")
			labRoute(t, b, "192.0.2.1/32", "203.0.113.1")
			if test.blocked != "" {
				labRule(t, a, test.blocked)
			}
			relayNode, nodeA, nodeB := newTestNode(t), newTestNode(t), newTestNode(t)
			role := labRole{Relay: true, Private: relayNode.private, Peers: []wgtypes.Key{nodeA.public, nodeB.public}}
			relay := startMachine(t, relayNS, role)
			one := startMachine(t, a, labRole{Private: nodeA.private, Peers: []wgtypes.Key{relayNode.public}, TLSKey: fingerprint})
			two := startMachine(t, b, labRole{Private: nodeB.private, Peers: []wgtypes.Key{relayNode.public}, TLSKey: fingerprint})
			addrA, transport := one.up(t)
			if transport != test.transport {
				t.Errorf("a reaches the relay by %s", transport)
			}
			addrB, _ := two.up(t)
			labPing(t, one, two, addrA, addrB, "first")
			labPing(t, two, one, addrB, addrA, "back")
			// The relay's machine starts anew.
			relay.stop()
			startMachine(t, relayNS, role)
			addrA, _ = one.up(t)
			addrB, _ = two.up(t)
			labPing(t, one, two, addrA, addrB, "again")
		})
	}
}

// labPing sends until there is an answer.
func labPing(t *testing.T, from, to *labMachine, addrFrom, addrTo, text string) {
	t.Helper()
	waitUntil(t, "answer to "+text, func() bool {
		_, _ = fmt.Fprintf(to.in, "%s \n", addrFrom) // both ends open the path
		_, _ = fmt.Fprintf(from.in, "%s ping %s\n", addrTo, text)
		return from.await(t, "got", 300*time.Millisecond) == "pong "+text
	})
}

func labHost(t *testing.T, fabric *netlab.Fabric, name string, addrs ...string) *netlab.NS {
	t.Helper()
	var prefixes []netip.Prefix
	for _, a := range addrs {
		prefixes = append(prefixes, netip.MustParsePrefix(a))
	}
	ns, err := fabric.Host(name, prefixes...)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func labRoute(t *testing.T, ns *netlab.NS, to, via string) {
	t.Helper()
	handle, err := ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	link, err := handle.LinkByName(netlab.HostLink)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := netlink.ParseIPNet(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := handle.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.ParseIP(via)}); err != nil {
		t.Fatal(err)
	}
}

// labRule drops what leaves a machine, but for its loopback.
func labRule(t *testing.T, ns *netlab.NS, rule string) {
	t.Helper()
	labNFT(t, ns, "add table inet lab; add chain inet lab out { type filter hook output priority 0; }; "+
		"add rule inet lab out oif lo accept; add rule inet lab out "+rule)
}

func labNFT(t *testing.T, ns *netlab.NS, script string) {
	t.Helper()
	if err := ns.Do(func() error {
		out, err := exec.Command("nft", script).CombinedOutput()
		if err != nil {
			return fmt.Errorf("nft %s: %w\n%s", script, err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
