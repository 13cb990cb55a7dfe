package dns

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/miekg/dns"
)

// Exchanger finds the answers to questions that are not about the zone. It always
// returns an answer, at worst SERVFAIL, in bounded time, and does not change the
// question.
type Exchanger interface {
	Exchange(ctx context.Context, question *dns.Msg) *dns.Msg
}

// ServerConfig says what is fixed for a Server.
type ServerConfig struct {
	Zone *Zone
	// Forward is asked what the zone does not know; nil refuses such questions.
	Forward Exchanger
	// RateLimit is how many questions a client may ask in a second, on average; 0 is no limit.
	RateLimit int
	// Log receives what an operator should know.
	Log *slog.Logger
}

// Listener is an address that a Server is to listen on, by UDP and TCP.
type Listener struct {
	Addr netip.AddrPort
	// Fault is why it does not, nil if it does.
	Fault error
}

// Server answers on the overlay's addresses. Make one with NewServer.
type Server struct{ config ServerConfig }

// NewServer returns a server that listens nowhere yet.
func NewServer(config ServerConfig) *Server { return &Server{config} }

// SetAddresses says where to listen. A zone in an address names an interface.
// What cannot be listened on now is tried again and again.
func (s *Server) SetAddresses(addrs []netip.AddrPort) {}

// SetClients says whose questions are answered; those of all others are dropped.
func (s *Server) SetClients(prefixes []netip.Prefix) {}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Listeners are those wanted, in order.
func (s *Server) Listeners() []Listener { return nil }

// Stats is what was counted since the start.
func (s *Server) Stats() ServerStats { return ServerStats{} }

// QueryKind is what queries are counted by.
type QueryKind struct {
	// Proto is "udp" or "tcp", Type as "A" or "other", Rcode as "NOERROR".
	Proto, Type, Rcode string
	// Forwarded tells whether others were asked, or the cache.
	Forwarded bool
}

// ServerStats is what a Server counted.
type ServerStats struct {
	Queries map[QueryKind]uint64
	// Dropped are packets that were not answered, by reason: "client", "rate",
	// "malformed", "busy".
	Dropped map[string]uint64
	// LatencyBounds are in seconds; LatencyCounts has the number of answers within each, and one more
	// for those above the last, not added up. LatencySum is in seconds.
	LatencyBounds []float64
	LatencyCounts []uint64
	LatencySum    float64
}
