package dns

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

// TestAHostilePodDoesNotSlowOthers compares what a pod waits for answers while
// others are silent with what it waits while they send 1,000 packets a second of
// all that is bad, in turns of the same run. In most rounds the median has to be
// within twice the quiet one. What all but a tenth wait has much more room: clients,
// server and those who send share the processors, under the race detector as well.
func TestAHostilePodDoesNotSlowOthers(t *testing.T) {
	// With a single processor those who send would slow others by themselves.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0))))
	bridge := makeBridge(t, "br-hostile")
	pods := [...]*netlab.NS{makePod(t, "hostile", bridge, "10.2.0.66/32"), makePod(t, "streams", bridge, "10.2.0.67/32")}
	good := makePod(t, "good", bridge, "10.2.0.1/32")
	s := newTestServer(ServerConfig{Forward: exchangerFunc(badUpstream), RateLimit: 10_000}, clientsZone(t))
	server := netip.MustParseAddrPort(gateway4 + ":53")
	run(t, s, server)
	conn := dialFrom(t, good, server)
	hostile := hostility{server: server, udp: dialFrom(t, pods[0], server), half: pods[0], whole: pods[1], packets: hostilePackets(t)}

	const turns, rounds = 8, 5
	var fair, unfair int
	for fair <= rounds/2 && unfair <= rounds/2 {
		var quiet, loud []time.Duration
		for range turns {
			quiet = append(quiet, latencies(t, conn)...)
			stop := hostile.start(t)
			loud = append(loud, latencies(t, conn)...)
			stop()
		}
		slices.Sort(quiet)
		slices.Sort(loud)
		fine := true
		for percent, within := range map[int]float64{50: 2, 90: 20} {
			before, during := quiet[len(quiet)*percent/100], loud[len(loud)*percent/100]
			ratio := float64(during) / float64(before)
			t.Logf("%d of 100 wait %v at most when quiet, %v when not: %.2f times", percent, before, during, ratio)
			fine = fine && ratio <= within
		}
		if fine {
			fair++
		} else {
			unfair++
		}
	}
	if unfair > rounds/2 {
		t.Errorf("others wait too long in %d rounds of %d", unfair, fair+unfair)
	}
	stats := s.Stats()
	if n := stats.Queries[QueryKind{"tcp", "TXT", "NOERROR", true}]; n == 0 {
		t.Errorf("no large answer was sent by TCP: %v", stats.Queries)
	}
}

// badUpstream answers as much as a Forwarder takes to some, and others too late.
func badUpstream(ctx context.Context, question *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(question)
	if question.Question[0].Name != "large.example." {
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
		return m
	}
	for i := range 500 {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: fmt.Sprintf("n%d.large.example.", i), Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.IPv4(192, 0, 2, byte(i))})
	}
	return m
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
		wire(t, question("large.example.", dns.TypeA)), wire(t, ednsQuestion(question("large.example.", dns.TypeTXT), 1232, true)),
		wire(t, question("web.overlay.local.", dns.TypeANY)), wire(t, question("overlay.local.", dns.TypeAXFR)),
		wire(t, ednsQuestion(question("crowd.overlay.local.", dns.TypeA), 65535, true)), wire(t, question("nobody.overlay.local.", dns.TypeA)),
	}
}

// hostility is what hostile pods send.
type hostility struct {
	server      netip.AddrPort
	udp         *net.UDPConn
	half, whole *netlab.NS
	packets     [][]byte
}

// start sends 800 packets a second by UDP and 200 whole messages by TCP, and opens
// connections with half a message, until stop is called.
func (h *hostility) start(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	sending.Go(func() {
		atRate(ctx, 800, func(i int) { _, _ = h.udp.Write(h.packets[i%len(h.packets)]) })
	})
	sending.Go(func() {
		_ = h.half.Do(func() error {
			atRate(ctx, 100, func(int) {
				if half, err := (&net.Dialer{}).DialContext(ctx, "tcp", h.server.String()); err == nil {
					_, _ = half.Write([]byte{0xff, 0xff, 1})
					context.AfterFunc(ctx, func() { _ = half.Close() })
				}
			})
			return nil
		})
	})
	sending.Go(func() {
		_ = h.whole.Do(func() error {
			h.sendWhole(ctx)
			return nil
		})
	})
	return func() { cancel(); sending.Wait() }
}

// sendWhole sends whole messages on one connection after the other, and takes the answers.
func (h *hostility) sendWhole(ctx context.Context) {
	var conn net.Conn
	var reading sync.WaitGroup
	defer reading.Wait()
	atRate(ctx, 200, func(i int) {
		if conn == nil {
			opened, err := (&net.Dialer{}).DialContext(ctx, "tcp", h.server.String())
			if err != nil {
				return
			}
			conn = opened
			context.AfterFunc(ctx, func() { _ = opened.Close() })
			reading.Go(func() { _, _ = io.Copy(io.Discard, opened) })
		}
		if _, err := conn.Write(framed(h.packets[i%len(h.packets)])); err != nil {
			_ = conn.Close()
			conn = nil
		}
	})
}

// atRate calls do so many times a second, until ctx ends.
func atRate(ctx context.Context, rate int, do func(i int)) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for start, done := time.Now(), 0; ; {
		select {
		case now := <-tick.C:
			for ; done < int(now.Sub(start)*time.Duration(rate)/time.Second) && ctx.Err() == nil; done++ { // ticks get lost
				do(done)
			}
		case <-ctx.Done():
			return
		}
	}
}
