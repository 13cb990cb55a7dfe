package shim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestTypedCalls(t *testing.T) {
	handle := &LinuxNetns{ContainerID: "c1", IfName: "eth0", Netns: "/run/netns/c1"}
	attached := &Attached{IP: ip("10.0.0.5"), Addresses: cidrs("10.0.0.5/32"), MTU: 1420}
	snapshot := &StatusSnapshot{Node: "n1", PeerCount: 2}
	guest := &GuestConfig{OverlayIP: ip("10.0.0.6"), PrivateKey: keyB, Peers: []PeerSpec{}}
	var asked Request
	var answer Response
	d := startDaemon(t, func(_ context.Context, req Request) (Response, error) {
		asked = req
		return answer, nil
	}, ServeOptions{})
	c := d.client()
	for _, test := range []struct {
		name   string
		answer Response
		call   func(ctx context.Context) (any, error)
		asked  Request
		want   any
	}{
		{"attach", attached, func(ctx context.Context) (any, error) {
			return c.Attach(ctx, &AttachContainer{Handle: handle, Service: "s"})
		}, &AttachContainer{Handle: handle, Service: "s"}, attached},
		{"attach a guest", guest, func(ctx context.Context) (any, error) {
			return c.AttachGuest(ctx, &AttachContainer{Handle: &GuestManaged{ID: "g"}})
		}, &AttachContainer{Handle: &GuestManaged{ID: "g"}}, guest},
		{"detach", nil, func(ctx context.Context) (any, error) { return nil, c.Detach(ctx, handle) }, &DetachContainer{Handle: handle}, nil},
		{"check", attached, func(ctx context.Context) (any, error) { return c.Check(ctx, handle) }, &CheckContainer{Handle: handle}, attached},
		{"check that only compares", nil, func(ctx context.Context) (any, error) { return c.Check(ctx, handle) }, &CheckContainer{Handle: handle}, (*Attached)(nil)},
		{"gc", nil, func(ctx context.Context) (any, error) { return nil, c.GC(ctx, "pods", []Attachment{{"c1", "eth0"}}) }, &GCContainers{Network: "pods", Valid: []Attachment{{"c1", "eth0"}}}, nil},
		{"ready", nil, func(ctx context.Context) (any, error) { return nil, c.Ready(ctx) }, &Ready{}, nil},
		{"guests", &Guests{Guests: []GuestStatus{{ID: "g"}}}, func(ctx context.Context) (any, error) { return c.Guests(ctx) }, &ListGuests{}, []GuestStatus{{ID: "g"}}},
		{"names", &DNSNames{Names: []DNSName{{Name: "a."}}}, func(ctx context.Context) (any, error) { return c.DNSNames(ctx) }, &ListDNS{}, []DNSName{{Name: "a."}}},
		{"status", snapshot, func(ctx context.Context) (any, error) { return c.Status(ctx) }, &Status{}, snapshot},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer = test.answer
			got, err := test.call(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, compareNetip); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.asked, asked, compareNetip, cmpopts.IgnoreFields(LinuxNetns{}, "File")); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTypedCallsRefuseAnotherAnswer(t *testing.T) {
	d := startDaemon(t, func(context.Context, Request) (Response, error) { return &BridgeName{Name: "b"}, nil }, ServeOptions{})
	c := d.client()
	_, attachErr := c.Attach(t.Context(), &AttachContainer{Handle: &LinuxPID{PID: 1}})
	_, checkErr := c.Check(t.Context(), &LinuxPID{PID: 1})
	for _, err := range []error{attachErr, checkErr, c.Ready(t.Context())} {
		if err == nil || !strings.Contains(err.Error(), "bridge_name") {
			t.Errorf("got %v, want an error that tells the answer", err)
		}
	}
}

func TestGCOfNilIsRefused(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{})
	c := d.client()
	wantCode(t, c.GC(t.Context(), "", nil), CodeInvalid)
	if err := c.GC(t.Context(), "", []Attachment{}); err != nil {
		t.Errorf("an empty list: %v", err)
	}
}

func TestDialIsBounded(t *testing.T) {
	missing := socketPath(t)
	for _, test := range []struct {
		attempts int
		want     time.Duration
	}{
		{1, 0},
		{2, 100 * time.Millisecond},
		{5, 1500 * time.Millisecond},
		{6, 2500 * time.Millisecond},
		{7, 3500 * time.Millisecond},
		{0, 2500 * time.Millisecond},  // the default: 6
		{-3, 2500 * time.Millisecond}, // the same
	} {
		t.Run(fmt.Sprint(test.attempts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				_, err := Dial(t.Context(), missing, DialOptions{Attempts: test.attempts})
				if !errors.Is(err, ErrUnreachable) || !errors.Is(err, os.ErrNotExist) {
					t.Errorf("got %v, want ErrUnreachable and why", err)
				}
				if took := time.Since(begin); took != test.want {
					t.Errorf("gave up after %s, want %s", took, test.want)
				}
				if planned := dialTime(max(test.attempts, 1)); test.attempts > 0 && planned != test.want {
					t.Errorf("planned %s, want %s", planned, test.want)
				}
			})
		})
	}
}

func TestDialDoesNotWaitForWhatWillNotChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		for _, path := range []string{"", "@abstract", "/" + strings.Repeat("x", 1000)} {
			if _, err := Dial(t.Context(), path, DialOptions{}); !errors.Is(err, ErrUnreachable) {
				t.Errorf("%.20q: %v, want ErrUnreachable", path, err)
			}
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("waited %s", took)
		}
	})
}

func TestDialEndsWithItsContext(t *testing.T) {
	missing := socketPath(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		begin := time.Now()
		_, err := Dial(ctx, missing, DialOptions{})
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUnreachable) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(begin); took != 150*time.Millisecond {
			t.Errorf("took %s", took)
		}
	})
}

func TestDialWaitsForTheDaemon(t *testing.T) {
	path := socketPath(t)
	dialed := make(chan error, 1)
	go func() {
		c, err := Dial(t.Context(), path, DialOptions{Attempts: 100})
		if err == nil {
			err = c.Ready(t.Context())
			_ = c.Close()
		}
		dialed <- err
	}()
	startDaemonAt(t, path, nothing, ServeOptions{})
	if err := within(t, dialed, "the connection"); err != nil {
		t.Error(err)
	}
}

func TestClientMatchesAnswersToCalls(t *testing.T) {
	const calls = 200
	var turn atomic.Int64
	held := make(chan struct{})
	d := startDaemon(t, func(_ context.Context, req Request) (Response, error) {
		if turn.Add(1)%2 == 1 { // every other waits, so answers come out of order
			<-held
		}
		return &BridgeName{Name: req.(*UnregisterDNS).Name}, nil
	}, ServeOptions{MaxRequests: calls})
	c := d.client()
	var group sync.WaitGroup
	for i := range calls {
		group.Go(func() {
			name := fmt.Sprint("n", i)
			resp, err := c.Call(t.Context(), &UnregisterDNS{Name: name})
			if err != nil {
				t.Error(err)
				return
			}
			if got := resp.(*BridgeName).Name; got != name {
				t.Errorf("%s got the answer of %s", name, got)
			}
		})
	}
	eventually(t, "all requests", func() bool { return turn.Load() == calls })
	close(held)
	group.Wait()
}

func TestClientReconnects(t *testing.T) {
	path := socketPath(t)
	first := startDaemonAt(t, path, nothing, ServeOptions{})
	c := first.client()
	for range 3 {
		if err := c.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		first.stop()
		first = startDaemonAt(t, path, nothing, ServeOptions{})
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

// scripted accepts connections one by one, for a server that misbehaves.
func scripted(t *testing.T, script ...func(c *rawConn)) string {
	t.Helper()
	path := socketPath(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, act := range script {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			act(newRawConn(t, conn))
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); within(t, done, "the script") })
	return path
}

// request reads the next request.
func (c *rawConn) request() (uint64, Request) {
	env, err := readFrame(c)
	if err != nil {
		c.t.Errorf("read request: %v", err)
		return 0, &Status{}
	}
	req, err := decodeRequest(env.Request)
	if err != nil {
		c.t.Error(err)
	}
	return env.ID, req
}

// respond sends a response.
func (c *rawConn) respond(id uint64, resp Response) {
	frame, err := encodeResponse(id, resp)
	if err != nil {
		c.t.Error(err)
		return
	}
	_, _ = c.Write(frame)
}

func dialScript(t *testing.T, script ...func(c *rawConn)) *Client {
	t.Helper()
	c, err := Dial(t.Context(), scripted(t, script...), DialOptions{Attempts: 1, CallTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestClientRepeatsARequestWhoseConnectionWasLost(t *testing.T) {
	var repeated Request
	c := dialScript(t,
		func(c *rawConn) { c.request() }, // read, not answered
		func(c *rawConn) {
			id, req := c.request()
			repeated = req
			c.respond(id, &OK{})
		})
	if err := c.Detach(t.Context(), &LinuxPID{PID: 7}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Request(&DetachContainer{Handle: &LinuxPID{PID: 7}}), repeated); diff != "" {
		t.Errorf("repeated (-want +got):\n%s", diff)
	}
}

func TestClientRepeatsAnAllocationThatNamesItsOwner(t *testing.T) {
	c := dialScript(t,
		func(c *rawConn) { c.request() },
		func(c *rawConn) {
			id, req := c.request()
			if diff := cmp.Diff(Request(&AllocateIP{Service: "web", Owner: "vm-1"}), req); diff != "" {
				t.Errorf("repeated (-want +got):\n%s", diff)
			}
			c.respond(id, &AllocatedIP{IP: ip("10.0.0.5")})
		})
	if _, err := c.Call(t.Context(), &AllocateIP{Service: "web", Owner: "vm-1"}); err != nil {
		t.Error(err)
	}
}

func TestClientGivesUpWhenTheConnectionIsLostTwice(t *testing.T) {
	hangUp := func(c *rawConn) { c.request() }
	c := dialScript(t, hangUp, hangUp)
	if err := c.Ready(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v, want ErrUnreachable", err)
	}
}

func TestClientDoesNotRepeatWhatMustNotBeDoneTwice(t *testing.T) {
	for _, req := range []Request{&AllocateIP{}, &Shutdown{}} {
		t.Run(req.Op(), func(t *testing.T) {
			c := dialScript(t, func(c *rawConn) { c.request() })
			if _, err := c.Call(t.Context(), req); !errors.Is(err, ErrUnreachable) {
				t.Errorf("got %v, want ErrUnreachable", err)
			}
		})
	}
}

func TestClientDoesNotWaitForAHungDaemon(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	c := dialScript(t, func(*rawConn) { <-release })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
	// Not even when it does not read: part of a frame fits, the rest does not.
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, &RegisterDNS{Name: strings.Repeat("x", 4<<20), IP: ip("10.0.0.1")}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
}

func TestClientHasADeadlineOfItsOwn(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	c, err := Dial(t.Context(), scripted(t, func(*rawConn) { <-release }), DialOptions{CallTimeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.Ready(context.Background()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
}

func TestClientSurvivesALateAnswer(t *testing.T) {
	late := make(chan struct{})
	c := dialScript(t, func(c *rawConn) {
		first, _ := c.request()
		<-late
		second, _ := c.request()
		c.respond(first, &BridgeName{Name: "late"})
		c.send(document(`{"frame":"event","event":"of_tomorrow"}`))
		c.respond(12345, &BridgeName{Name: "nobody's"})
		c.respond(second, &OK{})
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want DeadlineExceeded", err)
	}
	c.conn.mu.Lock()
	if len(c.conn.waiting) > 0 {
		t.Error("the call that gave up is still remembered")
	}
	c.conn.mu.Unlock()
	close(late)
	if err := c.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestClientAgainstABrokenDaemon(t *testing.T) {
	for _, test := range []struct {
		name string
		send []byte
		says string
	}{
		{"too large", binary.LittleEndian.AppendUint32(nil, MaxFrame+1), "too large"},
		{"not JSON", document("HTTP/1.1 400"), "decode"},
		{"truncated", document("{}")[:5], "unexpected EOF"},
		{"a request", document(`{"frame":"request","id":1,"request":{"op":"status"}}`), "unexpected frame"},
		{"nothing of this", document(`{}`), "unexpected frame"},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer := func(c *rawConn) { c.request(); c.send(test.send) }
			c := dialScript(t, answer, answer)
			err := c.Ready(t.Context())
			if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want ErrUnreachable and %q", err, test.says)
			}
		})
	}
	t.Run("unknown result", func(t *testing.T) {
		c := dialScript(t, func(c *rawConn) {
			c.request()
			c.send(document(`{"frame":"response","id":1,"response":{"result":"coffee"}}`))
		})
		wantCode(t, c.Ready(t.Context()), CodeInternal)
	})
	t.Run("last word", func(t *testing.T) {
		c := dialScript(t, func(c *rawConn) { c.request(); c.respond(0, &Error{Code: CodeUnavailable, Message: "full"}) })
		wantCode(t, c.Ready(t.Context()), CodeUnavailable)
	})
}

func TestClientRefusesToSendTooMuch(t *testing.T) {
	c := startDaemon(t, nothing, ServeOptions{}).client()
	if _, err := c.Call(t.Context(), &UnregisterDNS{Name: strings.Repeat("x", MaxFrame)}); !errors.Is(err, errTooLarge) {
		t.Errorf("got %v, want errTooLarge", err)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Errorf("the connection is lost: %v", err)
	}
}

func TestAContextThatEndedLeavesNoDeadline(t *testing.T) {
	c := startDaemon(t, nothing, ServeOptions{}).client()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	before := c.conn
	interruptible(ended, before.conn.SetWriteDeadline)()
	if err := c.Ready(t.Context()); err != nil || c.conn != before {
		t.Errorf("the next call needed another connection, or %v", err)
	}
}

func TestClientClose(t *testing.T) {
	begun, release := make(chan struct{}, 1), make(chan struct{})
	defer close(release)
	c := dialScript(t, func(c *rawConn) { c.request(); begun <- struct{}{}; <-release })
	called := make(chan error, 1)
	go func() {
		_, err := c.Call(t.Context(), &AllocateIP{})
		called <- err
	}()
	within(t, begun, "the call")
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := within(t, called, "its end"); !errors.Is(err, ErrClosed) || errors.Is(err, ErrUnreachable) {
		t.Errorf("call under way: %v, want ErrClosed alone", err)
	}
	if err := c.Ready(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("call after: %v, want ErrClosed", err)
	}
}

func TestClientCloseEndsDialing(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{})
	c, err := Dial(t.Context(), d.path, DialOptions{Attempts: 1 << 20, CallTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	d.stop()
	called := make(chan error, 2)
	for range cap(called) { // one dials, one waits for it
		go func() { called <- c.Ready(t.Context()) }()
	}
	eventually(t, "dialing", func() bool { return len(c.dialing) == 1 })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for range cap(called) {
		if err := within(t, called, "the end of a call"); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	}
}

func TestClientCloseWhileDialing(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{})
	for range 100 { // goleak finds a connection made after Close
		c, err := Dial(t.Context(), d.path, DialOptions{CallTimeout: patience})
		if err != nil {
			t.Fatal(err)
		}
		c.conn.fail(net.ErrClosed)
		called := make(chan error, 1)
		go func() { called <- c.Ready(t.Context()) }()
		_ = c.Close()
		if err := within(t, called, "the call"); err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want ErrClosed or none", err)
		}
	}
}

func TestClientDialsOnceForAllCalls(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{})
	c := d.client()
	c.mu.Lock()
	c.conn.fail(net.ErrClosed)
	c.mu.Unlock()
	conns := make(map[*clientConn]bool)
	var mu sync.Mutex
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			conn, err := c.connection(t.Context())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			conns[conn] = true
		})
	}
	group.Wait()
	if len(conns) != 1 {
		t.Errorf("%d connections", len(conns))
	}
}

func BenchmarkReadyCall(b *testing.B) {
	path := socketPath(b)
	l, err := Listen(path)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, HandlerFunc(nothing), ServeOptions{}) }()
	c, err := Dial(ctx, path, DialOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Ready(ctx); err != nil {
			b.Fatal(err)
		}
	}
	_ = c.Close()
	cancel()
	if err := <-served; err != nil {
		b.Error(err)
	}
}
