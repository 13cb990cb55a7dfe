package kube

import (
	"math/rand/v2"
	"time"
)

const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// backoff spaces retries: from firstRetry, doubling up to lastRetry, each with
// up to half of it more or less, so that the daemons of a cluster do not come
// together. The zero value begins.
type backoff struct {
	wait time.Duration
}

// next is how long to wait before the next try.
func (b *backoff) next() time.Duration {
	b.wait = min(max(2*b.wait, firstRetry), lastRetry)
	return b.wait/2 + rand.N(b.wait)
}
