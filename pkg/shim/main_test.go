package shim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long a test waits for what must come, in a slow virtual
// machine too.
const patience = time.Minute

// envDialAs makes the test binary connect to a socket and say what came of it.
const envDialAs = "ZLAYER_TEST_DIAL"

// dialAsOther is the test binary as a process of another user.
func dialAsOther(path string) int {
	c, err := Dial(context.Background(), path, DialOptions{Attempts: 1, CallTimeout: patience})
	if err == nil {
		err = c.Ready(context.Background())
		_ = c.Close()
	}
	fmt.Println(err)
	return 0
}

func TestMain(m *testing.M) {
	if path := os.Getenv(envDialAs); path != "" {
		os.Exit(dialAsOther(path))
	}
	goleak.VerifyTestMain(m, notLeaks()...)
}

// daemon is Serve in a test, on a socket of its own.
type daemon struct {
	t      *testing.T
	path   string
	cancel context.CancelFunc
	ended  chan error
}

// startDaemon serves h at a fresh path until the test ends.
func startDaemon(t *testing.T, h HandlerFunc, opt ServeOptions) *daemon {
	t.Helper()
	return startDaemonAt(t, socketPath(t), h, opt)
}

func startDaemonAt(t *testing.T, path string, h HandlerFunc, opt ServeOptions) *daemon {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	d := &daemon{t: t, path: path, cancel: cancel, ended: make(chan error, 1)}
	go func() { d.ended <- Serve(ctx, l, h, opt) }()
	t.Cleanup(d.stop)
	return d
}

// stop ends the daemon and waits for it; a second call does nothing.
func (d *daemon) stop() {
	d.cancel()
	select {
	case err, ok := <-d.ended:
		if ok && err != nil {
			d.t.Errorf("Serve: %v", err)
		}
		if ok {
			close(d.ended)
		}
	case <-time.After(patience):
		d.t.Error("Serve did not end")
	}
}

// socketPath is where nobody listens yet.
func socketPath(t testing.TB) string {
	t.Helper()
	path, remove, err := ScratchSocket()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(remove)
	return path
}

// client connects to the daemon.
func (d *daemon) client() *Client {
	d.t.Helper()
	c, err := Dial(d.t.Context(), d.path, DialOptions{CallTimeout: patience})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = c.Close() })
	return c
}

// mustServe fails the test unless the daemon answers a new client.
func (d *daemon) mustServe() {
	d.t.Helper()
	c := d.client()
	if err := c.Ready(d.t.Context()); err != nil {
		d.t.Errorf("the daemon does not serve others: %v", err)
	}
	_ = c.Close()
}

// rawConn is a connection without a Client.
type rawConn struct {
	net.Conn
	t *testing.T
}

func (d *daemon) raw() *rawConn {
	d.t.Helper()
	conn, err := dialSocket(d.t.Context(), d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	return newRawConn(d.t, conn)
}

func newRawConn(t *testing.T, conn net.Conn) *rawConn {
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &rawConn{conn, t}
}

// document frames any text.
func document(text string) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...)
}

func (c *rawConn) send(data []byte) {
	c.t.Helper()
	if _, err := c.Write(data); err != nil {
		c.t.Fatal(err)
	}
}

// ask sends a request of the number id.
func (c *rawConn) ask(id uint64, req Request) {
	c.t.Helper()
	frame, err := encodeRequest(id, req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(frame)
}

// answer reads the next response.
func (c *rawConn) answer() (uint64, Response) {
	c.t.Helper()
	env, err := readFrame(c)
	if err != nil {
		c.t.Fatalf("read answer: %v", err)
	}
	resp, err := decodeResponse(env.Response)
	if err != nil {
		c.t.Fatal(err)
	}
	return env.ID, resp
}

// failure reads the next response, which must be an error of the number id.
func (c *rawConn) failure(id uint64, code Code) Error {
	c.t.Helper()
	got, resp := c.answer()
	failure, ok := resp.(*Error)
	if !ok || got != id || failure.Code != code {
		c.t.Fatalf("answer %d %#v, want error %d with code %s", got, resp, id, code)
	}
	return *failure
}

// closed waits for the other side to end the connection.
func (c *rawConn) closed() {
	c.t.Helper()
	if n, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) || n > 0 {
		c.t.Fatalf("connection is open: %d bytes more, %v", n, err)
	}
}

// within fails the test if nothing comes from ch.
func within[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatal("waited in vain: " + what)
		panic("unreachable")
	}
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain: " + what)
		}
	}
}

// nothing answers every request with *OK.
func nothing(context.Context, Request) (Response, error) { return nil, nil }

// refuseWith answers every request with err.
func refuseWith(err error) HandlerFunc {
	return func(context.Context, Request) (Response, error) { return nil, err }
}

// wantCode fails the test unless err is an *Error of the code.
func wantCode(t *testing.T, err error, code Code) Error {
	t.Helper()
	failure, ok := errors.AsType[*Error](err)
	if !ok || failure.Code != code {
		t.Fatalf("got %v, want code %s", describe(err), code)
	}
	return *failure
}

func describe(err error) string {
	if failure, ok := errors.AsType[*Error](err); ok {
		return fmt.Sprintf("%s: %s", failure.Code, failure.Message)
	}
	return fmt.Sprint(err)
}
