package shim

// PeerHealthChanged tells that a peer was heard of again, or no longer.
type PeerHealthChanged struct {
	Pubkey  string `json:"pubkey"`
	Healthy bool   `json:"healthy"`
}

// NATEndpointChanged tells that a peer is reached by another endpoint, in
// another way, or no more.
type NATEndpointChanged struct {
	Pubkey   string `json:"pubkey"`
	Endpoint string `json:"endpoint"` // empty: by none

	Connection ConnectionType `json:"connection_type,omitempty"` // our addition; empty: not known, or by none
}

// NATCandidatesChanged tells that this node may be reached at other addresses
// than before, or its relay is reached otherwise. Whoever adds this node as a peer
// elsewhere adds it again with these. It is our addition.
type NATCandidatesChanged struct {
	Candidates []string `json:"candidates"`      // as PeerSpec's
	Relay      string   `json:"relay,omitempty"` // as PeerSpec's; empty: none
}

// Lost tells that this subscriber was too slow and missed Count events, the
// oldest ones, before the next. It is our addition.
type Lost struct {
	Count uint64 `json:"count"`
}

// Event implements Event.
func (*PeerHealthChanged) Event() string { return "peer_health_changed" }

// Event implements Event.
func (*NATEndpointChanged) Event() string { return "nat_endpoint_changed" }

// Event implements Event.
func (*NATCandidatesChanged) Event() string { return "nat_candidates_changed" }

// Event implements Event.
func (*Lost) Event() string { return "lost" }

// events returns an empty event of every kind.
func events() []Event {
	return []Event{&PeerHealthChanged{}, &NATEndpointChanged{}, &NATCandidatesChanged{}, &Lost{}}
}

// newEvent returns an empty event of the tag, or nil if there is none.
func newEvent(tag string) Event {
	for _, event := range events() {
		if event.Event() == tag {
			return event
		}
	}
	return nil
}
