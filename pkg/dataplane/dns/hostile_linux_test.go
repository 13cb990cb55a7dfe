package dns

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// TestAHostilePodDoesNotSlowOthers compares what a pod waits for answers while
// another one is silent with what it waits while that one sends 1,000 packets a
// second of all that is bad, in turns of the same run. In some round of three
// the median has to be within twice the quiet one; a machine that is busy with
// something else makes single rounds worse.
func TestAHostilePodDoesNotSlowOthers(t *testing.T) {
	bridge := makeBridge(t, "br-hostile")
	hostile, good := makePod(t, "hostile", bridge, "10.2.0.66/32"), makePod(t, "good", bridge, "10.2.0.1/32")
	stuck := func(ctx context.Context, question *dns.Msg) *dns.Msg { // an upstream that is away
		select {
		case <-ctx.Done():
		case <-time.After(4 * time.Second):
		}
		return answerElsewhere(ctx, question)
	}
	s := newTestServer(ServerConfig{Forward: exchangerFunc(stuck), RateLimit: 10_000}, clientsZone(t))
	server := netip.MustParseAddrPort(gateway4 + ":53")
	run(t, s, server)
	conn := dialFrom(t, good, server)
	bad := dialFrom(t, hostile, server)
	packets := hostilePackets(t)

	const turns, within = 8, 2.0
	var ratio float64
	for range 3 {
		var quiet, loud []time.Duration
		for range turns {
			quiet = append(quiet, latencies(t, conn)...)
			stop := sendHostile(t, bad, hostile, server, packets)
			loud = append(loud, latencies(t, conn)...)
			stop()
		}
		slices.Sort(quiet)
		slices.Sort(loud)
		before, during := quiet[len(quiet)/2], loud[len(loud)/2]
		ratio = float64(during) / float64(before)
		t.Logf("median %v when quiet, %v when not: %.2f times", before, during, ratio)
		if ratio <= within {
			return
		}
	}
	t.Errorf("others wait %.2f times as long", ratio)
}

func dialFrom(t *testing.T, pod *netlab.NS, server netip.AddrPort) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	must(t, pod.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
		return err
	}))
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// latencies asks one question every millisecond and returns how long each answer took.
func latencies(t *testing.T, conn *net.UDPConn) []time.Duration {
	t.Helper()
	packet, answer := wire(t, question("web.overlay.local.", dns.TypeA)), make([]byte, 512)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var all []time.Duration
	for i := range 150 {
		<-tick.C
		packet[0], packet[1] = 1, byte(i)
		start := time.Now()
		must(t, conn.SetDeadline(start.Add(patience)))
		_, err := conn.Write(packet)
		must(t, err)
		n, err := conn.Read(answer)
		must(t, err)
		if n < headerSize || answer[1] != packet[1] {
			t.Fatalf("got %x", answer[:n])
		}
		all = append(all, time.Since(start))
	}
	return all
}

// hostilePackets are one of each kind.
func hostilePackets(t *testing.T) [][]byte {
	t.Helper()
	ok := wire(t, question("web.overlay.local.", dns.TypeA))
	change := func(at int, values ...byte) []byte {
		packet := slices.Clone(ok)
		copy(packet[at:], values)
		return packet
	}
	return [][]byte{
		{}, ok[:7], ok[:12], ok[:20], change(2, 0x80), change(2, 0x28), change(4, 0xff, 0xff), change(10, 0xff, 0xff), change(12, 0xc0, 12), change(12, 0x7f),
		bytes.Repeat([]byte{0xff}, 4000), append(slices.Clone(ok), make([]byte, 3000)...),
		wire(t, question("example.com.", dns.TypeA)), wire(t, ednsQuestion(question("example.net.", dns.TypeTXT), 65535, true)), // nobody answers these
		wire(t, question("web.overlay.local.", dns.TypeANY)), wire(t, question("overlay.local.", dns.TypeAXFR)),
		wire(t, ednsQuestion(question("crowd.overlay.local.", dns.TypeA), 65535, true)), wire(t, question("nobody.overlay.local.", dns.TypeA)),
	}
}

// sendHostile sends 1,000 packets a second, and opens connections with half a
// message, until stop is called.
func sendHostile(t *testing.T, conn *net.UDPConn, pod *netlab.NS, server netip.AddrPort, packets [][]byte) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	sending.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		start, sent := time.Now(), 0
		for {
			select {
			case now := <-tick.C:
				for ; sent < int(now.Sub(start)/time.Millisecond); sent++ { // ticks get lost
					_, _ = conn.Write(packets[sent%len(packets)])
				}
			case <-ctx.Done():
				return
			}
		}
	})
	sending.Go(func() {
		_ = pod.Do(func() error {
			for ctx.Err() == nil {
				half, err := (&net.Dialer{}).DialContext(ctx, "tcp", server.String())
				if err != nil {
					continue
				}
				_, _ = half.Write([]byte{0xff, 0xff, 1})
				context.AfterFunc(ctx, func() { _ = half.Close() })
				select {
				case <-ctx.Done():
				case <-time.After(10 * time.Millisecond):
				}
			}
			return nil
		})
	})
	return func() { cancel(); sending.Wait() }
}
