package main

import (
	"context"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

const (
	// eventQueue is how many events a subscriber may be behind.
	eventQueue = 256
	// peerInterval is how often peers are looked at. Reading thousands of them
	// takes a while, and what is looked for takes minutes to come.
	peerInterval = 30 * time.Second
	// peerSilence is how old a handshake may be for its peer to count as heard
	// of: after 180 s a session is no longer used (REJECT_AFTER_TIME of the
	// WireGuard paper, section 6.1).
	peerSilence = 180 * time.Second
)

// watchPeers tells subscribers when a peer is heard of and when it no longer
// is, until ctx ends.
func (d *daemon) watchPeers(ctx context.Context, events *shim.Broadcaster) error {
	healthy := map[wgtypes.Key]bool{}
	ticker := time.NewTicker(peerInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		reading, cancel := context.WithTimeout(ctx, peerInterval)
		status, err := d.plane.Status(reading)
		cancel()
		if err != nil {
			d.log.Debug("read peers, will try again", "op", "events", "err", err)
			continue
		}
		for _, change := range peerChanges(healthy, status.Device.Peers, time.Now()) {
			events.Publish(change)
		}
	}
}

// peerChanges compares peers with what healthy says of them, updates it, and
// returns the differences. A peer that was never heard of is no news.
func peerChanges(healthy map[wgtypes.Key]bool, peers []wireguard.PeerStatus, now time.Time) []*shim.PeerHealthChanged {
	var changes []*shim.PeerHealthChanged
	present := make(map[wgtypes.Key]bool, len(peers))
	for _, peer := range peers {
		present[peer.PublicKey] = true
		heard := !peer.LastHandshake.IsZero() && now.Sub(peer.LastHandshake) < peerSilence
		if heard != healthy[peer.PublicKey] {
			changes = append(changes, &shim.PeerHealthChanged{Pubkey: peer.PublicKey.String(), Healthy: heard})
		}
		healthy[peer.PublicKey] = heard
	}
	for key := range healthy {
		if !present[key] {
			delete(healthy, key)
		}
	}
	return changes
}
