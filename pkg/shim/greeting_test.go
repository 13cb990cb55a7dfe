package shim

import (
	"context"
	"errors"
	"testing"
)

// TestNewConnectionsAreToldNumberAndKey: after a restart of its daemon the
// original's agent was lost, and number and key were never told again.
func TestNewConnectionsAreToldNumberAndKey(t *testing.T) {
	path := socketPath(t)
	r := &recorder{answer: obliging}
	d := startDaemonAt(t, path, r.handle, ServeOptions{})
	m := newManager(t, OverlayOptions{Socket: path})
	if _, err := m.RefreshStatus(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want(t, &Status{})
	if err := m.SetLocalNodeID(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	r.want(t, &SetLocalNodeID{NodeID: 7}) // at once, since there is a connection
	if err := errors.Join(m.SetLocalWGPubkey(t.Context(), keyA), m.SetLocalNodeID(t.Context(), 8)); err != nil {
		t.Fatal(err)
	}
	r.want(t, &SetLocalWGPubkey{Pubkey: keyA}, &SetLocalNodeID{NodeID: 8})
	for range 2 {
		d.stop()
		d = startDaemonAt(t, path, r.handle, ServeOptions{})
		if _, err := m.SetupServiceOverlay(t.Context(), "web", ModeShared); err != nil {
			t.Fatal(err)
		}
		r.want(t, &SetLocalWGPubkey{Pubkey: keyA}, &SetLocalNodeID{NodeID: 8}, &SetupServiceOverlay{Service: "web", Mode: ModeShared})
	}
}

func TestWhatTheDaemonRefusesIsNotSaidAgain(t *testing.T) {
	refuse := true
	m, r := managed(t, func(ctx context.Context, req Request) (Response, error) {
		if _, ok := req.(*SetLocalNodeID); ok && refuse {
			return nil, &Error{Code: CodeInvalid, Message: "no such node"}
		}
		return obliging(ctx, req)
	}, OverlayOptions{})
	if _, err := m.RefreshStatus(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantCode(t, m.SetLocalNodeID(t.Context(), 9), CodeInvalid)
	r.take()
	m.client.conn.fail(errors.New("cut"))
	if _, err := m.RefreshStatus(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want(t, &Status{})
	refuse = false
	if err := m.SetLocalNodeID(t.Context(), 9); err != nil {
		t.Error(err)
	}
}

// TestConnectionLostWhileItIsTold has the daemon hang up on the number: the next
// connection begins with it.
func TestConnectionLostWhileItIsTold(t *testing.T) {
	var greeted Request
	path := scripted(t,
		func(c *rawConn) {
			id, _ := c.request()
			c.respond(id, &StatusSnapshot{})
			c.request() // the number
		},
		func(c *rawConn) {
			id, req := c.request()
			greeted = req
			c.respond(id, &OK{})
			id, _ = c.request()
			c.respond(id, &StatusSnapshot{})
		})
	m := newManager(t, OverlayOptions{Socket: path})
	if _, err := m.RefreshStatus(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.SetLocalNodeID(t.Context(), 7); err != nil {
		t.Errorf("a lost connection is no refusal: %v", err)
	}
	if _, err := m.RefreshStatus(t.Context()); err != nil {
		t.Fatal(err)
	}
	if number, ok := greeted.(*SetLocalNodeID); !ok || number.NodeID != 7 {
		t.Errorf("the next connection began with %#v", greeted)
	}
}

// TestConnectionLostWhileGreeting repeats the call, greeting included.
func TestConnectionLostWhileGreeting(t *testing.T) {
	path := scripted(t,
		func(c *rawConn) { c.request() },
		func(c *rawConn) {
			for _, resp := range []Response{&OK{}, &StatusSnapshot{Node: "n1"}} {
				id, _ := c.request()
				c.respond(id, resp)
			}
		})
	m := newManager(t, OverlayOptions{Socket: path, NodeID: 7})
	if snapshot, err := m.RefreshStatus(t.Context()); err != nil || snapshot.Node != "n1" {
		t.Errorf("got %v, %v", snapshot, err)
	}
}

// TestCallsWaitForTheGreeting has a second call come while the first one's
// connection is being greeted.
func TestCallsWaitForTheGreeting(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	m, r := managed(t, func(ctx context.Context, req Request) (Response, error) {
		if _, ok := req.(*SetLocalNodeID); ok {
			close(begun)
			<-release
		}
		return obliging(ctx, req)
	}, OverlayOptions{NodeID: 7})
	done := make(chan error, 2)
	ask := func() {
		_, err := m.RefreshStatus(t.Context())
		done <- err
	}
	go ask()
	within(t, begun, "the greeting")
	go ask()
	if conn, err := m.client.current(); conn != nil || err != nil {
		t.Errorf("a connection in the middle of its greeting is in use: %v", err)
	}
	close(release)
	for range cap(done) {
		if err := within(t, done, "the calls"); err != nil {
			t.Error(err)
		}
	}
	r.want(t, &SetLocalNodeID{NodeID: 7}, &Status{}, &Status{})
}

func TestCloseEndsTheGreeting(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	path := scripted(t, func(c *rawConn) { c.request(); close(begun); <-release })
	m := newManager(t, OverlayOptions{Socket: path, NodeID: 7})
	done := make(chan error, 1)
	go func() {
		_, err := m.RefreshStatus(t.Context())
		done <- err
	}()
	within(t, begun, "the greeting")
	if err := m.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if err := within(t, done, "the end of the call"); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if err := m.SetLocalNodeID(t.Context(), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v, want ErrClosed", err)
	}
}
