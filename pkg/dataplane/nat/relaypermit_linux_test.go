package nat

import (
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// TestRelayChecksOfManyPeers: checks of a large cluster take neither channels nor
// loopback sockets, so that all peers can be checked and all be used.
func TestRelayChecksOfManyPeers(t *testing.T) {
	noLeaks(t)
	const nodes, each = 200, 4
	node := newTestNode(t)
	peers := []RelayPeer{{Key: node.public}}
	for i := range nodes {
		peer := RelayPeer{Key: newTestNode(t).public}
		for j := range each - 1 {
			peer.Addrs = append(peer.Addrs, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(100 + j), 0, byte(i)}), 51820))
		}
		peers = append(peers, peer)
		peers[len(peers)-1].Addrs = append(peer.Addrs, netip.AddrPortFrom(relayPeerAddr, uint16(20000+i)))
	}
	relay := startRelay(t, newTestNode(t), nil, peers...)
	a := relay.startPeer(t, node, nil, nil)
	a.awaitUp(t)
	check := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint)
	for i, peer := range peers[1:] {
		at := listenAt(t, peer.Addrs[each-1])
		for _, addr := range peer.Addrs {
			if err := a.client.Send(check.Raw, addr); err != nil {
				t.Fatalf("check of peer %d at %s: %v", i, addr, err)
			}
		}
		if got := readOne(t, at); got != string(check.Raw) {
			t.Fatalf("peer %d got %q", i, got)
		}
		if _, err := at.WriteToUDPAddrPort(check.Raw, a.relayed); err != nil {
			t.Fatal(err)
		}
		if got := <-a.stun; got.from != peer.Addrs[each-1] || got.packet != string(check.Raw) {
			t.Fatalf("an answer of peer %d came from %s", i, got.from)
		}
		_ = at.Close()
	}
	a.client.mu.Lock()
	sockets := len(a.client.remotes)
	a.client.mu.Unlock()
	if sockets != 0 {
		t.Errorf("%d loopback sockets for checks alone", sockets)
	}
	for i, peer := range peers[1:] {
		for _, addr := range peer.Addrs[2:] {
			if _, err := a.client.Endpoint(addr); err != nil {
				t.Fatalf("endpoint for peer %d: %v", i, err)
			}
		}
	}
}

// TestRelayPermits checks what becomes of a permission: refused, renewed, taken to
// another allocation, and forgotten.
func TestRelayPermits(t *testing.T) {
	noLeaks(t)
	relay, nodeA, _ := twoNodes(t, nil)
	a := relay.startPeer(t, nodeA, nil, func(c *RelayClient) { c.refresh, c.idle = time.Hour, time.Hour })
	a.awaitUp(t)
	peer := netip.AddrPortFrom(relayPeerAddr, 51820)
	at := listenAt(t, peer)
	check := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint)
	send := func() {
		t.Helper()
		if err := a.client.Send(check.Raw, peer); err != nil {
			t.Fatal(err)
		}
		if got := readOne(t, at); got != string(check.Raw) {
			t.Fatalf("peer got %q", got)
		}
	}
	permit := func(addr netip.Addr) (got relayPermit) {
		a.client.permitMu.Lock()
		defer a.client.permitMu.Unlock()
		if p := a.client.permits[addr]; p != nil {
			got = *p
		}
		return got
	}
	send()
	stranger := netip.AddrPortFrom(relayStranger, 51820)
	waitUntil(t, "a stranger is refused", func() bool { return a.client.Send(check.Raw, stranger) != nil })
	if got := permit(relayStranger); got.session != nil || len(got.waiting) > 0 {
		t.Error("a stranger has a permission, or packets wait for one")
	}

	first := permit(relayPeerAddr)
	a.client.permitMu.Lock()
	a.client.permits[relayPeerAddr].at = time.Now().Add(-relayRebind)
	a.client.permitMu.Unlock()
	a.client.renewPermits(a.client.current.Load())
	waitUntil(t, "it is renewed", func() bool { return permit(relayPeerAddr).at.After(first.at) })

	session := a.client.current.Load()
	session.fail(errRelayGone)
	a.awaitUp(t)
	waitUntil(t, "another allocation has it", func() bool {
		now := a.client.current.Load()
		return now != session && permit(relayPeerAddr).session == now
	})
	if _, err := at.WriteToUDPAddrPort(check.Raw, a.relayed); err != nil {
		t.Fatal(err)
	}
	if got := <-a.stun; got.from != peer {
		t.Errorf("a check came from %s", got.from)
	}
	a.client.permitMu.Lock()
	a.client.permits[relayPeerAddr].used = time.Now().Add(-time.Hour)
	a.client.permitMu.Unlock()
	a.client.renewPermits(a.client.current.Load())
	if got := permit(relayPeerAddr); !got.used.IsZero() {
		t.Error("a permission that is not in use is not forgotten")
	}
}
