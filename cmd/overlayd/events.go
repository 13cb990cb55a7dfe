package main

import (
	"strings"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/wireguard"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// eventQueue is how many events a subscriber may be behind.
const eventQueue = 256

// peerChanged tells subscribers, and the cluster, what changed of a peer.
func (d *daemon) peerChanged(news dataplane.PeerNews) {
	d.events.Publish(peerEvent(news))
	if d.cluster != nil && news.Answers {
		d.cluster.PeersChanged()
	}
}

// candidatesEvent tells where this node may be reached by now.
func candidatesEvent(own []nat.Candidate, relay string) shim.Event {
	texts := []string{}
	if text := nat.FormatCandidates(own); text != "" { // no more than others take
		texts = strings.Split(text, ",")
	}
	return &shim.NATCandidatesChanged{Candidates: texts, Relay: relay}
}

func peerEvent(news dataplane.PeerNews) shim.Event {
	if news.Answers {
		return &shim.PeerHealthChanged{Pubkey: news.PublicKey.String(), Healthy: news.Health.State == wireguard.Healthy}
	}
	event := &shim.NATEndpointChanged{Pubkey: news.PublicKey.String(), Connection: shim.ConnectionType(news.Connection)}
	if news.Endpoint.IsValid() {
		event.Endpoint = news.Endpoint.String()
	}
	return event
}
