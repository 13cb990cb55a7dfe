package wireguard

import (
	"fmt"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// HealthState says whether a peer answers.
type HealthState string

const (
	// HealthUnknown is a peer that was never heard, and not sent to for long.
	HealthUnknown HealthState = "unknown"
	// Healthy is a peer that answers.
	Healthy HealthState = "healthy"
	// Idle is a peer that answered when there was something to answer.
	Idle HealthState = "idle"
	// Unhealthy is a peer that does not answer.
	Unhealthy HealthState = "unhealthy"
)

const (
	// usualKeepalive stands in for the keepalive of a peer that has none.
	usualKeepalive = 25 * time.Second
	// badLooks in a row make a peer unhealthy, goodLooks in a row healthy again.
	badLooks, goodLooks = 3, 2
)

// PeerHealth is what is known of a peer.
type PeerHealth struct {
	// Node is the peer's name.
	Node string
	// PublicKey tells peers apart.
	PublicKey wgtypes.Key
	// State says whether it answers.
	State HealthState
	// Reason says in words what State was concluded from.
	Reason string
	// Since is when State became so.
	Since time.Time
	// RTT is the round trip of the last probe that was answered; 0 if none was.
	RTT time.Duration
}

// HealthChange is a peer whose state became another.
type HealthChange struct {
	PeerHealth

	// Before is the state that it had.
	Before HealthState
}

// ProbeResult is what came of a probe.
type ProbeResult struct {
	// RTT is how long the answer took.
	RTT time.Duration
	// Err is nil if there was an answer.
	Err error
}

// Health concludes from the counters of a device which of its peers answer. It
// sends nothing, and knows no clock but the times it is given: the caller looks
// every few seconds, and probes those that Suspects names.
//
// A look is bad if what was sent has had no answer for one and a half times the
// peer's keepalive (of 25 s where it has none), or if a probe failed. Three bad
// looks in a row make a peer unhealthy, two good ones in a row healthy again.
// WireGuard answers data within 10 s even if the other side has nothing to say,
// so nothing is concluded from silence alone, except of peers with a keepalive:
// those are always sent to. Bytes that come in without a session are no answer,
// since they are the handshakes of a peer that does not hear this node.
//
// Safe for concurrent use.
type Health struct {
	mu         sync.Mutex // guards all below
	keepalives map[wgtypes.Key]time.Duration
	order      []wgtypes.Key // of the last look
	records    map[wgtypes.Key]*healthRecord
}

// healthRecord is what is remembered of a peer from look to look.
type healthRecord struct {
	PeerHealth

	rx, tx  uint64
	active  time.Time // when traffic was last seen in either direction
	waiting time.Time // since when there is no answer; zero if there is nothing to answer
	probed  time.Time
	bad     int // looks in a row
	good    int
}

// NewHealth returns a tracker that knows no peers.
func NewHealth() *Health { return &Health{records: map[wgtypes.Key]*healthRecord{}} }

// SetPeers tells the keepalives of the peers, as Device.SetPeers is told them.
func (h *Health) SetPeers(peers []Peer) {
	keepalives := make(map[wgtypes.Key]time.Duration, len(peers))
	for i := range peers {
		keepalives[peers[i].PublicKey] = peers[i].Keepalive
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keepalives = keepalives
}

// Observe takes a look: the peers of the device at now, and the results of the
// probes since the last look, if any. It returns what changed by that, in the
// order of peers. A peer that is not among them any more is forgotten.
func (h *Health) Observe(now time.Time, peers []PeerStatus, probes map[wgtypes.Key]ProbeResult) []HealthChange {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.records
	h.records = make(map[wgtypes.Key]*healthRecord, len(peers))
	h.order = h.order[:0]
	var changes []HealthChange
	for i := range peers {
		key := peers[i].PublicKey
		record, known := before[key]
		state := HealthUnknown
		if known {
			state = record.State
			probe, probed := probes[key]
			record.look(now, &peers[i], h.keepalives[key], probe, probed)
		} else {
			record = h.first(now, &peers[i])
		}
		record.Node = peers[i].Node
		h.records[key] = record
		h.order = append(h.order, key)
		if record.State != state {
			changes = append(changes, HealthChange{PeerHealth: record.PeerHealth, Before: state})
		}
	}
	return changes
}

// Suspects returns the peers to probe at now: those that were sent to and have
// not answered. One that is unhealthy already is probed no more often than once
// in the time after which silence counts.
func (h *Health) Suspects(now time.Time) []wgtypes.Key {
	h.mu.Lock()
	defer h.mu.Unlock()
	var suspects []wgtypes.Key
	for _, key := range h.order {
		record, patience := h.records[key], answerTime(h.keepalives[key])
		if record.overdue(now, patience) && (record.State != Unhealthy || now.Sub(record.probed) >= patience) {
			suspects = append(suspects, key)
		}
	}
	return suspects
}

// Peers returns what is known of the peers, in the order of the last look.
func (h *Health) Peers() []PeerHealth {
	h.mu.Lock()
	defer h.mu.Unlock()
	peers := make([]PeerHealth, len(h.order))
	for i, key := range h.order {
		peers[i] = h.records[key].PeerHealth
	}
	return peers
}

// answerTime is how long an answer may take.
func answerTime(keepalive time.Duration) time.Duration {
	if keepalive == 0 {
		keepalive = usualKeepalive
	}
	return keepalive + keepalive/2
}

// first begins a record. A device that this process has found may have sessions.
func (h *Health) first(now time.Time, peer *PeerStatus) *healthRecord {
	record := &healthRecord{rx: peer.RxBytes, tx: peer.TxBytes, active: now}
	record.PublicKey = peer.PublicKey
	age := now.Sub(peer.LastHandshake)
	switch {
	case peer.LastHandshake.IsZero():
		record.become(now, HealthUnknown, "never heard")
	case age <= answerTime(h.keepalives[peer.PublicKey]):
		record.become(now, Healthy, fmt.Sprintf("handshake %v ago", age.Round(time.Second)))
	default:
		record.become(now, Idle, fmt.Sprintf("last handshake %v ago", age.Round(time.Second)))
	}
	return record
}

func (r *healthRecord) look(now time.Time, peer *PeerStatus, keepalive time.Duration, probe ProbeResult, probed bool) {
	sent := counted(r.tx, peer.TxBytes)
	answered := counted(r.rx, peer.RxBytes) && now.Sub(peer.LastHandshake) < staleHandshake
	r.rx, r.tx = peer.RxBytes, peer.TxBytes
	if sent || answered {
		r.active = now
	}
	if probed {
		r.probed = now
		if probe.Err == nil {
			r.RTT, answered = probe.RTT, true
		}
	}
	switch {
	case answered:
		r.waiting = time.Time{}
	case r.waiting.IsZero() && (sent || keepalive > 0 && peer.Endpoint.IsValid()):
		r.waiting = now
	}
	patience := answerTime(keepalive)
	switch {
	case answered:
		r.markGood(now)
	case probed:
		r.markBad(now, fmt.Sprintf("probe failed: %v", probe.Err))
	case r.overdue(now, patience):
		r.markBad(now, fmt.Sprintf("no answer for %v", now.Sub(r.waiting).Round(time.Second)))
	case r.State == Healthy && r.waiting.IsZero() && now.Sub(r.active) >= patience:
		r.become(now, Idle, "no traffic")
	}
}

// counted tells whether a counter went on, or began anew with the device.
func counted(before, now uint64) bool { return now > before || now < before && now > 0 }

// overdue tells whether the peer should have answered by now.
func (r *healthRecord) overdue(now time.Time, patience time.Duration) bool {
	return !r.waiting.IsZero() && now.Sub(r.waiting) >= patience
}

func (r *healthRecord) markGood(now time.Time) {
	r.bad = 0
	r.good++
	if r.State != Unhealthy || r.good >= goodLooks {
		r.become(now, Healthy, "answers")
	}
}

func (r *healthRecord) markBad(now time.Time, reason string) {
	r.good = 0
	r.bad++
	if r.bad >= badLooks {
		r.become(now, Unhealthy, reason)
	}
}

func (r *healthRecord) become(now time.Time, state HealthState, reason string) {
	if r.State != state {
		r.Since = now
	}
	r.State, r.Reason = state, reason
}
