package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// lostError tells that a connection ended under a request.
type lostError struct {
	sent  bool // the whole request was written: it may have been done
	cause error
}

func (e *lostError) Error() string {
	return fmt.Sprintf("%v: connection lost: %v", ErrUnreachable, e.cause)
}

func (e *lostError) Unwrap() []error { return []error{ErrUnreachable, e.cause} }

// clientConn is one connection of a Client. Its reader hands each response to
// the call of the same number.
type clientConn struct {
	conn    net.Conn
	greeted atomic.Bool   // calls may use it
	writing chan struct{} // held while a frame is written
	dead    chan struct{} // closed when the connection is of no more use

	mu      sync.Mutex // guards what follows
	cause   error      // why it is dead
	waiting map[uint64]chan Response
}

func newClientConn(conn net.Conn) *clientConn {
	return &clientConn{
		conn: conn, writing: make(chan struct{}, 1), dead: make(chan struct{}),
		waiting: make(map[uint64]chan Response),
	}
}

// fail ends the connection; the first cause stays.
func (c *clientConn) fail(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		c.cause = cause
		close(c.dead)
		_ = c.conn.Close()
	}
}

func (c *clientConn) alive() bool {
	select {
	case <-c.dead:
		return false
	default:
		return true
	}
}

// roundTrip sends req and waits for the response of its number.
func (c *clientConn) roundTrip(ctx context.Context, id uint64, req Request) (Response, error) {
	frame, err := encodeRequest(id, req)
	if err != nil {
		return nil, err
	}
	file := fileOf(req)
	if file != nil {
		if _, err := file.Stat(); err != nil {
			return nil, fmt.Errorf("pass network namespace: %w", err)
		}
	}
	answer := make(chan Response, 1)
	c.mu.Lock()
	c.waiting[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, id)
	}()
	sent, err := c.send(ctx, frame, file)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, c.lost(sent)
	}
	select {
	case resp := <-answer:
		return resp, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.dead:
	}
	select {
	case resp := <-answer: // came just before the end
		return resp, nil
	default:
		return nil, c.lost(sent)
	}
}

// lost returns the error of a call whose connection is dead: what the daemon
// said as its last word, or that it is gone.
func (c *clientConn) lost(sent bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if failure, ok := errors.AsType[*Error](c.cause); ok {
		return failure
	}
	if errors.Is(c.cause, ErrClosed) {
		return c.cause
	}
	return &lostError{sent: sent, cause: c.cause}
}

// send writes a frame until ctx ends. Part of a frame leaves the connection
// unusable. It tells whether all was written.
func (c *clientConn) send(ctx context.Context, frame []byte, file *os.File) (bool, error) {
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-c.dead:
		return false, net.ErrClosed
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer interruptible(ctx, c.conn.SetWriteDeadline)()
	var err error
	if file != nil {
		err = writeWithFile(c.conn, frame, file)
	} else {
		_, err = c.conn.Write(frame)
	}
	if err != nil {
		c.fail(err)
	}
	return err == nil, err
}

// interruptible makes a read or write return when ctx ends. The returned
// function must be called after it; the connection then has no deadline.
func interruptible(ctx context.Context, setDeadline func(time.Time) error) func() {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = setDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-done
			_ = setDeadline(time.Time{})
		}
	}
}

// read hands out responses until the connection ends.
func (c *clientConn) read() {
	for {
		env, err := readFrame(c.conn)
		if err == nil {
			err = c.deliver(env)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("closed by the daemon")
			}
			c.fail(err)
			return
		}
	}
}

// deliver gives a response to the call that waits for it. Answers that nobody
// waits for any more, and events, are dropped.
func (c *clientConn) deliver(env envelope) error {
	switch env.Frame {
	case frameEvent:
		return nil
	case frameResponse:
	default:
		return errors.New("unexpected frame " + short(env.Frame))
	}
	resp, err := decodeResponse(env.Response)
	if err != nil {
		resp = &Error{Code: CodeInternal, Message: err.Error()}
	}
	if failure, ok := resp.(*Error); ok && env.ID == 0 {
		return failure // of the connection, not of a request: ours start at 1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer, ok := c.waiting[env.ID]; ok {
		delete(c.waiting, env.ID)
		answer <- resp
	}
	return nil
}
