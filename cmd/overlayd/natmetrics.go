package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/nat"
)

// natCollector tells of ways through NATs, as they are at the scrape. While that
// is off it has nothing to tell.
type natCollector struct {
	status func() dataplane.NATStatus
	descs  natDescs
}

// natDescs describes the metrics of natCollector.
type natDescs struct {
	mapping, candidates, peers, roundTrip *prometheus.Desc
	sent, answered, refused, dropped      *prometheus.Desc
	sessions, relayed, relayRefused       *prometheus.Desc
}

func newNATCollector(status func() dataplane.NATStatus) *natCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "nat", name), help, labels, nil)
	}
	return &natCollector{status: status, descs: natDescs{
		mapping:      desc("mapping_info", "1, labelled with how the NAT in front of this node maps its port: endpoint-independent, symmetric or unknown.", "mapping"),
		candidates:   desc("candidates", "Addresses at which this node may be reached, by kind.", "kind"),
		peers:        desc("peers", "Peers for which a way was looked for, by the way they are reached: direct, hole-punched, relayed or none.", "path"),
		roundTrip:    desc("peer_round_trip_seconds", "Round trip of the last check of the way to a peer that was answered.", "node"),
		sent:         desc("checks_sent_total", "Packets sent to try ways to peers."),
		answered:     desc("checks_answered_total", "Packets sent to try ways to peers that had an answer."),
		refused:      desc("checks_refused_total", "STUN packets that nobody had a reason to send: malformed, without a peer's key, or answers that are late or not from where was asked."),
		dropped:      desc("checks_dropped_total", "STUN packets that were not looked at, because there were too many."),
		sessions:     desc("relay_sessions", "Allocations of others at this node's relay."),
		relayed:      desc("relay_bytes_total", "Bytes that this node's relay passed on, in either direction."),
		relayRefused: desc("relay_refused_total", "Requests that this node's relay refused, and packets that it did not pass on, by reason.", "reason"),
	}}
}

// Describe implements prometheus.Collector.
func (c *natCollector) Describe(into chan<- *prometheus.Desc) {
	d := c.descs
	for _, desc := range []*prometheus.Desc{
		d.mapping, d.candidates, d.peers, d.roundTrip, d.sent, d.answered, d.refused, d.dropped, d.sessions, d.relayed, d.relayRefused,
	} {
		into <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *natCollector) Collect(into chan<- prometheus.Metric) {
	status := c.status()
	if !status.Enabled {
		return
	}
	s := sender{into}
	mapping := status.Mapping
	if mapping == "" {
		mapping = "unknown"
	}
	s.gauge(c.descs.mapping, 1, mapping)
	kinds := map[nat.Kind]int{nat.Host: 0, nat.Reflexive: 0, nat.Relayed: 0}
	for _, known := range status.Candidates {
		kinds[known.Candidate.Kind]++
	}
	for kind, n := range kinds {
		s.gauge(c.descs.candidates, float64(n), string(kind))
	}
	c.collectPeers(s, status.Peers)
	s.counter(c.descs.sent, float64(status.Checks.Sent))
	s.counter(c.descs.answered, float64(status.Checks.Answered))
	s.counter(c.descs.refused, float64(status.Checks.Refused))
	s.counter(c.descs.dropped, float64(status.Checks.Dropped))
	if relay := status.Relay; relay != nil {
		s.gauge(c.descs.sessions, float64(relay.Sessions))
		s.counter(c.descs.relayed, float64(relay.Bytes))
		for reason, n := range relay.Refused {
			s.counter(c.descs.relayRefused, float64(n), reason)
		}
	}
}

func (c *natCollector) collectPeers(s sender, peers []dataplane.NATPath) {
	paths := map[string]int{"none": 0}
	for _, connection := range dataplane.Connections() {
		paths[string(connection)] = 0
	}
	for _, peer := range peers {
		path := string(peer.Connection)
		if path == "" {
			path = "none"
		}
		paths[path]++
		if peer.RTT > 0 && peer.Node != "" {
			s.gauge(c.descs.roundTrip, peer.RTT.Seconds(), peer.Node)
		}
	}
	for path, n := range paths {
		s.gauge(c.descs.peers, float64(n), path)
	}
}
