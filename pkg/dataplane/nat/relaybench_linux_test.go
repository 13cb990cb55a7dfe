package nat

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkRelayedGoodput sends packets of WireGuard's size from a device to a
// peer: by a relay, and by plain UDP forwarders. Each packet passes a relay's
// client and the relay itself, so two forwarders are the fair comparison.
func BenchmarkRelayedGoodput(b *testing.B) {
	peerAddr := netip.AddrPortFrom(relayPeerAddr, 51820)
	for hops, name := range []string{"direct", "one forwarder", "two forwarders"} {
		b.Run(name, func(b *testing.B) {
			relayAddresses(b)
			peer := listenAt(b, peerAddr)
			to := peerAddr
			for range hops {
				front := listenAt(b, netip.AddrPortFrom(relayExternal, 0))
				_ = front.SetReadBuffer(1 << 20)
				runForwarder(b, front, to)
				to = relayAddrPort(front.LocalAddr())
			}
			pump(b, listenAt(b, netip.MustParseAddrPort("0.0.0.0:0")), to, peer)
		})
	}
	for _, kind := range []string{"udp", "tcp", "tls"} {
		b.Run("relay by "+kind, func(b *testing.B) {
			relay, node, _ := twoNodes(b, nil)
			peer := listenAt(b, peerAddr)
			a := relay.startPeer(b, node, byTransport(b, kind), nil)
			a.awaitUp(b)
			a.sendVia(b, peerAddr, "open")
			readOne(b, peer)
			endpoint, err := a.client.Endpoint(peerAddr)
			if err != nil {
				b.Fatal(err)
			}
			pump(b, a.device, endpoint, peer)
		})
	}
}

// pump sends b.N packets, with a bounded number of them under way, and counts
// what arrives.
func pump(b *testing.B, from *net.UDPConn, to netip.AddrPort, at *net.UDPConn) {
	const size, window, patience = 1468, 128, 50 * time.Millisecond
	_ = at.SetReadBuffer(1 << 20)
	_ = at.SetReadDeadline(time.Time{})
	var arrived atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 2048)
		for {
			if _, err := at.Read(buffer); err != nil {
				return
			}
			arrived.Add(1)
		}
	}()
	packet := make([]byte, size)
	packet[0] = 4
	b.SetBytes(size)
	b.ReportAllocs()
	b.ResetTimer()
	lost := int64(0)
	for i := range int64(b.N) {
		deadline := time.Now().Add(patience)
		for i-arrived.Load()-lost > window {
			if time.Now().After(deadline) {
				lost = i - arrived.Load()
			}
			time.Sleep(10 * time.Microsecond)
		}
		_, _ = from.WriteToUDPAddrPort(packet, to)
	}
	b.StopTimer()
	b.ReportMetric(100*float64(lost)/float64(b.N), "%lost")
	_ = at.Close()
	<-done
}
