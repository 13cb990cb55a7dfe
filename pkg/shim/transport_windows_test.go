package shim

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestListenDoesNotStealALivePipe(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{})
	if l, err := Listen(d.path); !errors.Is(err, ErrInUse) {
		t.Errorf("listens %v, %v, want ErrInUse", l != nil, err)
	}
	d.mustServe()
}

// TestListenDoesNotStealABusyPipe has a daemon that takes no connection.
func TestListenDoesNotStealABusyPipe(t *testing.T) {
	path := socketPath(t)
	_ = listen(t, path)
	if l, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("listens %v, %v, want ErrInUse", l != nil, err)
	}
}

func TestListenAgainAfterClose(t *testing.T) {
	path := socketPath(t)
	for range 3 {
		if err := listen(t, path).Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPipeIsForAdministrators reads the access that the system gave the pipe.
func TestPipeIsForAdministrators(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{})
	conn := d.raw().Conn
	got, err := windows.GetSecurityInfo(windows.Handle(conn.(interface{ Fd() uintptr }).Fd()), windows.SE_KERNEL_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		t.Fatal(err)
	}
	// The system turns GENERIC_ALL into all of a file's rights; Wine leaves it.
	const want = "O:BAD:P(A;;FA;;;SY)(A;;FA;;;BA)"
	if strings.ReplaceAll(got.String(), "GA", "FA") != want {
		t.Errorf("security %s, want %s", got, want)
	}
}

// TestDialRefusesAStrangersPipe: anybody may make a pipe of a name that nobody
// has. This process's user stands in for anybody.
func TestDialRefusesAStrangersPipe(t *testing.T) {
	path := socketPath(t)
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	if user.User.Sid.IsWellKnown(windows.WinLocalSystemSid) {
		t.Skip("runs as SYSTEM, who is no stranger")
	}
	l, err := winio.ListenPipe(path, &winio.PipeConfig{SecurityDescriptor: "O:" + user.User.Sid.String() + "D:P(A;;GA;;;WD)"})
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		if conn, err := l.Accept(); err == nil {
			_ = conn.Close()
		}
	}()
	if _, err := dialSocket(t.Context(), path); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v, want a refusal", err)
	}
	_ = l.Close()
	within(t, accepted, "the end of the pipe")
}

// TestDialWaitsForABusyPipe has a daemon that takes its first connection late.
func TestDialWaitsForABusyPipe(t *testing.T) {
	path := socketPath(t)
	l := listen(t, path)
	if _, err := dialOnce(t.Context(), path, time.Now()); !errors.Is(err, errPipeBusy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that it is busy", err)
	}
	dialed := make(chan error, 1)
	go func() {
		conn, err := dialOnce(t.Context(), path, time.Now().Add(patience))
		if err == nil {
			_ = conn.Close()
		}
		dialed <- err
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := within(t, dialed, "the connection"); err != nil {
		t.Error(err)
	}
}
