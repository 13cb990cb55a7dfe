package shim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// Subscription receives events on a connection of its own. It does not
// reconnect: after an error, subscribe again and start from the new Snapshot.
type Subscription struct {
	Snapshot *StatusSnapshot // the state that the events start from

	conn   net.Conn
	events chan Event
	closed atomic.Bool
	done   chan struct{} // closed by Close
	reader sync.WaitGroup
	cause  error // of the end; set before events is closed
}

// SubscribeTo asks the daemon at path for events. Close the Subscription when
// done.
func SubscribeTo(ctx context.Context, path string, opt DialOptions) (*Subscription, error) {
	conn, err := dial(ctx, path, cmp.Or(max(opt.Attempts, 0), defaultAttempts), nil)
	if err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cmp.Or(opt.CallTimeout, defaultCallTimeout))
		defer cancel()
	}
	snapshot, err := subscribeOn(ctx, conn)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s := &Subscription{Snapshot: snapshot, conn: conn, events: make(chan Event), done: make(chan struct{})}
	s.reader.Go(s.read)
	return s, nil
}

// subscribeOn sends the request and reads frames up to its answer.
func subscribeOn(ctx context.Context, conn net.Conn) (*StatusSnapshot, error) {
	const id = 1
	frame, err := encodeRequest(id, &Subscribe{})
	if err != nil {
		return nil, err
	}
	defer interruptible(ctx, conn.SetDeadline)()
	if _, err := conn.Write(frame); err != nil {
		return nil, errors.Join(ctx.Err(), err)
	}
	for {
		env, err := readFrame(conn)
		if err != nil {
			return nil, errors.Join(ctx.Err(), err)
		}
		if env.Frame != frameResponse || env.ID != id && env.ID != 0 {
			continue
		}
		resp, err := decodeResponse(env.Response)
		if failure, ok := resp.(*Error); ok {
			return nil, failure
		}
		return expect[*StatusSnapshot](resp, err)
	}
}

// Next returns the next event, *Lost where this client was too slow. Events of
// kinds unknown to this version are left out.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	select {
	case event, ok := <-s.events:
		if ok {
			return event, nil
		}
		if s.closed.Load() {
			return nil, ErrClosed
		}
		return nil, fmt.Errorf("receive events: %w: %w", ErrUnreachable, s.cause)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close ends the subscription, and Next with ErrClosed.
func (s *Subscription) Close() error {
	if s.closed.CompareAndSwap(false, true) {
		close(s.done)
		_ = s.conn.Close()
	}
	s.reader.Wait()
	return nil
}

// read hands events to Next until the connection ends.
func (s *Subscription) read() {
	defer close(s.events)
	defer func() { _ = s.conn.Close() }()
	for {
		env, err := readFrame(s.conn)
		var event Event
		if err == nil && env.Frame == frameEvent {
			event, err = decodeEvent(env)
		}
		if err != nil {
			s.cause = err
			return
		}
		if event == nil {
			continue
		}
		select {
		case s.events <- event:
		case <-s.done:
			return
		}
	}
}
