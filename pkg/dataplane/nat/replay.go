package nat

import (
	"crypto/rand"
	"encoding/binary"
	"slices"
	"time"
)

const (
	// replayWindow is by how much a check may be late behind a later one of the same
	// peer, and still be heard: ways differ in length.
	replayWindow = answerTime
	// maxHeard bounds the checks that are remembered of a peer: a search sends 200
	// in that time.
	maxHeard = 512
	// checkTimeLen is what of a check's id says when it was sent, in bytes.
	checkTimeLen = 8
)

// NewCheckID returns the id of a check that is sent now: the time in nanoseconds,
// and random bytes. MESSAGE-INTEGRITY covers it.
func NewCheckID(now time.Time) TransactionID {
	var id TransactionID
	binary.BigEndian.PutUint64(id[:checkTimeLen], uint64(now.UnixNano())) //nolint:gosec // after 1970
	_, _ = rand.Read(id[checkTimeLen:])                                   // never fails
	return id
}

func (id TransactionID) sent() time.Time {
	return time.Unix(0, int64(binary.BigEndian.Uint64(id[:checkTimeLen]))) //nolint:gosec // any time will do
}

// replays tells the checks of one peer from copies of them. Like WireGuard with
// its handshakes it compares only times of the same sender, so that clocks may
// differ; and as there, a node whose clock is set back is not heard until it is
// where it was, and after this end has started copies may be taken for new until
// the first check of the peer's own.
type replays struct {
	newest time.Time
	heard  []TransactionID // within the window before newest
}

// isNew reports whether a check was not heard before, and remembers it.
func (r *replays) isNew(id TransactionID) bool {
	at := id.sent()
	if r.newest.Sub(at) > replayWindow || slices.Contains(r.heard, id) {
		return false
	}
	if at.After(r.newest) {
		r.newest = at
		r.heard = slices.DeleteFunc(r.heard, func(h TransactionID) bool { return at.Sub(h.sent()) > replayWindow })
	}
	if len(r.heard) == maxHeard {
		return false
	}
	r.heard = append(r.heard, id)
	return true
}
