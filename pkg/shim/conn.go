package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// serverConn is one connection of Serve.
type serverConn struct {
	s        *server
	conn     net.Conn
	ctx      context.Context // of its requests
	cancel   context.CancelFunc
	slots    chan struct{}  // one for each request being handled
	requests sync.WaitGroup // the same
	stopped  chan struct{}  // closed when nothing more is to be read

	writing sync.Mutex // held while a frame is written

	mu       sync.Mutex // guards what follows
	active   int        // requests being read or handled
	spoke    bool       // it ever asked something
	used     time.Time  // when it last did anything
	stopping bool       // stopped is closed
	queue    *eventQueue
}

func newServerConn(s *server, conn net.Conn) *serverConn {
	c := &serverConn{
		s: s, conn: conn, used: time.Now(),
		slots: make(chan struct{}, s.opt.MaxRequests), stopped: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	return c
}

// idleness orders connections by how little they would be missed. Who never
// asked anything in the time of a frame is missed least; who connected since
// then is about to ask.
type idleness struct {
	mute  bool
	since time.Time
}

func (a idleness) before(b idleness) bool {
	if a.mute != b.mute {
		return a.mute
	}
	return a.since.Before(b.since)
}

// idle tells whether the connection waits for nothing, and since when.
func (c *serverConn) idle() (idleness, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	mute := !c.spoke && time.Since(c.used) >= c.s.opt.FrameTimeout
	return idleness{mute, c.used}, c.active == 0 && c.queue == nil
}

// end closes the connection and the contexts of its requests.
func (c *serverConn) end() {
	c.cancel()
	_ = c.conn.Close()
}

// stopReading makes the reader return, now and ever after.
func (c *serverConn) stopReading() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopping {
		c.stopping = true
		close(c.stopped)
	}
	_ = c.conn.SetReadDeadline(time.Unix(1, 0))
}

// readBy sets the reader's deadline; zero is none.
func (c *serverConn) readBy(deadline time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopping {
		_ = c.conn.SetReadDeadline(deadline)
	}
}

// serve reads requests until the connection ends, and waits for its handlers.
func (c *serverConn) serve() {
	err := c.read()
	c.mu.Lock()
	stopping := c.stopping
	c.mu.Unlock()
	if !stopping {
		c.refuse(refusal(err))
		c.cancel()
	}
	c.requests.Wait()
	c.end() // also ends the pump of events
	if c.queue != nil {
		c.s.opt.Events.unsubscribe(c.queue)
	}
	c.s.forget(c)
}

// refusal returns what to tell a peer whose frame could not be read, if
// anything.
func refusal(err error) *Error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed): // the last is a pipe's
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &Error{Code: CodeInvalid, Message: "frame did not arrive in time"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &Error{Code: CodeInvalid, Message: "frame is truncated"}
	default:
		return &Error{Code: CodeInvalid, Message: err.Error()}
	}
}

// refuse answers what has no number, if failure is anything.
func (c *serverConn) refuse(failure *Error) {
	if failure != nil {
		c.s.opt.Log.Warn("refuse connection", "err", failure.Message)
		c.respond(0, failure)
	}
}

// read hands requests out to goroutines, until one cannot be read.
func (c *serverConn) read() error {
	for {
		env, file, err := c.readEnvelope()
		if err != nil {
			return err
		}
		req, err := decodeRequest(env.Request)
		if err != nil {
			closeFile(file)
			c.count(-1)
			c.respond(env.ID, requestError(err))
			continue
		}
		if netns := netnsOf(req); netns != nil {
			netns.File, file = file, nil
		}
		closeFile(file)
		select {
		case c.slots <- struct{}{}:
		case <-c.ctx.Done():
			closeFile(fileOf(req))
			return net.ErrClosed
		case <-c.stopped:
			closeFile(fileOf(req))
			return net.ErrClosed
		}
		c.requests.Go(func() { c.handle(env.ID, req) })
	}
}

// readEnvelope waits for a frame as long as it takes, then reads it in time. The
// connection counts as active from the frame's first byte.
func (c *serverConn) readEnvelope() (env envelope, file *os.File, err error) {
	defer func() {
		if err != nil {
			closeFile(file)
			file = nil
		}
	}()
	var header [headerLen]byte
	c.readBy(time.Time{})
	n, file, err := readWithFile(c.conn, header[:])
	if err != nil {
		return env, file, err
	}
	c.count(1)
	c.readBy(time.Now().Add(c.s.opt.FrameTimeout))
	if _, err = io.ReadFull(c.conn, header[n:]); err != nil {
		return env, file, midFrame(err)
	}
	length, err := bodyLen(header[:])
	if err != nil {
		return env, file, err
	}
	body, err := readBody(c.conn, length)
	if err != nil {
		return env, file, midFrame(err)
	}
	env, err = decodeEnvelope(body)
	if err == nil && env.Frame != frameRequest {
		err = fmt.Errorf("decode frame: %s where a request belongs", short(env.Frame))
	}
	return env, file, err
}

// midFrame is for an end that comes inside a frame.
func midFrame(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// count changes the number of requests being read or handled.
func (c *serverConn) count(change int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active += change
	c.spoke, c.used = true, time.Now()
}

// handle answers one request. The connection counts as idle from just before
// the answer is written: whoever has read it may rely on that, and one that
// does not read is no loss.
func (c *serverConn) handle(id uint64, req Request) {
	defer func() { <-c.slots }()
	ctx, cancel := context.WithTimeout(c.ctx, c.s.opt.RequestTimeout)
	defer cancel()
	var resp Response
	var queue *eventQueue
	switch req.(type) {
	case *Hello:
		resp = c.s.welcome()
	case *Subscribe:
		resp, queue = c.subscribe(ctx)
	default:
		resp = c.s.ask(ctx, req)
	}
	closeFile(fileOf(req))
	c.count(-1)
	c.respond(id, resp)
	if queue != nil {
		c.s.running.Go(func() { c.pump(queue) })
	}
}

// welcome answers Hello.
func (s *server) welcome() *Welcome {
	capabilities := []string{(&CheckContainer{}).Op(), (&GCContainers{}).Op(), (&LinuxNetns{}).Platform(), (&Ready{}).Op(), (&ListGuests{}).Op(), (&ListDNS{}).Op()}
	if s.opt.Events != nil {
		capabilities = append(capabilities, (&Subscribe{}).Op())
	}
	return &Welcome{ProtocolVersion: ProtocolVersion, Capabilities: capabilities, BootID: s.opt.BootID}
}

// ask calls the handler; its panic becomes an error of this request alone.
func (s *server) ask(ctx context.Context, req Request) (resp Response) {
	defer func() {
		if cause := recover(); cause != nil {
			s.opt.Log.Error("handler panicked", "op", req.Op(), "err", cause, "stack", string(debug.Stack()))
			resp = &Error{Code: CodeInternal, Message: req.Op() + ": internal error, see the daemon's log"}
		}
	}()
	resp, err := s.handler.Handle(ctx, req)
	switch {
	case err != nil:
		return responseError(err)
	case resp == nil:
		return &OK{}
	}
	return resp
}

// requestError is the answer to a request that could not be read.
func requestError(err error) *Error {
	if _, ok := errors.AsType[unknownOpError](err); ok {
		return &Error{Code: CodeUnsupported, Message: err.Error()}
	}
	return &Error{Code: CodeInvalid, Message: err.Error()}
}

// responseError is the answer to a request that failed.
func responseError(err error) *Error {
	if coded, ok := errors.AsType[*Error](err); ok {
		return &Error{Code: coded.Code, Retryable: coded.Retryable, Message: err.Error()}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &Error{Code: CodeUnavailable, Retryable: true, Message: err.Error()}
	}
	return &Error{Code: CodeInternal, Message: err.Error()}
}

// subscribe returns a snapshot, and the queue of the events since if there was
// none before. It is filled before the snapshot is taken, so nothing falls
// between the two.
func (c *serverConn) subscribe(ctx context.Context) (Response, *eventQueue) {
	if c.s.opt.Events == nil {
		return &Error{Code: CodeUnsupported, Message: "this daemon sends no events"}, nil
	}
	c.mu.Lock()
	var fresh *eventQueue
	if c.queue == nil {
		fresh = c.s.opt.Events.subscribe()
		c.queue = fresh
	}
	c.mu.Unlock()
	return c.s.ask(ctx, &Status{}), fresh
}

// pump sends events until the connection ends.
func (c *serverConn) pump(queue *eventQueue) {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-queue.filled:
		}
		for _, event := range queue.take() {
			frame, err := encodeEvent(event)
			if err != nil {
				c.s.opt.Log.Error("encode event", "err", err)
				continue
			}
			c.write(frame)
		}
	}
}

// respond sends a response, or why it cannot be sent.
func (c *serverConn) respond(id uint64, resp Response) {
	if failure, ok := resp.(*Error); ok {
		resp = failure.forWire()
	}
	frame, err := encodeResponse(id, resp)
	if err != nil {
		c.s.opt.Log.Error("encode response", "err", err)
		frame, err = encodeResponse(id, (&Error{Code: CodeInternal, Message: err.Error()}).forWire())
	}
	if err == nil {
		c.write(frame)
	}
}

// forWire fills in the code and cuts a message that carries too much.
func (e *Error) forWire() *Error {
	const longest = 4096
	wire := *e
	if wire.Code == "" {
		wire.Code = CodeInternal
	}
	if len(wire.Message) > longest {
		wire.Message = wire.Message[:longest] + "..."
	}
	return &wire
}

// write sends a whole frame. A peer that does not take it in time loses the
// connection.
func (c *serverConn) write(frame []byte) {
	c.writing.Lock()
	defer c.writing.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.s.opt.WriteTimeout))
	if _, err := c.conn.Write(frame); err != nil {
		if c.ctx.Err() == nil {
			c.s.opt.Log.Debug("write frame", "err", err)
		}
		c.end()
	}
}

func closeFile(file *os.File) {
	if file != nil {
		_ = file.Close()
	}
}

// fileOf returns the namespace that came with req, or nil.
func fileOf(req Request) *os.File {
	if netns := netnsOf(req); netns != nil {
		return netns.File
	}
	return nil
}
