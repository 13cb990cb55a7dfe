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

// natSamples are the metrics of ways through NATs.
func natSamples(t *testing.T, status dataplane.NATStatus) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(newNATCollector(func() dataplane.NATStatus { return status }))
	answer := httptest.NewRecorder()
	newMux(registry, func() []string { return nil }).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	if answer.Code != http.StatusOK {
		t.Fatalf("metrics: %d %s", answer.Code, answer.Body)
	}
	samples := map[string]float64{}
	for name, value := range parseMetrics(t, answer.Body.String()) {
		if strings.HasPrefix(name, namespace+"_nat_") {
			samples[name] = value
		}
	}
	return samples
}

func TestNATMetrics(t *testing.T) {
	want := map[string]float64{
		`overlayd_nat_mapping_info{mapping="endpoint-independent"}`: 1,
		`overlayd_nat_candidates{kind="host"}`:                      1,
		`overlayd_nat_candidates{kind="server_reflexive"}`:          1,
		`overlayd_nat_candidates{kind="relay"}`:                     1,
		`overlayd_nat_peers{path="direct"}`:                         0,
		`overlayd_nat_peers{path="hole-punched"}`:                   1,
		`overlayd_nat_peers{path="relayed"}`:                        0,
		`overlayd_nat_peers{path="none"}`:                           1,
		`overlayd_nat_peer_round_trip_seconds{node="node-b"}`:       0.023,
		`overlayd_nat_checks_sent_total`:                            40,
		`overlayd_nat_checks_answered_total`:                        30,
		`overlayd_nat_checks_refused_total`:                         2,
		`overlayd_nat_checks_dropped_total`:                         1,
		`overlayd_nat_relay_sessions`:                               3,
		`overlayd_nat_relay_bytes_total`:                            5 << 20,
		`overlayd_nat_relay_refused_total{reason="expired"}`:        3,
		`overlayd_nat_relay_refused_total{reason="stranger"}`:       1,
	}
	if diff := cmp.Diff(want, natSamples(t, knownWays())); diff != "" {
		t.Errorf("samples (-want +got):\n%s", diff)
	}
	if got := natSamples(t, dataplane.NATStatus{}); len(got) > 0 {
		t.Errorf("while it is off: %v", got)
	}
	if got := natSamples(t, dataplane.NATStatus{Enabled: true}); got[`overlayd_nat_mapping_info{mapping="unknown"}`] != 1 || len(got) != 12 {
		t.Errorf("with nothing known: %v", got)
	}
}
