package shim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func subscribe(t *testing.T, d *daemon) *Subscription {
	t.Helper()
	s, err := SubscribeTo(t.Context(), d.path, DialOptions{CallTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func next(t *testing.T, s *Subscription) Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	event, err := s.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return event
}

func TestSubscribersGetASnapshotThenEvents(t *testing.T) {
	events := NewBroadcaster(16)
	d := startDaemon(t, func(_ context.Context, req Request) (Response, error) {
		return &StatusSnapshot{Node: "n1"}, nil
	}, ServeOptions{Events: events})
	events.Publish(&PeerHealthChanged{Pubkey: "before"}) // nobody listens yet
	first, second := subscribe(t, d), subscribe(t, d)
	for _, s := range []*Subscription{first, second} {
		if diff := cmp.Diff(&StatusSnapshot{Node: "n1"}, s.Snapshot, compareNetip); diff != "" {
			t.Errorf("snapshot (-want +got):\n%s", diff)
		}
	}
	want := []Event{&PeerHealthChanged{Pubkey: "a", Healthy: true}, &NATEndpointChanged{Pubkey: "a", Endpoint: "1.2.3.4:5"}}
	for _, event := range want {
		events.Publish(event)
	}
	for _, s := range []*Subscription{first, second} {
		if diff := cmp.Diff(want, []Event{next(t, s), next(t, s)}); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := first.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
	eventually(t, "the end of its queue", func() bool {
		events.mu.Lock()
		defer events.mu.Unlock()
		return len(events.queues) == 1
	})
	d.stop()
	if _, err := second.Next(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("after the daemon's end: %v, want ErrUnreachable", err)
	}
}

func snapshots(_ context.Context, req Request) (Response, error) {
	if _, ok := req.(*Status); ok {
		return &StatusSnapshot{}, nil
	}
	return nil, nil
}

func TestSubscribingTwiceOnOneConnection(t *testing.T) {
	const count = 2000
	events := NewBroadcaster(count)
	c := startDaemon(t, snapshots, ServeOptions{Events: events}).raw()
	for id := range uint64(2) {
		c.ask(id+1, &Subscribe{})
		if got, resp := c.answer(); got != id+1 || resp.Result() != "status" {
			t.Fatalf("answer %d %v", got, resp)
		}
	}
	if len(events.queues) != 1 {
		t.Errorf("%d queues for one connection", len(events.queues))
	}
	go func() {
		for i := range uint64(count) {
			events.Publish(&Lost{Count: i})
		}
	}()
	for want := range uint64(count) {
		env, err := readFrame(c)
		if err != nil {
			t.Fatal(err)
		}
		if event, err := decodeEvent(env); err != nil || event.(*Lost).Count != want {
			t.Fatalf("event %v, %v where %d belongs: once each, in order", event, err, want)
		}
	}
}

func TestSubscribersAreNotIdle(t *testing.T) {
	events := NewBroadcaster(4)
	d := startDaemon(t, snapshots, ServeOptions{Events: events, MaxConns: 2})
	s := subscribe(t, d)
	for id := range uint64(3) { // each takes the place of the one before
		c := d.raw()
		c.ask(id, &Ready{})
		c.answer()
	}
	events.Publish(&Lost{Count: 1})
	if diff := cmp.Diff(Event(&Lost{Count: 1}), next(t, s)); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

// TestRequestOfALostConnectionIsNotBegun has a second request wait for the
// first when the connection is found to be gone.
func TestRequestOfALostConnectionIsNotBegun(t *testing.T) {
	events, begun, release := NewBroadcaster(4), make(chan Request, 4), make(chan struct{})
	d := startDaemon(t, func(_ context.Context, req Request) (Response, error) {
		if _, ok := req.(*Status); ok {
			return &StatusSnapshot{}, nil
		}
		begun <- req
		<-release
		return nil, nil
	}, ServeOptions{Events: events, MaxRequests: 1})
	c := d.raw()
	c.ask(1, &Subscribe{})
	c.answer()
	c.ask(2, &Ready{})
	within(t, begun, "the first request")
	c.ask(3, &NATTick{})
	_ = c.Close()
	eventually(t, "the end of the connection", func() bool {
		events.Publish(&Lost{})
		events.mu.Lock()
		defer events.mu.Unlock()
		for q := range events.queues {
			q.mu.Lock()
			defer q.mu.Unlock()
			return len(q.events) == cap(begun) // nobody takes them any more
		}
		return true
	})
	close(release)
	eventually(t, "the end of its queue", func() bool {
		events.mu.Lock()
		defer events.mu.Unlock()
		return len(events.queues) == 0
	})
	d.stop()
	if len(begun) > 0 {
		t.Errorf("%s was begun for nobody", (<-begun).Op())
	}
}

func TestSlowSubscriberLosesTheOldest(t *testing.T) {
	events := NewBroadcaster(3)
	q := events.subscribe()
	for i := range 8 {
		events.Publish(&PeerHealthChanged{Pubkey: fmt.Sprint(i)})
	}
	want := []Event{&Lost{Count: 5}, &PeerHealthChanged{Pubkey: "5"}, &PeerHealthChanged{Pubkey: "6"}, &PeerHealthChanged{Pubkey: "7"}}
	if diff := cmp.Diff(want, q.take()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if got := q.take(); len(got) > 0 {
		t.Errorf("again: %v", got)
	}
	events.Publish(&PeerHealthChanged{Pubkey: "8"})
	if diff := cmp.Diff([]Event{&PeerHealthChanged{Pubkey: "8"}}, q.take()); diff != "" {
		t.Errorf("afterwards (-want +got):\n%s", diff)
	}
}

func TestPublishNeverWaits(t *testing.T) {
	events := NewBroadcaster(0)
	d := startDaemon(t, snapshots, ServeOptions{Events: events, WriteTimeout: patience})
	s := subscribe(t, d)
	huge := strings.Repeat("x", 1<<20) // more than a socket holds
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			events.Publish(&PeerHealthChanged{Pubkey: huge})
		}
	}()
	within(t, done, "the end of publishing with nobody reading")
	events.Publish(&PeerHealthChanged{Pubkey: "last"})
	lost := uint64(0)
	for seen := uint64(0); ; seen++ {
		switch event := next(t, s).(type) {
		case *Lost:
			lost += event.Count
			seen--
		case *PeerHealthChanged:
			if event.Pubkey == "last" {
				if seen+lost != 50 {
					t.Errorf("%d seen and %d lost of 50", seen, lost)
				}
				return
			}
		}
	}
}

func TestSubscribeIsRefused(t *testing.T) {
	for _, test := range []struct {
		name string
		h    HandlerFunc
		opt  ServeOptions
		code Code
	}{
		{"no events here", nothing, ServeOptions{}, CodeUnsupported},
		{"no snapshot", refuseWith(&Error{Code: CodeUnavailable, Message: "starting"}), ServeOptions{Events: NewBroadcaster(1)}, CodeUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := SubscribeTo(t.Context(), startDaemon(t, test.h, test.opt).path, DialOptions{})
			wantCode(t, err, test.code)
		})
	}
	t.Run("no daemon", func(t *testing.T) {
		if _, err := SubscribeTo(t.Context(), socketPath(t), DialOptions{Attempts: 1}); !errors.Is(err, ErrUnreachable) {
			t.Errorf("got %v, want ErrUnreachable", err)
		}
	})
	t.Run("hung daemon", func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		path := scripted(t, func(*rawConn) { <-release })
		_, err := SubscribeTo(t.Context(), path, DialOptions{CallTimeout: 20 * time.Millisecond})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
	})
}

func TestSubscriptionSkipsEventsOfTomorrow(t *testing.T) {
	path := scripted(t, func(c *rawConn) {
		id, _ := c.request()
		c.respond(id, &StatusSnapshot{})
		c.send(document(`{"frame":"event","event":"of_tomorrow","x":1}`))
		c.send(document(`{"frame":"event","event":"lost","count":2,"x":1}`))
		c.send(document(`{"frame":"event","event":"lost","count":"many"}`))
	})
	s, err := SubscribeTo(t.Context(), path, DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if diff := cmp.Diff(Event(&Lost{Count: 2}), next(t, s)); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	if _, err := s.Next(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("after garbage: %v, want ErrUnreachable", err)
	}
}

func TestNextEndsWithItsContext(t *testing.T) {
	events := NewBroadcaster(1)
	d := startDaemon(t, snapshots, ServeOptions{Events: events})
	s := subscribe(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
	events.Publish(&Lost{Count: 9})
	if diff := cmp.Diff(Event(&Lost{Count: 9}), next(t, s)); diff != "" {
		t.Errorf("event after it (-want +got):\n%s", diff)
	}
}
