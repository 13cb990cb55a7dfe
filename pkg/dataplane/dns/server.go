package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Exchanger finds the answers to questions that are not about the zone. It always
// returns an answer, at worst SERVFAIL, in bounded time, and does not change the
// question. Unless the whole is wanted, an answer that has to be fetched by TCP comes
// truncated, without records.
type Exchanger interface {
	Exchange(ctx context.Context, question *dns.Msg, whole bool) *dns.Msg
	// Known is what Exchange would answer without asking anybody, nil if it had to ask.
	Known(question *dns.Msg, whole bool) *dns.Msg
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

const (
	// maxForwards is how many questions may wait for other servers, forwardsEach
	// how many of one client, so that none can use them all up.
	maxForwards  = 1024
	forwardsEach = 128
)

// authority is what a Server needs of a Zone.
type authority interface {
	Answer(question dns.Question) (reply Reply, ours bool)
	Lookup(name []byte, ipv6 bool, into []netip.Addr) (addrs []netip.Addr, ttl uint32, found bool)
}

// Server answers on the overlay's addresses. Make one with NewServer. Safe for
// concurrent use; Run is to be called once.
type Server struct {
	config   ServerConfig
	zone     authority
	limits   *limiter
	forwards *share
	counters []counters
	clients  atomic.Pointer[[]netip.Prefix]
	streams  *streams
	kick     chan struct{} // SetAddresses has something new for Run

	mu     sync.Mutex // guards what follows
	wanted []netip.AddrPort
	faults map[netip.AddrPort]error
}

// NewServer returns a server that listens nowhere yet.
func NewServer(config ServerConfig) *Server {
	s := &Server{
		config:   config,
		zone:     config.Zone,
		limits:   newLimiter(config.RateLimit),
		forwards: newShare(maxForwards, forwardsEach),
		counters: make([]counters, runtime.GOMAXPROCS(0)),
		streams:  newStreams(),
		kick:     make(chan struct{}, 1),
		faults:   map[netip.AddrPort]error{},
	}
	s.clients.Store(&[]netip.Prefix{})
	return s
}

// SetAddresses says where to listen. A zone in an address names an interface.
// What cannot be listened on now is tried again and again.
func (s *Server) SetAddresses(addrs []netip.AddrPort) {
	wanted := slices.Clone(addrs)
	slices.SortFunc(wanted, netip.AddrPort.Compare)
	wanted = slices.Compact(wanted)
	s.mu.Lock()
	s.wanted = wanted
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// SetClients says whose questions are answered; those of all others are dropped.
func (s *Server) SetClients(prefixes []netip.Prefix) {
	clients := slices.Clone(prefixes)
	s.clients.Store(&clients)
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	sockets := sockets{server: s, open: map[endpoint]*socket{}}
	defer sockets.closeAll()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		sockets.reconcile(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-s.kick:
		case <-tick.C:
		}
	}
}

// Listeners are those wanted, in order.
func (s *Server) Listeners() []Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	listeners := make([]Listener, len(s.wanted))
	for i, addr := range s.wanted {
		fault, tried := s.faults[addr]
		if !tried {
			fault = ErrNotTried
		}
		listeners[i] = Listener{Addr: addr, Fault: fault}
	}
	return listeners
}

// Stats is what was counted since the start.
func (s *Server) Stats() ServerStats { return total(s.counters) }

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
	// "malformed", "busy"; and "panic", whose answer is SERVFAIL.
	Dropped map[string]uint64
	// LatencyBounds are in seconds; LatencyCounts has the number of answers within each, and one more
	// for those above the last, not added up. LatencySum is in seconds.
	LatencyBounds []float64
	LatencyCounts []uint64
	LatencySum    float64
}
