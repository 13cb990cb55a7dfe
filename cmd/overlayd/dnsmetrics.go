package main

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
	"github.com/zlayer/zlayer-cni/pkg/dataplane/dns"
)

// dnsCollector tells how names are served, as it is at the scrape. While they are
// not served it has nothing to tell.
type dnsCollector struct {
	status func() dataplane.DNSStatus
	descs  dnsDescs
}

// dnsDescs describes the metrics of dnsCollector.
type dnsDescs struct {
	queries, duration, dropped      *prometheus.Desc
	hits, misses, entries, failures *prometheus.Desc
	names, listeners, listenersUp   *prometheus.Desc
	waiting, nodesDown              *prometheus.Desc
}

func newDNSCollector(status func() dataplane.DNSStatus) *dnsCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "dns", name), help, labels, nil)
	}
	return &dnsCollector{status: status, descs: dnsDescs{
		queries:  desc("queries_total", "Questions that were answered, by protocol, type, result and whether others, or the cache, were asked.", "proto", "type", "rcode", "forwarded"),
		duration: desc("query_duration_seconds", "Time to answer a question."),
		dropped:  desc("dropped_total", "Packets that were not answered, by reason: client (not of the overlay), rate, malformed, busy, or panic, which are answered SERVFAIL.", "reason"),
		hits:     desc("cache_hits_total", "Forwarded questions that the cache answered."),
		misses:   desc("cache_misses_total", "Forwarded questions that the cache did not answer."),
		entries:  desc("cache_entries", "Answers in the cache."),
		failures: desc("upstream_failures_total", "Tries to ask an upstream that had no good answer."),
		names:    desc("names", "Names that are served."),
		// The addresses come and go with services: a series for each would never end.
		listeners:   desc("listeners", "Addresses with ports at which names are to be served."),
		listenersUp: desc("listeners_up", "Addresses with ports at which names are served; of the others overlayd status says why not."),
		waiting:     desc("source_waiting", "1 for a source of names that has told nothing yet: no name is said not to exist until then.", "source"),
		nodesDown:   desc("nodes_down", "Nodes whose addresses are left out of answers, since they do not answer."),
	}}
}

// Describe implements prometheus.Collector.
func (c *dnsCollector) Describe(into chan<- *prometheus.Desc) {
	d := c.descs
	for _, desc := range []*prometheus.Desc{
		d.queries, d.duration, d.dropped, d.hits, d.misses, d.entries, d.failures, d.names, d.listeners, d.listenersUp, d.waiting, d.nodesDown,
	} {
		into <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *dnsCollector) Collect(into chan<- prometheus.Metric) {
	status := c.status()
	if !status.Enabled {
		return
	}
	s := sender{into}
	c.collectServer(s, status.Server)
	s.counter(c.descs.hits, float64(status.Forward.Hits))
	s.counter(c.descs.misses, float64(status.Forward.Misses))
	s.gauge(c.descs.entries, float64(status.Forward.Entries))
	s.counter(c.descs.failures, float64(status.Forward.Failures))
	s.gauge(c.descs.names, float64(status.Names))
	up := 0
	for _, listener := range status.Listeners {
		if listener.Fault == nil {
			up++
		}
	}
	s.gauge(c.descs.listeners, float64(len(status.Listeners)))
	s.gauge(c.descs.listenersUp, float64(up))
	for _, source := range status.Waiting {
		s.gauge(c.descs.waiting, 1, source)
	}
	s.gauge(c.descs.nodesDown, float64(len(status.Down)))
}

func (c *dnsCollector) collectServer(s sender, stats dns.ServerStats) {
	for kind, n := range stats.Queries {
		s.counter(c.descs.queries, float64(n), kind.Proto, kind.Type, kind.Rcode, strconv.FormatBool(kind.Forwarded))
	}
	for reason, n := range stats.Dropped {
		s.counter(c.descs.dropped, float64(n), reason)
	}
	// Prometheus adds up: a bucket has all that is within its bound.
	var within, all uint64
	buckets := make(map[float64]uint64, len(stats.LatencyBounds))
	for i, n := range stats.LatencyCounts {
		all += n
		if i < len(stats.LatencyBounds) {
			within += n
			buckets[stats.LatencyBounds[i]] = within
		}
	}
	s.into <- prometheus.MustNewConstHistogram(c.descs.duration, all, stats.LatencySum, buckets)
}
