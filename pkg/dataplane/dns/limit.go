package dns

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	limiterShards = 64
	// shardClients bounds the memory: 16384 clients in all, some 2 MB.
	shardClients = 256
)

// limiter lets every client ask so many questions in a second, on average, and
// as many at once. Safe for concurrent use.
type limiter struct {
	rate   float64
	seed   maphash.Seed
	shards [limiterShards]limiterShard
}

type limiterShard struct {
	mu      sync.Mutex // guards clients
	clients map[netip.Addr]bucket
}

// bucket is what a client has left, as of a time.
type bucket struct {
	tokens float64
	at     time.Time
}

// newLimiter returns a limiter; a rate of 0 limits nothing.
func newLimiter(rate int) *limiter {
	l := &limiter{rate: float64(rate), seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].clients = map[netip.Addr]bucket{}
	}
	return l
}

// take tells whether a client may ask now.
func (l *limiter) take(client netip.Addr, now time.Time) bool {
	if l.rate <= 0 {
		return true
	}
	shard := &l.shards[maphash.Comparable(l.seed, client)%limiterShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	b, known := shard.clients[client]
	if !known {
		if len(shard.clients) >= shardClients {
			shard.makeRoom(now)
		}
		b = bucket{tokens: l.rate, at: now}
	}
	if since := now.Sub(b.at); since > 0 { // another goroutine's packet may be older
		b.tokens, b.at = min(l.rate, b.tokens+since.Seconds()*l.rate), now
	}
	may := b.tokens >= 1
	if may {
		b.tokens--
	}
	shard.clients[client] = b
	return may
}

// makeRoom forgets who has been silent for a second, which changes nothing for
// them, or else anybody.
func (s *limiterShard) makeRoom(now time.Time) {
	for client, b := range s.clients {
		if now.Sub(b.at) >= time.Second {
			delete(s.clients, client)
		}
	}
	for client := range s.clients {
		if len(s.clients) < shardClients {
			return
		}
		delete(s.clients, client)
	}
}

// share divides a number of places among clients, none of whom may have more
// than a part of them. Safe for concurrent use.
type share struct {
	all, each int

	mu    sync.Mutex // guards what follows
	taken int
	by    map[netip.Addr]int
}

func newShare(all, each int) *share { return &share{all: all, each: each, by: map[netip.Addr]int{}} }

// enter takes a place, if there is one, until leave.
func (s *share) enter(client netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken >= s.all || s.by[client] >= s.each {
		return false
	}
	s.taken++
	s.by[client]++
	return true
}

func (s *share) leave(client netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.by[client]--; s.by[client] == 0 {
		delete(s.by, client)
	}
}
