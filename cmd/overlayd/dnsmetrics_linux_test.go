package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/zlayer/zlayer-cni/pkg/dataplane"
)

// dnsSamples are the metrics of names.
func dnsSamples(t *testing.T, status dataplane.DNSStatus) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(newDNSCollector(func() dataplane.DNSStatus { return status }))
	answer := httptest.NewRecorder()
	newMux(registry, func() []string { return nil }).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	if answer.Code != http.StatusOK {
		t.Fatalf("metrics: %d %s", answer.Code, answer.Body)
	}
	samples := map[string]float64{}
	for name, value := range parseMetrics(t, answer.Body.String()) {
		if strings.HasPrefix(name, namespace+"_dns_") {
			samples[name] = value
		}
	}
	return samples
}

func TestDNSMetrics(t *testing.T) {
	want := map[string]float64{
		`overlayd_dns_queries_total{forwarded="false",proto="udp",rcode="NOERROR",type="A"}`:     40,
		`overlayd_dns_queries_total{forwarded="true",proto="tcp",rcode="SERVFAIL",type="other"}`: 2,
		`overlayd_dns_query_duration_seconds_bucket{le="0.001"}`:                                 39,
		`overlayd_dns_query_duration_seconds_bucket{le="0.1"}`:                                   41,
		`overlayd_dns_query_duration_seconds_bucket{le="+Inf"}`:                                  42,
		`overlayd_dns_query_duration_seconds_count`:                                              42,
		`overlayd_dns_query_duration_seconds_sum`:                                                1.5,
		`overlayd_dns_dropped_total{reason="client"}`:                                            3,
		`overlayd_dns_dropped_total{reason="rate"}`:                                              0,
		`overlayd_dns_cache_hits_total`:                                                          7,
		`overlayd_dns_cache_misses_total`:                                                        5,
		`overlayd_dns_cache_entries`:                                                             4,
		`overlayd_dns_upstream_failures_total`:                                                   1,
		`overlayd_dns_names`:                                                                     12,
		`overlayd_dns_listeners`:                                                                 8,
		`overlayd_dns_listeners_up`:                                                              7,
		`overlayd_dns_source_waiting{source="guests"}`:                                           1,
		`overlayd_dns_source_waiting{source="pods"}`:                                             1,
		`overlayd_dns_nodes_down`:                                                                2,
	}
	if diff := cmp.Diff(want, dnsSamples(t, servedNames())); diff != "" {
		t.Errorf("samples (-want +got):\n%s", diff)
	}
	if got := dnsSamples(t, dataplane.DNSStatus{}); len(got) > 0 {
		t.Errorf("while it is off: %v", got)
	}
	if got := dnsSamples(t, dataplane.DNSStatus{Enabled: true}); len(got) != 11 {
		t.Errorf("with nothing to tell: %v", got)
	}
}
