package nat

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/conn/bindtest"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// wireGuard makes a packet with a text in it that looks like WireGuard's: a
// relay passes on no others. textOf is the inverse.
func wireGuard(text string) []byte {
	const head, length = 16, 2
	p := make([]byte, max(wgDataMin, head+length+len(text)))
	p[0] = wgData
	binary.BigEndian.PutUint16(p[head:], uint16(len(text)))
	copy(p[head+length:], text)
	return p
}

func textOf(p []byte) string {
	const head, length = 16, 2
	if !isWireGuard(p) {
		return string(p)
	}
	text := p[head+length:]
	return string(text[:min(len(text), int(binary.BigEndian.Uint16(p[head:])))])
}

// TestRelayReachesNoService has a node publish a resolver's address as its own.
func TestRelayReachesNoService(t *testing.T) {
	node, liar := newTestNode(t), newTestNode(t)
	service := netip.AddrPortFrom(relayPeerAddr, 53)
	relay := startRelayFor(t, newTestNode(t), time.Hour, nil,
		RelayPeer{Key: node.public}, RelayPeer{Key: liar.public, Addrs: []netip.AddrPort{service}})
	raw := rawClient(t, relayStranger)
	raw.login(node, relay)
	raw.mustAllocate()
	if answer := raw.request(stun.MethodCreatePermission, turnPeer(service)); answer.Type.Class != stun.ClassSuccessResponse {
		t.Fatalf("permission: code %d", stunErrorCode(answer.Raw))
	}
	resolver := listenAt(t, service)
	query := dnsQuery(0x1234, 40)
	// It looks like WireGuard, and a resolver may answer it.
	disguised := dnsQuery(wgData<<8, 48)
	stats := relay.server.Stats()
	for _, test := range []struct {
		name    string
		query   []byte
		arrives bool
	}{
		{"query", query, false},
		{"query in disguise", disguised, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := stats.Foreign.Load()
			raw.send(service, test.query)
			if test.arrives {
				_ = resolver.SetReadDeadline(time.Now().Add(relayPatience))
				_, from, err := resolver.ReadFromUDPAddrPort(make([]byte, 2048))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := resolver.WriteToUDPAddrPort(dnsAnswer(test.query), from); err != nil {
					t.Fatal(err)
				}
			}
			silent(t, resolver, "the resolver")
			silent(t, raw.conn, "the node")
			waitUntil(t, "the packet is counted", func() bool { return stats.Foreign.Load() > before })
		})
	}
}

// send sends to a peer by the allocation.
func (r *rawTURN) send(to netip.AddrPort, data []byte) {
	r.t.Helper()
	m := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), turnPeer(to),
		stun.RawAttribute{Type: stun.AttrData, Value: data})
	if _, err := r.conn.Write(m.Raw); err != nil {
		r.t.Fatal(err)
	}
}

// silent checks that nothing arrives.
func silent(t testing.TB, conn *net.UDPConn, who string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 2048)); err == nil {
		t.Errorf("%s got %d bytes", who, n)
	}
}

// tapBind shows what a device sends.
type tapBind struct {
	conn.Bind
	sent chan []byte
}

func (b tapBind) Send(packets [][]byte, to conn.Endpoint) error {
	for _, p := range packets {
		select {
		case b.sent <- append([]byte(nil), p...):
		default:
		}
	}
	return b.Bind.Send(packets, to)
}

// TestRelayPassesWireGuard has two devices speak in packets of all lengths up to
// their MTU, which is no multiple of what they fill up to.
func TestRelayPassesWireGuard(t *testing.T) {
	const packets = tuntest.DefaultMTU - 20 + 1
	keys := []testNode{newTestNode(t), newTestNode(t)}
	addrs := []netip.Addr{netip.MustParseAddr("1.0.0.1"), netip.MustParseAddr("1.0.0.2")}
	sent := make(chan []byte, 2*packets)
	binds := bindtest.NewChannelBinds()
	var tuns [2]*tuntest.ChannelTUN
	for i := range tuns {
		tuns[i] = tuntest.NewChannelTUN()
		dev := device.NewDevice(tuns[i].TUN(), tapBind{binds[i], sent}, device.NewLogger(device.LogLevelSilent, ""))
		t.Cleanup(dev.Close)
		config := fmt.Sprintf("private_key=%s\nlisten_port=0\npublic_key=%s\nallowed_ip=%s/32\nendpoint=127.0.0.1:%d\n",
			hex.EncodeToString(keys[i].private[:]), hex.EncodeToString(keys[1-i].public[:]), addrs[1-i], [2]int{1, 2}[i])
		if err := dev.IpcSet(config); err != nil {
			t.Fatal(err)
		}
		if err := dev.Up(); err != nil {
			t.Fatal(err)
		}
	}
	for size := range packets {
		packet := tuntest.Ping(addrs[1], addrs[0])
		packet = append(packet, make([]byte, tuntest.DefaultMTU)...)[:20+size]
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		select {
		case tuns[0].Outbound <- packet:
		case <-time.After(30 * time.Second):
			t.Fatal("the device takes no packet")
		}
		select {
		case <-tuns[1].Inbound:
		case <-time.After(30 * time.Second):
			t.Fatalf("a packet of %d bytes does not arrive", len(packet))
		}
	}
	types := make(map[byte]int)
	for len(sent) > 0 {
		p := <-sent
		types[p[0]]++
		if !relayPasses(p) {
			t.Errorf("a message of type %d and %d bytes is not passed on", p[0], len(p))
		}
	}
	if types[wgInitiation] == 0 || types[wgResponse] == 0 || types[wgData] < packets {
		t.Errorf("messages by type: %v", types)
	}
}
