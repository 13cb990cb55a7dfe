package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestHealthz(t *testing.T) {
	var reasons []string
	mux := newMux(prometheus.NewRegistry(), func() []string { return reasons })
	tests := []struct {
		reasons []string
		status  int
		body    string
	}{
		{nil, http.StatusOK, "ok\n"},
		{[]string{"no slice", "no device"}, http.StatusServiceUnavailable, "no slice\nno device\n"},
	}
	for _, tt := range tests {
		reasons = tt.reasons
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/healthz", nil))
		if answer.Code != tt.status || answer.Body.String() != tt.body {
			t.Errorf("waiting for %v: status %d, body %q", tt.reasons, answer.Code, answer.Body)
		}
		alive := httptest.NewRecorder()
		mux.ServeHTTP(alive, httptest.NewRequest(http.MethodGet, "/livez", nil))
		if alive.Code != http.StatusOK {
			t.Errorf("waiting for %v: not alive, status %d: a restart would not help", tt.reasons, alive.Code)
		}
	}
	answer := httptest.NewRecorder()
	mux.ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/healthz", nil))
	if answer.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST answers %d", answer.Code)
	}
}

func TestServeHTTPEndsWithItsContext(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	// Only this test of this package takes a port of the lab's loopback.
	address := netip.MustParseAddrPort("127.0.0.1:9551")
	listener, err := listenMetrics(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := listenMetrics(t.Context(), address); err == nil || !strings.HasPrefix(err.Error(), "metricsAddress: ") {
		t.Errorf("second listener %v, error %v", second, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan error, 1)
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	go func() { served <- serveHTTP(ctx, listener, handler, slog.New(slog.DiscardHandler)) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	if err != nil || string(body) != "hello" {
		t.Errorf("answer %q, %v", body, err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestNoMetricsAddressServesNothing(t *testing.T) {
	listener, err := listenMetrics(t.Context(), netip.AddrPort{})
	if listener != nil || err != nil {
		t.Fatalf("listener %v, error %v", listener, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := serveHTTP(ctx, nil, nil, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
}
