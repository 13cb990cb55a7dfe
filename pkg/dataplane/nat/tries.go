package nat

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// retransmission is how long the n-th check of a path waits for an answer before
// the next. Packets that meet a translator before the peer's have opened it are lost,
// so the first follow closely.
func retransmission(n int) time.Duration {
	const first, last = 500 * time.Millisecond, 2 * time.Second
	return min(last, first<<min(n/2, 2))
}

// pathSort tells paths apart that may well fare alike.
type pathSort struct {
	direct bool
	remote Kind
}

// try is a path in a search.
type try struct {
	path
	sort   pathSort
	score  int
	sends  int
	next   time.Time      // when to send the next check
	proved time.Time      // when the first answer came
	mapped netip.AddrPort // what the peer then saw of us
	failed bool           // it was proved, and then carried nothing
}

// search tries paths to a peer until one is as good as it gets or the time is up.
type search struct {
	ends      time.Time
	paced     time.Time // no check before
	tries     []*try
	strangers int
}

// find returns the try of a path, or nil.
func (s *search) find(x path) *try {
	at := slices.IndexFunc(s.tries, func(t *try) bool { return t.path == x })
	if at < 0 {
		return nil
	}
	return s.tries[at]
}

// best returns the best try that is proved and has not failed, or nil.
func (s *search) best() *try {
	for _, t := range s.tries {
		if !t.proved.IsZero() && !t.failed {
			return t
		}
	}
	return nil
}

// hopes reports whether anything better than score may still be proved, or,
// if soon, was not given a fair chance yet.
func (s *search) hopes(score int, soon bool) bool {
	const fair = 2
	return slices.ContainsFunc(s.tries, func(t *try) bool {
		return t.score > score && t.proved.IsZero() && !t.failed && (!soon || t.sends < fair)
	})
}

// add puts a path in its place, behind those that are as good.
func (s *search) add(t *try) {
	at, _ := slices.BinarySearchFunc(s.tries, t, func(a, b *try) int {
		if a.score < b.score {
			return 1
		}
		return -1
	})
	s.tries = slices.Insert(s.tries, at, t)
}

// newTry is a try of a path, which has failed already if it is shunned.
func (e *engine) newTry(p *peer, x path) *try {
	failed := p.inUse != nil && slices.ContainsFunc(p.shunned, func(s shunned) bool { return s.path == x && e.now.Before(s.until) })
	return &try{path: x, sort: pathSort{x.way == e.direct, p.kindOf(x.remote)}, score: e.score(p, x), failed: failed}
}

// paths are all that make sense to a peer, the best first, at most
// MaxCandidatePairs. Before any sort of path (way and kind) has a second place
// each has one, so that many addresses of a host do not leave out its relay.
func (e *engine) paths(p *peer) []*try {
	var all []*try
	remotes := p.remotes()
	for _, way := range e.ways() {
		for _, remote := range remotes {
			x := path{way.way, remote}
			if way.reaches(remote.Addr(), remotes) && (way.way != e.direct || e.speaks(remote.Addr())) && !e.isOwn(remote) && !slices.ContainsFunc(all, func(t *try) bool { return t.path == x }) {
				all = append(all, e.newTry(p, x))
			}
		}
	}
	sortTries(all)
	if len(all) > e.config.MaxCandidatePairs {
		places := map[*try]int{}
		taken := map[pathSort]int{}
		for _, t := range all {
			places[t] = taken[t.sort]
			taken[t.sort]++
		}
		slices.SortStableFunc(all, func(a, b *try) int { return cmp.Compare(places[a], places[b]) })
		all = all[:e.config.MaxCandidatePairs]
		sortTries(all)
	}
	return all
}

func sortTries(tries []*try) {
	slices.SortStableFunc(tries, func(a, b *try) int {
		return cmp.Or(
			cmp.Compare(b.score, a.score),
			cmp.Compare(b.sort.remote.Priority(), a.sort.remote.Priority()),
			b.remote.Addr().Compare(a.remote.Addr()),
			cmp.Compare(a.remote.Port(), b.remote.Port()),
		)
	})
}
