package main

import (
	"math"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// metricLine is one sample of Prometheus' text format, as far as we use it.
var metricLine = regexp.MustCompile(`^([a-z_]+(?:\{(?:[a-z_]+="(?:[^"\\]|\\.)*",?)*\})?) ([-+0-9.eEInfNa]+)$`)

// parseMetrics reads a whole page; what it cannot read is an error.
func parseMetrics(t *testing.T, page string) map[string]float64 {
	t.Helper()
	samples, typed := map[string]float64{}, map[string]bool{}
	for line := range strings.Lines(page) {
		line = strings.TrimSuffix(line, "\n")
		if name, found := strings.CutPrefix(line, "# TYPE "); found {
			typed[strings.Fields(name)[0]] = true
			continue
		}
		if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		match := metricLine.FindStringSubmatch(line)
		if match == nil {
			t.Errorf("not a sample: %q", line)
			continue
		}
		value, err := strconv.ParseFloat(match[2], 64)
		if _, twice := samples[match[1]]; err != nil || twice {
			t.Errorf("sample %q: there twice: %v, %v", line, twice, err)
		}
		family, _, _ := strings.Cut(match[1], "{")
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base := strings.TrimSuffix(family, suffix); typed[base] {
				family = base
			}
		}
		if !typed[family] {
			t.Errorf("sample %q has no type", line)
		}
		samples[match[1]] = value
	}
	return samples
}

// checkMetrics reads the metrics of a node with two sandboxes and one peer,
// node-b, which it has talked to.
func checkMetrics(t *testing.T, n *node) {
	t.Helper()
	status, page := n.get("/metrics")
	if status != http.StatusOK {
		t.Fatalf("metrics: %d %s", status, page)
	}
	samples := parseMetrics(t, page)
	for name, want := range map[string]float64{
		"overlayd_ready":                                          1,
		"overlayd_node_set_in_force":                              1,
		"overlayd_scrape_incomplete":                              0,
		"overlayd_late_detaches_total":                            0,
		"overlayd_device_mtu_bytes":                               1440,
		"overlayd_peers":                                          1,
		"overlayd_nodes_refused":                                  0,
		`overlayd_attachments{segment="default"}`:                 2,
		`overlayd_pool_addresses{slice="10.20.1.0/24"}`:           253,
		`overlayd_pool_addresses_used{slice="10.20.1.0/24"}`:      2,
		`overlayd_pool_addresses_used{slice="fd20:0:0:1::/64"}`:   2,
		`overlayd_pool_addresses_resting{slice="10.20.1.0/24"}`:   0,
		`overlayd_firewall_dropped_packets_total{reason="rogue"}`: 0,
		`overlayd_firewall_dropped_bytes_total{reason="spoofed"}`: 0,

		`overlayd_request_duration_seconds_count{op="attach_container"}`: 2,
	} {
		if got, found := samples[name]; !found || got != want {
			t.Errorf("%s is %v (there: %v), want %v", name, got, found, want)
		}
	}
	for _, name := range []string{
		`overlayd_peer_receive_bytes_total{node="node-b"}`, `overlayd_peer_transmit_bytes_total{node="node-b"}`,
		"process_resident_memory_bytes", "go_goroutines",
	} {
		if !(samples[name] > 0) {
			t.Errorf("%s is %v", name, samples[name])
		}
	}
	age, found := samples[`overlayd_peer_last_handshake_age_seconds{node="node-b"}`]
	if !found || math.IsInf(age, 1) {
		t.Errorf("handshake age of node-b is %v (there: %v)", age, found)
	}
	for _, text := range []string{`overlayd_build_info{go_version="`, `overlayd_device_info{backend="`} {
		if !strings.Contains(page, text) {
			t.Errorf("no metric %s", text)
		}
	}
}
