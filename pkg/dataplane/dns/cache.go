package dns

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/miekg/dns"
)

const (
	// cacheEntries and cacheBytes bound the cache, whichever is reached first.
	cacheEntries = 10_000
	cacheBytes   = 8 << 20
	// positiveLimit and negativeLimit are the longest times that answers are kept.
	positiveLimit = 24 * time.Hour
	negativeLimit = time.Hour
	// failureFor is how long a failure is remembered (RFC 9520), so that a name that
	// cannot be resolved does not keep upstreams busy.
	failureFor = 3 * time.Second
	// cutFor is how long it is remembered that an answer takes TCP to be had.
	cutFor = 5 * time.Second
	// staleFor is how long an answer may still be told after its time when no
	// upstream answers (RFC 8767), and staleTTL what it then says of itself.
	staleFor = time.Hour
	staleTTL = 30
	// entryOverhead is about what an entry takes beside its name and its records.
	entryOverhead = 512
)

// cacheKey is what the answer to a question depends on.
type cacheKey struct {
	name         string
	qtype, class uint16
	// do and cd ask for the proof and for what is not proved (RFC 4035), rd for
	// recursion.
	do, cd, rd bool
	// whole asks for what takes TCP to be had as well. Fetching and keeping it for
	// those who ask by UDP would cost far more than they do.
	whole bool
}

// keyOf is for a message with one question.
func keyOf(question *dns.Msg, whole bool) cacheKey {
	q := question.Question[0]
	opt := question.IsEdns0()
	return cacheKey{
		name: dns.CanonicalName(q.Name), qtype: q.Qtype, class: q.Qclass,
		do: opt != nil && opt.Do(), cd: question.CheckingDisabled, rd: question.RecursionDesired, whole: whole,
	}
}

func (k cacheKey) String() string {
	return fmt.Sprint(k.name, " ", k.qtype, k.class, k.do, k.cd, k.rd, k.whole)
}

// query is the question as an upstream is asked it, with an identifier that
// nobody can guess.
func (k cacheKey) query(edns bool) *dns.Msg {
	query := &dns.Msg{
		MsgHdr: dns.MsgHdr{
			Id: dns.Id(), RecursionDesired: k.rd, CheckingDisabled: k.cd,
			// This asks whether it was proved, without the proof (RFC 6840, section 5.7).
			AuthenticatedData: true,
		},
		Question: []dns.Question{{Name: k.name, Qtype: k.qtype, Qclass: k.class}},
	}
	if edns {
		query.SetEdns0(ednsSize, k.do)
	}
	return query
}

// cache remembers answers, the least wanted of which leave first. Safe for
// concurrent use.
type cache struct {
	mu    sync.Mutex // guards the fields below
	lru   *simplelru.LRU[cacheKey, *cacheEntry]
	bytes int
}

// cacheEntry is an answer in the cache.
type cacheEntry struct {
	msg  *dns.Msg // is shared and so never changed
	why  dns.EDNS0_EDE
	size int
	said time.Time
	// expires is when upstreams are to be asked again, and until when it may be told
	// if they do not answer.
	expires, until time.Time
	// retry is when they are asked again that did not answer.
	retry time.Time
}

func newCache() *cache {
	c := new(cache)
	lru, err := simplelru.NewLRU(cacheEntries, func(_ cacheKey, entry *cacheEntry) { c.bytes -= entry.size })
	if err != nil {
		panic(err) // the size is a constant
	}
	c.lru = lru
	return c
}

// get returns what is known of a question.
func (c *cache) get(key cacheKey) (outcome, bool) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	entry, ok := c.lru.Get(key)
	switch {
	case !ok:
	case now.Before(entry.expires):
		return outcome{msg: entry.msg, age: now.Sub(entry.said), why: entry.why}, true
	case !now.Before(entry.until):
		c.lru.Remove(key)
	case now.Before(entry.retry):
		return outcome{msg: entry.msg, stale: true}, true
	}
	return outcome{}, false
}

// put remembers an answer for as long as it says, and takes it over.
func (c *cache) put(key cacheKey, answer *dns.Msg) outcome {
	ttl, stale := time.Duration(prepare(key, answer))*time.Second, staleFor
	if answer.Truncated {
		ttl, stale = cutFor, 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(key)
	if ttl > 0 {
		now := time.Now()
		c.add(key, &cacheEntry{msg: answer, said: now, expires: now.Add(ttl), until: now.Add(ttl + stale)})
	}
	return outcome{msg: answer}
}

// fail remembers that no upstream answers, and why, and returns what is told instead.
func (c *cache) fail(key cacheKey, why dns.EDNS0_EDE) outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if entry, ok := c.lru.Get(key); ok && now.Before(entry.until) {
		entry.retry = now.Add(failureFor)
		return outcome{msg: entry.msg, stale: true}
	}
	c.lru.Remove(key)
	failure := failed(dns.RcodeServerFailure, why)
	end := now.Add(failureFor)
	c.add(key, &cacheEntry{msg: failure.msg, why: why, said: now, expires: end, until: end})
	return failure
}

// add makes room for what is new. Call with mu held.
func (c *cache) add(key cacheKey, entry *cacheEntry) {
	entry.size = entryOverhead + len(key.name) + recordsSize(entry.msg)
	c.bytes += entry.size
	c.lru.Add(key, entry)
	for c.bytes > cacheBytes {
		c.lru.RemoveOldest()
	}
}

func (c *cache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lru.Len()
}
