package nat

import (
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// PathKind says how packets get to a peer, as far as this node can see.
type PathKind string

// The kinds of paths.
const (
	// Direct goes to an address of the peer itself, and through no translator
	// that is known of.
	Direct PathKind = "direct"
	// HolePunched goes through a translator at either end, and has to be kept
	// open.
	HolePunched PathKind = "hole-punched"
	// ByRelay goes by a relay of either end.
	ByRelay PathKind = "relayed"
	// Unreached says that no path is known yet, or any more.
	Unreached PathKind = "unreached"
)

// PeerStatus is the path to a peer.
type PeerStatus struct {
	// Key and Node name the peer.
	Key  wgtypes.Key
	Node string
	// Path is the path's kind. A peer without a translator at either end is
	// Direct and nothing else is known of it.
	Path PathKind
	// Remote is the address that packets are for: the peer's, not that of a relay
	// of this node. It is the zero value if the peer is unreached.
	Remote netip.AddrPort
	// RTT is the round trip of the last answered check, 0 if there was none.
	RTT time.Duration
	// Since is when the path, or its absence, began.
	Since time.Time
	// Missed says of an unreached peer that there is something to send to it, or
	// that it looks for a path itself.
	Missed bool
	// Heard says that the peer answered by this path within the time of a session.
	Heard bool
}

// Reach says how peers are reached by and large.
type Reach struct {
	// Mapping and Translated are as in [Status].
	Mapping    Mapping
	Translated bool
	// Unaided peers are reached without a relay and were heard, Relayed ones by one,
	// and Missed ones not at all although they are missed.
	Unaided, Relayed, Missed int
}

func (r *Reach) count(peer PeerStatus, n int) {
	switch peer.Path {
	case Direct, HolePunched:
		if peer.Heard {
			r.Unaided += n
		}
	case ByRelay:
		r.Relayed += n
	case Unreached:
		if peer.Missed {
			r.Missed += n
		}
	}
}

// PathNews is a change of a peer's path.
type PathNews struct {
	// PeerStatus is the path from now on.
	PeerStatus
	// Was is the kind of the former one.
	Was PathKind
}

// Status is a snapshot of an [Agent].
type Status struct {
	// Candidates are this node's own, sorted.
	Candidates []Candidate
	// Mapping is how translators map the WireGuard port, as far as known.
	Mapping Mapping
	// Translated says that a translator is between this node and the servers or
	// peers that told of one.
	Translated bool
	// Peers are sorted by key.
	Peers []PeerStatus
	// Sent counts checks, and Answered those of them that had an answer.
	Sent, Answered uint64
	// Dropped counts packets that were not looked at, because there were too
	// many; Refused those that no peer can have made.
	Dropped, Refused uint64
}
