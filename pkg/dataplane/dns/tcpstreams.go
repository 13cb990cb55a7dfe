package dns

import (
	"sync"
	"time"
)

const (
	// maxStreams is how many connections there are at most, streamsEach how many of one client.
	maxStreams  = 256
	streamsEach = 16
)

// streams are the connections of a Server. Safe for concurrent use.
type streams struct {
	mu  sync.Mutex // guards all, and the state of each
	all map[*stream]bool
}

func newStreams() *streams { return &streams{all: map[*stream]bool{}} }

// admit takes a connection in. If there are too many, the one that has been
// idle for the longest is closed; if none is idle, the new one has to go.
func (s *streams) admit(st *stream, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var mine int
	var oldest, oldestMine *stream
	for other := range s.all {
		if other.working == 0 && (oldest == nil || other.idle.Before(oldest.idle)) {
			oldest = other
		}
		if other.client != st.client {
			continue
		}
		mine++
		if other.working == 0 && (oldestMine == nil || other.idle.Before(oldestMine.idle)) {
			oldestMine = other
		}
	}
	if mine >= streamsEach {
		oldest = oldestMine
	}
	if mine >= streamsEach || len(s.all) >= maxStreams {
		if oldest == nil {
			return false
		}
		s.closeLocked(oldest)
	}
	st.idle = now
	s.all[st] = true
	return true
}

// busy says that a stream has one more question to answer, done that it has one fewer.
func (s *streams) busy(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.working++
}

func (s *streams) done(st *stream, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.working--
	st.idle = now
}

// remove closes a connection and forgets it.
func (s *streams) remove(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeLocked(st)
}

// closeOf closes the connections that a listener took.
func (s *streams) closeOf(listener *socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.all {
		if st.of == listener {
			s.closeLocked(st)
		}
	}
}

func (s *streams) closeLocked(st *stream) {
	_ = st.conn.Close()
	delete(s.all, st)
}
