package shim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Handler does what requests ask. It is called concurrently, also for one
// connection.
//
// The context ends when the connection does, when the request took
// ServeOptions.RequestTimeout, or some time after Serve's own. A nil Response
// without an error means *OK. An *Error found in the error's chain is answered
// as it is; the end of a context as CodeUnavailable, retryable; anything else
// as CodeInternal with the error's text.
type Handler interface {
	Handle(ctx context.Context, req Request) (Response, error)
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, req Request) (Response, error)

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, req Request) (Response, error) { return f(ctx, req) }

// ServeOptions are the limits of Serve. Zero values mean the defaults.
type ServeOptions struct {
	Log    *slog.Logger // none: nothing is logged
	Events *Broadcaster // none: Subscribe is unsupported
	BootID string       // for Hello; none: a random one

	// MaxConns is how many connections are held, by default 2,048. One more
	// closes that which has been idle longest, before all others those that
	// asked nothing within FrameTimeout; if none is idle, the new one is
	// refused. One whose frame or request is under way is not idle.
	MaxConns int
	// MaxRequests is how many requests of one connection are handled at
	// once, by default 64. More are left unread.
	MaxRequests int

	RequestTimeout time.Duration // for handling a request, by default a minute
	FrameTimeout   time.Duration // for a frame to arrive once begun, by default 10 s
	WriteTimeout   time.Duration // for a frame to be taken by the peer, by default 10 s
	DrainTimeout   time.Duration // for requests begun before the end of Serve's context, by default 5 s
}

// The defaults of ServeOptions.
const (
	defaultMaxConns       = 2048
	defaultMaxRequests    = 64
	defaultRequestTimeout = time.Minute
	defaultFrameTimeout   = 10 * time.Second
	defaultWriteTimeout   = 10 * time.Second
	defaultDrainTimeout   = 5 * time.Second
)

func (o ServeOptions) withDefaults() ServeOptions {
	o.MaxConns = cmp.Or(o.MaxConns, defaultMaxConns)
	o.MaxRequests = cmp.Or(o.MaxRequests, defaultMaxRequests)
	o.RequestTimeout = cmp.Or(o.RequestTimeout, defaultRequestTimeout)
	o.FrameTimeout = cmp.Or(o.FrameTimeout, defaultFrameTimeout)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, defaultWriteTimeout)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, defaultDrainTimeout)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.BootID == "" {
		o.BootID = fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64())
	}
	return o
}

// Serve answers requests on the connections of l with h until ctx ends, and
// closes l. Requests of one connection are handled side by side, and answered
// as they finish. An idle connection may stay for ever, for a ZLayer agent
// keeps its one; a peer that stalls in the middle of a frame loses it. What is
// no frame, or no JSON, is answered with an error of number 0 and costs the
// connection; an unknown operation, a malformed request or a panic of h costs
// only the request.
//
// At the end nothing more is read, requests begun get DrainTimeout to finish,
// then their contexts end; Serve returns when all have. It returns nil if ctx
// ended, else what broke l.
func Serve(ctx context.Context, l net.Listener, h Handler, opt ServeOptions) error {
	s := &server{handler: h, opt: opt.withDefaults(), conns: make(map[*serverConn]struct{})}
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = l.Close()
	})
	err := s.accept(ctx, l)
	if stop() {
		_ = l.Close()
	} else {
		<-closed
	}
	s.drain(cancel)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("accept connections: %w", err)
}

// server is one run of Serve.
type server struct {
	handler Handler
	opt     ServeOptions
	ctx     context.Context // of all requests; outlives Serve's by DrainTimeout
	running sync.WaitGroup  // connections

	mu    sync.Mutex // guards conns
	conns map[*serverConn]struct{}
}

// accept takes connections until the listener fails for good.
func (s *server) accept(ctx context.Context, l net.Listener) error {
	const firstPause, lastPause = 5 * time.Millisecond, time.Second
	pause := firstPause
	for {
		conn, err := l.Accept()
		if err == nil {
			pause = firstPause
			s.admit(conn)
			continue
		}
		if ctx.Err() != nil || !passing(err) {
			return err
		}
		// Descriptors ran out: an idle connection holds one.
		s.opt.Log.Warn("accept connection", "err", err)
		s.evict()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// passing tells whether an error of accept may not come again.
func passing(err error) bool {
	return slices.ContainsFunc(shortages(), func(code syscall.Errno) bool { return errors.Is(err, code) })
}

// admit starts to serve a connection, or refuses it.
func (s *server) admit(conn net.Conn) {
	c := newServerConn(s, conn)
	s.mu.Lock()
	full := len(s.conns) >= s.opt.MaxConns
	s.mu.Unlock()
	if full && !s.evict() {
		c.refuse(&Error{Code: CodeUnavailable, Message: "too many connections, all in use", Retryable: true})
		c.end()
		return
	}
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	s.running.Go(c.serve)
}

// forget takes a connection out of the count.
func (s *server) forget(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// evict ends the connection that has been idle longest, if one is idle.
func (s *server) evict() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var victim *serverConn
	var most idleness
	for c := range s.conns {
		if idle, ok := c.idle(); ok && (victim == nil || idle.before(most)) {
			victim, most = c, idle
		}
	}
	if victim == nil {
		return false
	}
	s.opt.Log.Warn("close idle connection", "limit", s.opt.MaxConns)
	delete(s.conns, victim)
	victim.end()
	return true
}

// drain stops reading everywhere and waits for the requests begun.
func (s *server) drain(cancel context.CancelFunc) {
	s.mu.Lock()
	for c := range s.conns {
		c.stopReading()
	}
	s.mu.Unlock()
	timer := time.AfterFunc(s.opt.DrainTimeout, cancel)
	defer timer.Stop()
	s.running.Wait()
}
