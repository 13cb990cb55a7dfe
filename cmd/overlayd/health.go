package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// scrapeTimeout bounds one answer on the metrics address.
	scrapeTimeout = 15 * time.Second
	// idleTimeout is longer than Prometheus' usual interval of a minute.
	idleTimeout = 2 * time.Minute
	// maxScrapes bounds how many answers are made at a time.
	maxScrapes = 4
	// shutdownTimeout bounds the wait for answers that are being written.
	shutdownTimeout = 2 * time.Second
)

// newMux serves /healthz, /livez and /metrics. waiting lists why the node is
// not ready; /livez says only that the process answers.
func newMux(registry *prometheus.Registry, waiting func() []string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		reasons := waiting()
		if len(reasons) == 0 {
			_, _ = io.WriteString(w, "ok\n") // nobody is left to tell of an error
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, strings.Join(reasons, "\n")+"\n")
	})
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n") // as above
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout,
	}))
	return mux
}

// listenMetrics opens the address for newMux; the zero address is no listener.
func listenMetrics(ctx context.Context, address netip.AddrPort) (net.Listener, error) {
	if !address.IsValid() {
		return nil, nil
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address.String())
	if err != nil {
		return nil, fmt.Errorf("metricsAddress: %w", err)
	}
	return listener, nil
}

// serveHTTP serves until ctx ends. A nil listener serves nothing.
func serveHTTP(ctx context.Context, listener net.Listener, handler http.Handler, log *slog.Logger) error {
	if listener == nil {
		<-ctx.Done()
		return nil
	}
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: scrapeTimeout,
		ReadTimeout:       scrapeTimeout,
		WriteTimeout:      2 * scrapeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve metrics: %w", err)
	case <-ctx.Done():
	}
	// The parent context has ended; what is being written may still finish.
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := server.Shutdown(closing)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	if served := <-served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("end metrics: %w", err)
	}
	return nil
}
