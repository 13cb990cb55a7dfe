package main

import (
	"time"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// unixSecs is a moment on the wire, 0 for none.
func unixSecs(moment time.Time) int64 {
	if moment.IsZero() {
		return 0
	}
	return moment.Unix()
}

// natStatusOf translates what is known of ways through NATs.
func natStatusOf(status dataplane.NATStatus) *shim.NATStatus {
	told := &shim.NATStatus{Enabled: status.Enabled, NATType: status.Mapping}
	for _, known := range status.Candidates {
		told.Candidates = append(told.Candidates, shim.NATCandidate{
			Type: shim.CandidateType(known.Candidate.Kind), Address: known.Candidate.Addr,
			Priority: known.Candidate.Kind.Priority(), DiscoveredUnixSecs: unixSecs(known.Since),
		})
	}
	for _, path := range status.Peers {
		peer := shim.NATPeer{
			PublicKey: path.PublicKey.String(), Node: path.Node, Connection: shim.ConnectionType(path.Connection),
			RTTMicros: uint64(path.RTT.Microseconds()), SinceUnixSecs: unixSecs(path.Since),
		}
		if path.Endpoint.IsValid() {
			peer.Endpoint = path.Endpoint.String()
		}
		told.Peers = append(told.Peers, peer)
	}
	if relay := status.Relay; relay != nil {
		told.Relay = &shim.NATRelay{
			Offer: relay.Offer, Sessions: uint32(relay.Sessions), Bytes: relay.Bytes, Refused: relay.RefusedInAll(), RefusedFor: relay.Refused,
		}
	}
	return told
}
