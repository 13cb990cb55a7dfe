package dns

import (
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// Names of the zone are answered here, all others by an upstream, and the zone
// does not care how that one fares (the original's
// test_forwarding_overlay_answered_and_nonoverlay_forwarded and
// test_forwarding_total_upstream_failure_is_servfail_not_panic).
func TestForwardBesideZone(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			upstream := newFakeUpstream(t, tell(webA), say(dns.RcodeServerFailure))
			server := freePort(t, "127.0.0.1")
			run(t, newTestServer(ServerConfig{Forward: newTestForwarder(t, upstream)}, clientsZone(t)), server)
			ask := func(name string) *dns.Msg {
				return askServer(t, network, server, question(name, dns.TypeA, withEDNS))
			}
			ours := func() {
				t.Helper()
				if answer := ask("web.overlay.local."); len(answer.Answer) != 2 || !answer.Authoritative {
					t.Errorf("name of the zone: %v", answer)
				}
			}
			ours()
			for range 2 { // by the upstream, and by the cache
				answer := ask("web.elsewhere.example.")
				wantTold(t, answer, "NOERROR", webA)
				if answer.Authoritative || !answer.RecursionAvailable {
					t.Errorf("flags of a forwarded answer: %v", answer)
				}
			}
			wantTold(t, ask("lost.elsewhere.example."), "SERVFAIL")
			ours()
			if asked := len(upstream.questions()); asked != 1+tries {
				t.Errorf("upstream was asked %d times", asked)
			}
		})
	}
}

// A link-local address is asked through the interface that it names.
func TestUpstreamLinkLocal(t *testing.T) {
	bridge := makeBridge(t, "br-upstream")
	addr := netip.MustParseAddr(gateway6).WithZone(bridge.Attrs().Name)
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	must(t, err)
	port := netip.MustParseAddrPort(conn.LocalAddr().String()).Port()
	fake := &fakeUpstream{addr: netip.AddrPortFrom(addr, port), plan: []behaviour{tell(webA)}}
	fake.wg.Go(func() { fake.servePackets(conn) })
	t.Cleanup(func() { _ = conn.Close(); fake.wg.Wait() })
	f := newTestForwarder(t, fake)
	wantTold(t, f.Exchange(t.Context(), question("web.example.", dns.TypeA), true), "NOERROR", webA)
}
