package dataplane

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
)

// patience bounds every wait of a test; the machine may be an emulated one.
const patience = time.Minute

// newRelayingPlane returns a data plane that is up and relays for another node,
// and that node's key.
func newRelayingPlane(t *testing.T) (*Dataplane, NodeSet, wireguard.PrivateKey) {
	t.Helper()
	d := newPlane(t)
	ip(t, "link", "add", "under", "type", "bridge")
	t.Cleanup(func() { ip(t, "link", "del", "under") })
	ip(t, "addr", "add", "192.0.2.1/24", "dev", "under")
	ip(t, "link", "set", "under", "up")
	ip(t, "route", "add", "10.96.0.0/12", "dev", "under")
	d.cfg.NAT = NATConfig{Enabled: true, Relay: &RelayConfig{
		ListenPort: 3478, External: netip.MustParseAddrPort("192.0.2.1:3478"), MaxSessions: 4, Forbidden: prefixes("192.0.2.64/26"),
	}}
	set := twoNodes(t)
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	set.Nodes[1].PublicKey = key.PublicKey().String()
	return d, set, wireguard.NewPrivateKey(key)
}

// runBeside runs something until the test ends.
func runBeside(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// useRelay has a node allocate at the relay of another.
func useRelay(t *testing.T, d *Dataplane, key wireguard.PrivateKey) *nat.RelayClient {
	t.Helper()
	up := make(chan struct{}, 1)
	client, err := nat.NewRelayClient(nat.RelayClientConfig{
		UDP: "192.0.2.1:3478", Relay: d.key.PublicKey(), Self: key.PublicKey(), WireGuardPort: 51820, Log: d.log,
		Shared:  func(peer wgtypes.Key) ([]byte, error) { return key.Shared(peer, relayPurpose) },
		Deliver: func(nat.Way, netip.AddrPort, []byte) {},
		Up: func(netip.AddrPort) {
			select {
			case up <- struct{}{}:
			default:
			}
		},
		Down: func(err error) { t.Logf("no allocation: %v", err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	runBeside(t, client.Run)
	select {
	case <-up:
	case <-time.After(patience):
		t.Fatal("no allocation")
	}
	return client
}

// TestRelayPassesNothingOnToServices has a node publish the address of a service
// as its own. Which prefixes services have, the relay learns with the node set.
func TestRelayPassesNothingOnToServices(t *testing.T) {
	d, set, key := newRelayingPlane(t)
	set.Nodes[1].Candidates = []string{"host/10.96.0.10:53", "host/192.0.2.65:53", "host/192.0.2.9:51820"}
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	tr := d.current().traversal
	runBeside(t, tr.serveRelay)
	client := useRelay(t, d, key)
	stats := tr.server.Stats()
	// passes sends until it is known whether the relay passes that on.
	passes := func(to string) bool {
		t.Helper()
		passed, refused := stats.ToPeers.Load(), stats.ForbiddenPeer.Load()
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if err := client.Send(nat.ServerRequest(nat.NewTransactionID()), netip.MustParseAddrPort(to)); err != nil {
				return false // the client does not ask again for what was refused
			}
			if now := stats.ToPeers.Load() > passed; now || stats.ForbiddenPeer.Load() > refused {
				return now
			}
		}
		t.Fatalf("a packet to %s was neither passed on nor refused", to)
		return false
	}
	wait := func(to string, want bool) {
		t.Helper()
		for began := time.Now(); passes(to) != want; {
			if time.Since(began) > patience {
				t.Fatalf("to %s: passed on: %t, want %t", to, !want, want)
			}
		}
	}
	wait("192.0.2.9:51820", true)
	wait("192.0.2.65:53", false) // configured
	wait("10.96.0.10:53", true)  // it may be a host's as far as anybody knows
	set.ServiceCIDRs = prefixes("10.96.0.0/12")
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	wait("10.96.0.10:53", false)
	wait("192.0.2.9:51820", true)
	set.Cluster = append(set.Cluster, prefixes("192.0.2.8/29")...) // as a cluster that grows
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	wait("192.0.2.9:51820", false)
}

// TestRelayIsOfferedWhileItServes has another program hold the relay's port.
func TestRelayIsOfferedWhileItServes(t *testing.T) {
	d, set, _ := newRelayingPlane(t)
	offers := make(chan string, 4)
	d.cfg.OnCandidates = func() { offers <- d.RelayOffer() }
	if err := d.SetNodes(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	tr := d.current().traversal
	port, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:3478")))
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.serveRelay(t.Context()); err == nil {
		t.Fatal("the relay serves at a port that another has")
	}
	if offer := d.RelayOffer(); offer != "" || len(offers) > 0 {
		t.Errorf("offer %q of a relay that does not serve, told %d times", offer, len(offers))
	}
	if err := port.Close(); err != nil {
		t.Fatal(err)
	}
	next := func(want string) {
		t.Helper()
		select {
		case offer := <-offers:
			if status := d.NATStatus().Relay; offer != want || status.Offer != want {
				t.Errorf("offer %q, in the status %q, want %q", offer, status.Offer, want)
			}
		case <-time.After(patience):
			t.Fatalf("nothing is told, want %q", want)
		}
	}
	const offer = "udp=192.0.2.1:3478,tcp=192.0.2.1:3478"
	runBeside(t, tr.serveRelay)
	next(offer)
	tr.setServing(false) // as if it had ended
	next("")
}
