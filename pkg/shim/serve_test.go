package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestServeAnswersAndKeepsNumbers(t *testing.T) {
	d := startDaemon(t, func(_ context.Context, req Request) (Response, error) {
		if req, ok := req.(*UnregisterDNS); ok {
			return &BridgeName{Name: req.Name}, nil
		}
		return nil, nil
	}, ServeOptions{})
	c := d.raw()
	for id := range uint64(3) {
		c.ask(id+40, &UnregisterDNS{Name: fmt.Sprint("n", id)})
		got, resp := c.answer()
		if diff := cmp.Diff(Response(&BridgeName{Name: fmt.Sprint("n", id)}), resp); diff != "" || got != id+40 {
			t.Errorf("answer %d (-want +got):\n%s", got, diff)
		}
	}
}

func TestServeHandlesRequestsOfOneConnectionSideBySide(t *testing.T) {
	const count = 8
	var together sync.WaitGroup
	together.Add(count)
	d := startDaemon(t, func(context.Context, Request) (Response, error) {
		together.Done()
		together.Wait() // for all of them to be here at once
		return nil, nil
	}, ServeOptions{MaxRequests: count})
	c := d.raw()
	for id := range uint64(count) {
		c.ask(id, &Ready{})
	}
	seen := make(map[uint64]bool)
	for range count {
		id, _ := c.answer()
		seen[id] = true
	}
	if len(seen) != count {
		t.Errorf("answers %v", seen)
	}
}

func TestServeBoundsRequestsOfOneConnection(t *testing.T) {
	const count, bound = 12, 3
	var running, most atomic.Int64
	begun, release := make(chan struct{}, count), make(chan struct{})
	d := startDaemon(t, func(context.Context, Request) (Response, error) {
		for now := running.Add(1); ; {
			if old := most.Load(); now <= old || most.CompareAndSwap(old, now) {
				break
			}
		}
		begun <- struct{}{}
		<-release
		running.Add(-1)
		return nil, nil
	}, ServeOptions{MaxRequests: bound})
	c := d.raw()
	for id := range uint64(count) {
		c.ask(id, &Ready{})
	}
	for range bound {
		within(t, begun, "requests up to the bound")
	}
	d2 := d.raw() // another connection is not held up
	d2.ask(1, &Hello{})
	d2.answer()
	close(release)
	for range count {
		c.answer()
	}
	if got := most.Load(); got != bound {
		t.Errorf("%d requests at once, want %d", got, bound)
	}
}

func TestServeErrorsOfHandlers(t *testing.T) {
	exhausted := &Error{Code: CodeExhausted, Message: "pool is full", Retryable: true}
	for _, test := range []struct {
		name string
		err  error
		want *Error
	}{
		{"with a code", exhausted, exhausted},
		{"wrapped", fmt.Errorf("attach c1: %w", exhausted), &Error{Code: CodeExhausted, Message: "attach c1: pool is full", Retryable: true}},
		{"without a code", errors.New("disk on fire"), &Error{Code: CodeInternal, Message: "disk on fire"}},
		{"code left empty", &Error{Message: "lazy"}, &Error{Code: CodeInternal, Message: "lazy"}},
		{"context ended", fmt.Errorf("attach: %w", context.Canceled), &Error{Code: CodeUnavailable, Message: "attach: context canceled", Retryable: true}},
		{"deadline", context.DeadlineExceeded, &Error{Code: CodeUnavailable, Message: "context deadline exceeded", Retryable: true}},
		{"long", errors.New(strings.Repeat("x", MaxFrame)), &Error{Code: CodeInternal, Message: strings.Repeat("x", 4096) + "..."}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDaemon(t, refuseWith(test.err), ServeOptions{})
			got := wantCode(t, d.client().Ready(t.Context()), test.want.Code)
			if diff := cmp.Diff(test.want, &got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			c := d.raw()
			c.ask(1, &Ready{})
			env, err := readFrame(c)
			if err != nil || !strings.Contains(string(env.Response), `"code":"`+string(test.want.Code)+`"`) {
				t.Errorf("no code on the wire: %.200s, %v", env.Response, err)
			}
		})
	}
}

func TestServePanicCostsOnlyTheRequest(t *testing.T) {
	var logged bytes.Buffer
	var mu sync.Mutex
	d := startDaemon(t, func(_ context.Context, req Request) (Response, error) {
		if _, ok := req.(*NATTick); ok {
			panic("the sky is falling")
		}
		return nil, nil
	}, ServeOptions{Log: slog.New(slog.NewTextHandler(&lockedWriter{w: &logged, mu: &mu}, nil))})
	c := d.raw()
	c.ask(1, &NATTick{})
	failure := c.failure(1, CodeInternal)
	if strings.Contains(failure.Message, "sky") {
		t.Errorf("the cause crosses the wire: %s", failure.Message)
	}
	c.ask(2, &Ready{})
	if id, resp := c.answer(); id != 2 || resp.Result() != "ok" {
		t.Errorf("after the panic: %d %v", id, resp)
	}
	mu.Lock()
	defer mu.Unlock()
	if log := logged.String(); !strings.Contains(log, "sky is falling") || !strings.Contains(log, "serve_test.go") {
		t.Errorf("the log does not tell the cause and the stack: %s", log)
	}
}

type lockedWriter struct {
	w  io.Writer
	mu *sync.Mutex
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}

func TestServeKeepsTheConnectionOfABadRequest(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{})
	c := d.raw()
	for _, test := range []struct {
		request string
		code    Code
		says    string
	}{
		{`{"op":"make_coffee"}`, CodeUnsupported, `"make_coffee"`},
		{`{"op":"` + strings.Repeat("x", 1<<20) + `"}`, CodeUnsupported, "xxx"},
		{`{"op":"attach_container","service":"s","join_global":true}`, CodeInvalid, "handle"},
		{`{"op":"release_ip","ip":"` + strings.Repeat("x", 1<<20) + `"}`, CodeInvalid, "xxx"},
		{`{"service":"web"}`, CodeInvalid, "operation"},
		{`17`, CodeInvalid, "request"},
		{`null`, CodeInvalid, "operation"},
	} {
		c.send(document(`{"frame":"request","id":5,"request":` + test.request + `}`))
		failure := c.failure(5, test.code)
		if !strings.Contains(failure.Message, test.says) || len(failure.Message) > 5000 {
			t.Errorf("%.60s: message of %d bytes %.200q, want %q in it", test.request, len(failure.Message), failure.Message, test.says)
		}
	}
	c.ask(6, &Ready{})
	if id, resp := c.answer(); id != 6 || resp.Result() != "ok" {
		t.Errorf("after all that: %d %v", id, resp)
	}
}

func TestServeClosesOnlyTheConnectionOfABadFrame(t *testing.T) {
	patient := startDaemon(t, nothing, ServeOptions{FrameTimeout: patience})
	hasty := startDaemon(t, nothing, ServeOptions{FrameTimeout: 50 * time.Millisecond})
	other, another := patient.client(), hasty.client()
	for _, test := range []struct {
		name string
		send []byte
		half bool   // the sender ends its side
		says string // "in time" is asked of the hasty daemon
	}{
		{"too large", []byte{1, 0, 0x80, 0}, false, "too large"},
		{"far too large", append([]byte{0xff, 0xff, 0xff, 0xff}, "junk that nobody reads"...), false, "too large"},
		{"empty", document(""), false, "decode"},
		{"not JSON", document("GET / HTTP/1.1"), false, "decode"},
		{"no object", document("[]"), false, "decode"},
		{"null", document("null"), false, "request belongs"},
		{"no frame", document("{}"), false, "request belongs"},
		{"negative number", document(`{"frame":"request","id":-1,"request":{"op":"status"}}`), false, "decode"},
		{"a response", document(`{"frame":"response","id":1,"response":{"result":"ok"}}`), false, "request belongs"},
		{"an event", document(`{"frame":"event","event":"lost","count":1}`), false, "request belongs"},
		{"truncated length", []byte{5, 0}, true, "truncated"},
		{"truncated body", document("{}")[:5], true, "truncated"},
		{"slow with the length", []byte{5}, false, "in time"},
		{"slow with the body", document("{}")[:5], false, "in time"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, bystander := patient, other
			if test.says == "in time" {
				d, bystander = hasty, another
			}
			c := newRawConn(t, d.raw().Conn)
			c.send(test.send)
			if test.half {
				half, ok := c.Conn.(interface{ CloseWrite() error })
				if !ok {
					t.Skip("a named pipe cannot be closed by halves: who closes his end cannot read what is said to it")
				}
				if err := half.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			if failure := c.failure(0, CodeInvalid); !strings.Contains(failure.Message, test.says) {
				t.Errorf("message %q, want %q in it", failure.Message, test.says)
			}
			// The rest may be a reset, for what was sent lies unread.
			if n, err := io.Copy(io.Discard, c); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("connection is open: %d bytes, %v", n, err)
			}
			if err := bystander.Ready(t.Context()); err != nil {
				t.Errorf("another connection: %v", err)
			}
		})
	}
}

func TestServeReadsASlowFrameInTime(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{FrameTimeout: patience})
	c := d.raw()
	frame, err := encodeRequest(3, &UnregisterDNS{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range frame {
		c.send(frame[i : i+1])
	}
	if id, resp := c.answer(); id != 3 || resp.Result() != "ok" {
		t.Errorf("answer %d %v", id, resp)
	}
}

func TestServeLeavesAnIdleConnectionForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		stop := serveOn(t, newBrokenListener(step{conn: theirs}), ServeOptions{})
		c := &rawConn{ours, t}
		for id := range uint64(3) {
			time.Sleep(1000 * time.Hour)
			c.ask(id, &Ready{})
			if got, resp := c.answer(); got != id || resp.Result() != "ok" {
				t.Errorf("answer %d %v", got, resp)
			}
		}
		stop()
	})
}

func TestServeDropsASlowReader(t *testing.T) {
	big := &StatusSnapshot{Waiting: []string{strings.Repeat("x", 4<<20)}}
	h := func(_ context.Context, req Request) (Response, error) {
		if _, ok := req.(*Status); ok {
			return big, nil
		}
		return nil, nil
	}
	d := startDaemon(t, h, ServeOptions{WriteTimeout: 50 * time.Millisecond})
	c := d.raw()
	c.ask(1, &Status{}) // and never reads
	d.mustServe()
	eventually(t, "the end of the slow reader's connection", func() bool {
		_, err := c.Write(document(`{"frame":"request","id":2,"request":{"op":"ready"}}`))
		return brokenPipe(err)
	})
	// Who does read gets it all.
	patient := startDaemon(t, h, ServeOptions{WriteTimeout: patience}).client()
	got, err := patient.Status(t.Context())
	if err != nil || len(got.Waiting[0]) != 4<<20 {
		t.Errorf("a reader that keeps up got %v", err)
	}
}

func TestServeTooLargeAResponse(t *testing.T) {
	d := startDaemon(t, func(context.Context, Request) (Response, error) {
		return &BridgeName{Name: strings.Repeat("x", MaxFrame)}, nil
	}, ServeOptions{})
	c := d.client()
	failure := wantCode(t, c.Ready(t.Context()), CodeInternal)
	if !strings.Contains(failure.Message, "too large") {
		t.Errorf("message %q", failure.Message)
	}
}

func TestServeThousandIdleConnections(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{})
	var conns []*rawConn
	for range 1000 {
		conns = append(conns, d.raw())
	}
	d.mustServe()
	for i, c := range conns { // and none of them was lost
		c.ask(uint64(i), &Ready{})
	}
	for i, c := range conns {
		if id, resp := c.answer(); id != uint64(i) || resp.Result() != "ok" {
			t.Fatalf("connection %d: %d %v", i, id, resp)
		}
	}
	d.stop()
	for _, c := range conns {
		c.closed()
	}
}

func TestServeEvictsTheLongestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var steps []step
		var conns []*rawConn
		for range 7 {
			ours, theirs := net.Pipe()
			steps = append(steps, step{after: time.Second, conn: theirs})
			conns = append(conns, &rawConn{ours, t})
		}
		steps[2].after = time.Minute
		stop := serveOn(t, newBrokenListener(steps...), ServeOptions{MaxConns: 3, FrameTimeout: 10 * time.Second})
		speak := func(c *rawConn) {
			t.Helper()
			c.ask(1, &Ready{})
			c.answer()
		}
		mute, first, young := conns[0], conns[1], conns[2]
		speak(first)
		mute.closed() // for conns[3]; it had time to ask
		speak(conns[3])
		first.closed() // for conns[4]; young has had no time yet
		frame, err := encodeRequest(1, &Ready{})
		if err != nil {
			t.Fatal(err)
		}
		young.send(frame[:5])
		time.Sleep(time.Millisecond)
		speak(conns[4])
		conns[3].closed() // for conns[5]
		conns[4].closed() // for conns[6]; young is in the middle of a frame
		young.send(frame[5:])
		if id, resp := young.answer(); id != 1 || resp.Result() != "ok" {
			t.Errorf("answer %d %v", id, resp)
		}
		for _, c := range conns[5:] {
			speak(c)
		}
		stop()
	})
}

func TestServeRefusesWhenAllConnectionsAreBusy(t *testing.T) {
	release, begun := make(chan struct{}), make(chan struct{}, 2)
	d := startDaemon(t, func(context.Context, Request) (Response, error) {
		begun <- struct{}{}
		<-release
		return nil, nil
	}, ServeOptions{MaxConns: 2})
	busy := []*rawConn{d.raw(), d.raw()}
	for _, c := range busy {
		c.ask(1, &Ready{})
		within(t, begun, "requests under way")
	}
	late := d.raw()
	if failure := late.failure(0, CodeUnavailable); !failure.Retryable {
		t.Error("the refusal is not retryable")
	}
	late.closed()
	c, err := Dial(t.Context(), d.path, DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(t.Context()); !errors.Is(err, ErrUnreachable) {
		wantCode(t, err, CodeUnavailable) // or the write failed first
	}
	_ = c.Close()
	close(release)
	for _, c := range busy {
		if _, resp := c.answer(); resp.Result() != "ok" {
			t.Errorf("busy connection: %v", resp)
		}
	}
}

func TestServeEndsTheContextOfALostConnection(t *testing.T) {
	begun, ended := make(chan struct{}, 1), make(chan error, 1)
	d := startDaemon(t, func(ctx context.Context, _ Request) (Response, error) {
		begun <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, nil
	}, ServeOptions{})
	c := d.raw()
	c.ask(1, &Ready{})
	within(t, begun, "the request")
	_ = c.Close()
	if err := within(t, ended, "the end of its context"); !errors.Is(err, context.Canceled) {
		t.Errorf("context ended with %v", err)
	}
}

func TestServeBoundsARequestsTime(t *testing.T) {
	d := startDaemon(t, func(ctx context.Context, _ Request) (Response, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}, ServeOptions{RequestTimeout: 10 * time.Millisecond})
	c := d.client()
	if failure := wantCode(t, c.Ready(t.Context()), CodeUnavailable); !failure.Retryable {
		t.Error("not retryable")
	}
}

func TestServeEndFinishesWhatIsBegun(t *testing.T) {
	begun, release := make(chan struct{}, 1), make(chan struct{})
	d := startDaemon(t, func(ctx context.Context, _ Request) (Response, error) {
		begun <- struct{}{}
		<-release
		return nil, ctx.Err() // which is nil: it has time
	}, ServeOptions{DrainTimeout: patience})
	idle, busy := d.raw(), d.raw()
	busy.ask(1, &Ready{})
	within(t, begun, "the request")
	d.cancel()
	idle.closed()
	if _, err := dialSocket(t.Context(), d.path); err == nil {
		t.Error("still accepts connections")
	}
	select {
	case err := <-d.ended:
		t.Fatalf("Serve ended under a request: %v", err)
	default:
	}
	close(release)
	if id, resp := busy.answer(); id != 1 || resp.Result() != "ok" {
		t.Errorf("answer %d %v", id, resp)
	}
	busy.closed()
	d.stop()
}

func TestServeEndCancelsWhatTakesTooLong(t *testing.T) {
	begun := make(chan struct{}, 1)
	d := startDaemon(t, func(ctx context.Context, _ Request) (Response, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}, ServeOptions{DrainTimeout: 10 * time.Millisecond})
	c := d.raw()
	c.ask(9, &Ready{})
	within(t, begun, "the request")
	d.stop()
	c.failure(9, CodeUnavailable)
}

// brokenListener gives out connections and errors as told.
type brokenListener struct {
	steps  []step
	closed chan struct{}
	once   sync.Once
	close  func() // the rest of Close
}

type step struct {
	after time.Duration // since the step before
	conn  net.Conn
	err   error
}

func newBrokenListener(steps ...step) *brokenListener {
	return &brokenListener{steps: steps, closed: make(chan struct{}), close: func() {}}
}

func (l *brokenListener) Accept() (net.Conn, error) {
	if len(l.steps) > 0 {
		next := l.steps[0]
		l.steps = l.steps[1:]
		time.Sleep(next.after)
		return next.conn, next.err
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *brokenListener) Close() error {
	l.once.Do(func() { close(l.closed); l.close() })
	return nil
}

func (l *brokenListener) Addr() net.Addr { return &net.UnixAddr{} }

// serveOn runs Serve until the returned function is called.
func serveOn(t *testing.T, l net.Listener, opt ServeOptions) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, HandlerFunc(nothing), opt) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

func TestServeSurvivesAShortageOfDescriptors(t *testing.T) {
	idle, idleTheirs := net.Pipe()
	ours, theirs := net.Pipe()
	stop := serveOn(t, newBrokenListener(
		step{conn: idleTheirs},
		step{err: &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", shortages()[0])}},
		step{err: shortages()[len(shortages())-1]},
		step{conn: theirs},
	), ServeOptions{})
	newRawConn(t, idle).closed() // it gave its descriptor up
	c := newRawConn(t, ours)
	c.ask(1, &Ready{})
	if id, resp := c.answer(); id != 1 || resp.Result() != "ok" {
		t.Errorf("answer %d %v", id, resp)
	}
	stop()
}

func TestServeReturnsOnceTheListenerIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := false
		l := newBrokenListener()
		l.close = func() { time.Sleep(time.Hour); closed = true }
		serveOn(t, l, ServeOptions{})()
		if !closed {
			t.Error("Serve returned while the socket was being removed")
		}
	})
}

func TestServerCountsConnections(t *testing.T) {
	s := &server{handler: HandlerFunc(nothing), opt: ServeOptions{}.withDefaults(), ctx: t.Context(), conns: make(map[*serverConn]struct{})}
	for range 5 {
		ours, theirs := net.Pipe()
		s.admit(theirs)
		_ = ours.Close()
	}
	s.running.Wait()
	if len(s.conns) != 0 {
		t.Errorf("%d connections after the end of all", len(s.conns))
	}
	for range 2 {
		_, theirs := net.Pipe()
		s.conns[newServerConn(s, theirs)] = struct{}{}
	}
	evicted := 0
	for range 4 {
		if s.evict() {
			evicted++
		}
	}
	if evicted != 2 {
		t.Errorf("evicted %d times with 2 idle connections", evicted)
	}
}

func TestServeReturnsWhatBreaksTheListener(t *testing.T) {
	broken := errors.New("listener broke")
	l := newBrokenListener(step{err: broken})
	if err := Serve(t.Context(), l, HandlerFunc(nothing), ServeOptions{}); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	select {
	case <-l.closed:
	default:
		t.Error("the listener was left open")
	}
}

func TestHello(t *testing.T) {
	d := startDaemon(t, refuseWith(errors.New("not asked")), ServeOptions{BootID: "boot-1", Events: NewBroadcaster(1)})
	got, err := d.client().Hello(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := &Welcome{ProtocolVersion: 1, BootID: "boot-1", Capabilities: []string{"check_container", "gc_containers", "linux_netns", "ready", "list_guests", "list_dns", "subscribe"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("welcome (-want +got):\n%s", diff)
	}
	boots := make(map[string]bool)
	for range 2 {
		other, err := startDaemon(t, nothing, ServeOptions{}).client().Hello(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		boots[other.BootID] = true
	}
	if len(boots) != 2 || boots[""] {
		t.Errorf("boot ids %v", boots)
	}
}

// FuzzServe throws bytes at a connection. Whatever they are, the server ends
// with the connection, and answers only in frames.
func FuzzServe(f *testing.F) {
	for _, v := range requestVectors() {
		frame, _ := encodeRequest(1, v.req)
		f.Add(frame)
		f.Add(frame[:len(frame)-1])
		f.Add(append(frame, frame...))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add(document(`{"frame":"request","id":1,"request":{"op":"make_coffee"}}`))
	f.Fuzz(func(t *testing.T, stream []byte) {
		ours, theirs := net.Pipe()
		stop := serveOn(t, newBrokenListener(step{conn: theirs}), ServeOptions{FrameTimeout: patience})
		answers := make(chan error, 1)
		go func() {
			for {
				env, err := readFrame(ours)
				if err == nil && env.Frame == frameResponse {
					_, err = decodeResponse(env.Response)
				}
				if err != nil {
					answers <- err
					return
				}
			}
		}()
		_, _ = ours.Write(stream)
		stop()
		if err := <-answers; !errors.Is(err, io.EOF) {
			t.Fatalf("the server's side broke: %v", err)
		}
		_ = ours.Close()
	})
}
