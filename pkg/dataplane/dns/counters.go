package dns

import (
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// protocol is what a question came by.
type protocol int

const (
	udp protocol = iota
	tcp
	protocols
)

func (p protocol) String() string { return [protocols]string{"udp", "tcp"}[p] }

// dropReason is why a packet was not answered.
type dropReason int

const (
	dropClient dropReason = iota
	dropRate
	dropMalformed
	dropBusy
	dropPanic
	dropReasons
)

func (r dropReason) String() string {
	return [dropReasons]string{"client", "rate", "malformed", "busy", "panic"}[r]
}

const (
	// otherIndex counts what has no counter of its own.
	otherIndex = 0

	countedTypes  = 14
	countedRcodes = 8
)

// typeAt and rcodeAt say what the counters count, at the same indexes as typeIndex and rcodeIndex.
func typeAt(i int) string {
	types := [countedTypes]uint16{0, dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeSOA, dns.TypeNS, dns.TypeTXT, dns.TypeSRV,
		dns.TypeMX, dns.TypeCNAME, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeANY, dns.TypeDS}
	if i == otherIndex {
		return "other"
	}
	return dns.TypeToString[types[i]]
}

func typeIndex(t uint16) int {
	switch t {
	case dns.TypeA:
		return 1
	case dns.TypeAAAA:
		return 2
	case dns.TypePTR:
		return 3
	case dns.TypeSOA:
		return 4
	case dns.TypeNS:
		return 5
	case dns.TypeTXT:
		return 6
	case dns.TypeSRV:
		return 7
	case dns.TypeMX:
		return 8
	case dns.TypeCNAME:
		return 9
	case dns.TypeHTTPS:
		return 10
	case dns.TypeSVCB:
		return 11
	case dns.TypeANY:
		return 12
	case dns.TypeDS:
		return 13
	}
	return otherIndex
}

func rcodeAt(i int) string {
	switch i {
	case otherIndex:
		return "other"
	case countedRcodes - 1:
		return "BADVERS"
	}
	return dns.RcodeToString[i-1]
}

func rcodeIndex(rcode int) int {
	switch {
	case rcode >= dns.RcodeSuccess && rcode <= dns.RcodeRefused:
		return rcode + 1
	case rcode == dns.RcodeBadVers:
		return countedRcodes - 1
	}
	return otherIndex
}

// latencyBounds are the upper ends of the histogram's buckets.
func latencyBounds() [latencyBuckets - 1]time.Duration {
	return [latencyBuckets - 1]time.Duration{
		10 * time.Microsecond, 25 * time.Microsecond, 50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
		time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
		100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
		time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
	}
}

const latencyBuckets = 20

// counters are written by few goroutines, so that these do not wait for one
// another, and added up when they are read.
type counters struct {
	queries [protocols][countedTypes][countedRcodes][2]atomic.Uint64
	dropped [dropReasons]atomic.Uint64
	latency [latencyBuckets]atomic.Uint64
	nanos   atomic.Int64
	_       [64]byte // keeps the next one's first counter out of this one's cache line
}

func (c *counters) drop(reason dropReason) { c.dropped[reason].Add(1) }

func (c *counters) answered(proto protocol, qtype uint16, rcode int, forwarded bool, took time.Duration) {
	others := 0
	if forwarded {
		others = 1
	}
	c.queries[proto][typeIndex(qtype)][rcodeIndex(rcode)][others].Add(1)
	bounds, i := latencyBounds(), 0
	for i < len(bounds) && took > bounds[i] {
		i++
	}
	c.latency[i].Add(1)
	c.nanos.Add(int64(took))
}

// total adds counters up.
func total(all []counters) ServerStats {
	bounds := latencyBounds()
	stats := ServerStats{Queries: map[QueryKind]uint64{}, Dropped: map[string]uint64{}, LatencyCounts: make([]uint64, latencyBuckets)}
	for _, bound := range bounds {
		stats.LatencyBounds = append(stats.LatencyBounds, bound.Seconds())
	}
	for i := range all {
		all[i].addTo(&stats)
	}
	return stats
}

func (c *counters) addTo(stats *ServerStats) {
	for proto := range protocols {
		for t := range countedTypes {
			for rcode := range countedRcodes {
				for forwarded := range 2 {
					if n := c.queries[proto][t][rcode][forwarded].Load(); n > 0 {
						stats.Queries[QueryKind{proto.String(), typeAt(t), rcodeAt(rcode), forwarded == 1}] += n
					}
				}
			}
		}
	}
	for reason := range dropReasons {
		stats.Dropped[reason.String()] += c.dropped[reason].Load()
	}
	for i := range c.latency {
		stats.LatencyCounts[i] += c.latency[i].Load()
	}
	stats.LatencySum += time.Duration(c.nanos.Load()).Seconds()
}
