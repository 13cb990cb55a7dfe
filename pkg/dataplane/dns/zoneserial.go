package dns

import (
	"sync/atomic"
	"time"
)

// serial is the zone's, by RFC 1982: tenths of seconds of the clock, so that a zone
// that starts anew goes on above what the last one told. It grows with every change
// that follows on its being told, by one where the clock is not further, so that
// changes that nobody sees do not bring it ahead of the clock.
type serial struct {
	now  atomic.Uint32
	told atomic.Bool
}

func (s *serial) start() { s.now.Store(clockSerial()) }

// grow is called after a change, by one goroutine at a time.
func (s *serial) grow() {
	if !s.told.Swap(false) {
		return
	}
	next, clock := s.now.Load()+1, clockSerial()
	if int32(clock-next) > 0 { //nolint:gosec // RFC 1982, section 3.2: the sign of what wraps around
		next = clock
	}
	s.now.Store(next)
}

// tell is the serial of now.
func (s *serial) tell() uint32 {
	// Before it is read: a change between the two then lets it grow once more, not once less.
	if !s.told.Load() {
		s.told.Store(true)
	}
	return s.now.Load()
}

func clockSerial() uint32 {
	return uint32(time.Now().UnixMilli() / 100) //nolint:gosec // it wraps around after 13 years
}
