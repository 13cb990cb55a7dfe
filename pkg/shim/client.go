package shim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// DialOptions say how patient a Client is. Zero values mean the defaults.
type DialOptions struct {
	// Attempts is how often a connection is tried, by default 6: with the
	// pauses between, 100 ms doubling to 1 s, that is 2.5 s. A named pipe whose
	// daemon is busy is waited for as long, even with one attempt.
	Attempts int
	// CallTimeout bounds calls whose context has no deadline, by default 30 s.
	CallTimeout time.Duration
}

const (
	defaultAttempts    = 6
	defaultCallTimeout = 30 * time.Second
	firstDialPause     = 100 * time.Millisecond
	lastDialPause      = time.Second
)

// Client asks one overlayd. It holds one connection, over which calls go side
// by side, and makes a new one when the old was lost. Safe for concurrent use.
type Client struct {
	path     string
	opt      DialOptions
	nextID   atomic.Uint64
	dialing  chan struct{} // held by the one who dials, or changes greeting
	greeting []Request     // said first on every connection; guarded by dialing
	closed   chan struct{}
	readers  sync.WaitGroup

	mu   sync.Mutex // guards conn, and closed while it is being closed
	conn *clientConn
}

// Dial connects to the daemon's socket at path. It returns ErrUnreachable if
// no attempt succeeds. Close the Client when done.
func Dial(ctx context.Context, path string, opt DialOptions) (*Client, error) {
	c := newClient(path, opt)
	if _, err := c.connection(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// newClient returns a Client that connects when it is first used.
func newClient(path string, opt DialOptions) *Client {
	opt.Attempts = cmp.Or(max(opt.Attempts, 0), defaultAttempts)
	opt.CallTimeout = cmp.Or(opt.CallTimeout, defaultCallTimeout)
	return &Client{path: path, opt: opt, dialing: make(chan struct{}, 1), closed: make(chan struct{})}
}

// Close ends the connection, and the calls under way with ErrClosed.
func (c *Client) Close() error {
	c.mu.Lock()
	select {
	case <-c.closed:
	default:
		close(c.closed)
	}
	if c.conn != nil {
		c.conn.fail(ErrClosed)
	}
	c.mu.Unlock()
	c.readers.Wait()
	return nil
}

// Call asks and waits for the answer, until ctx ends or DialOptions.CallTimeout.
// The daemon's failures are *Error. ErrUnreachable means that the daemon is
// away; it is tried twice, except that a request which may not be done twice
// (AllocateIP without an owner, Shutdown) is not repeated once it may have
// arrived.
func (c *Client) Call(ctx context.Context, req Request) (Response, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	resp, err := c.try(ctx, req)
	if lost, ok := errors.AsType[*lostError](err); ok && ctx.Err() == nil && (!lost.sent || repeatable(req)) {
		resp, err = c.try(ctx, req)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.Op(), err)
	}
	if failure, ok := resp.(*Error); ok {
		return nil, failure
	}
	return resp, nil
}

// bounded gives a context without a deadline that of DialOptions.CallTimeout.
func (c *Client) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.opt.CallTimeout)
}

// repeatable tells whether asking twice is as good as asking once.
func repeatable(req Request) bool {
	switch req := req.(type) {
	case *AllocateIP:
		return req.Owner != ""
	case *Shutdown:
		return false
	}
	return true
}

// try asks once.
func (c *Client) try(ctx context.Context, req Request) (Response, error) {
	conn, err := c.connection(ctx)
	if err != nil {
		return nil, err
	}
	return conn.roundTrip(ctx, c.nextID.Add(1), req)
}

// connection returns the live connection, made now if there is none.
func (c *Client) connection(ctx context.Context) (*clientConn, error) {
	if conn, err := c.current(); conn != nil || err != nil {
		return conn, err
	}
	if err := c.holdDialing(ctx); err != nil {
		return nil, err
	}
	defer c.releaseDialing()
	if conn, err := c.current(); conn != nil || err != nil {
		return conn, err
	}
	raw, err := dial(ctx, c.path, c.opt.Attempts, c.closed)
	if err != nil {
		return nil, err
	}
	conn, err := c.adopt(raw)
	if err != nil {
		return nil, err
	}
	if err := c.greet(ctx, conn); err != nil {
		conn.fail(err)
		return nil, err
	}
	return conn, nil
}

// adopt makes raw the connection of this Client, which Close then ends.
func (c *Client) adopt(raw net.Conn) (*clientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed() {
		_ = raw.Close()
		return nil, ErrClosed
	}
	c.conn = newClientConn(raw)
	c.readers.Go(c.conn.read)
	return c.conn, nil
}

// holdDialing waits until nobody else holds dialing.
func (c *Client) holdDialing(ctx context.Context) error {
	select {
	case c.dialing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Client) releaseDialing() { <-c.dialing }

// current returns the connection if it is alive and greeted.
func (c *Client) current() (*clientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed() {
		return nil, ErrClosed
	}
	if c.conn != nil && c.conn.greeted.Load() && c.conn.alive() {
		return c.conn, nil
	}
	return nil, nil
}

func (c *Client) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// dial tries to connect, with pauses between the attempts but none after the
// last. What will not change by waiting is not tried again.
func dial(ctx context.Context, path string, attempts int, closed <-chan struct{}) (net.Conn, error) {
	busy := time.Now().Add(max(dialTime(attempts), dialTime(defaultAttempts)))
	pause := firstDialPause
	for attempt := 1; ; attempt++ {
		conn, err := dialOnce(ctx, path, busy)
		if err == nil {
			return conn, nil
		}
		if attempt >= attempts || hopeless(err) {
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-closed:
			timer.Stop()
			return nil, ErrClosed
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("%w: %w: %w", ErrUnreachable, err, ctx.Err())
		}
		pause = min(2*pause, lastDialPause)
	}
}

// dialOnce makes one attempt. Only a pipe that is busy has it wait: until then,
// and never less than a moment. Even a client that tries but once is in no hurry
// there, since behind such a pipe is a daemon.
func dialOnce(ctx context.Context, path string, busy time.Time) (net.Conn, error) {
	if soonest := time.Now().Add(firstDialPause); busy.Before(soonest) {
		busy = soonest
	}
	ctx, cancel := context.WithDeadline(ctx, busy)
	defer cancel()
	return dialSocket(ctx, path)
}

// dialTime is how long so many attempts take that all fail at once.
func dialTime(attempts int) time.Duration {
	var total time.Duration
	pause := firstDialPause
	for range attempts - 1 {
		total += pause
		pause = min(2*pause, lastDialPause)
	}
	return total
}

// hopeless tells whether waiting, or more waiting, will not change a failure to
// connect.
func hopeless(err error) bool {
	return errors.Is(err, errPipeBusy) || errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrInvalid) || errors.Is(err, errors.ErrUnsupported)
}
