package shim

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shortDir is a directory whose path leaves room for a socket's name, which
// t.TempDir with a long test name does not.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestListenModes(t *testing.T) {
	old := syscall.Umask(0) // the modes must not lean on it
	defer syscall.Umask(old)
	dir := filepath.Join(shortDir(t), "run", "zlayer")
	listen(t, filepath.Join(dir, "overlayd.sock"))
	for path, want := range map[string]fs.FileMode{
		dir:                                      fs.ModeDir | 0o700,
		filepath.Join(dir, "overlayd.sock"):      fs.ModeSocket | 0o600,
		filepath.Join(dir, "overlayd.sock.lock"): 0o600,
	} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %s, want %s", path, info.Mode(), want)
		}
	}
}

func TestListenLeavesAnExistingDirectoryAlone(t *testing.T) {
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	listen(t, filepath.Join(dir, "s"))
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %s, %v, want 0755", info.Mode(), err)
	}
}

func TestListenDoesNotStealALiveSocket(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{})
	for range 3 {
		if _, err := Listen(d.path); !errors.Is(err, ErrInUse) {
			t.Fatalf("second daemon: %v, want ErrInUse", err)
		}
	}
	d.mustServe()
}

func TestListenWaitsForTheLockEvenIfTheSocketIsGone(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{})
	if err := os.Remove(d.path); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(d.path); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
}

func TestListenDoesNotStealFromADaemonWithoutTheLock(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path) // as ZLayer's daemon does
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("its socket: %v", err)
	}
}

func TestListenDoesNotStealWhenTheBacklogIsFull(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for { // a daemon too busy to accept
		conn, err := dialSocket(t.Context(), path)
		if err != nil {
			if !errors.Is(err, syscall.EAGAIN) {
				t.Fatal(err)
			}
			break
		}
		defer func() { _ = conn.Close() }()
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
}

func TestListenReplacesAStaleSocket(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	startDaemonAt(t, path, nothing, ServeOptions{}).mustServe()
}

func TestListenAgainAfterClose(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	for range 3 {
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket stays after Close: %v", err)
		}
	}
}

func TestListenLeavesWhatIsNoSocket(t *testing.T) {
	for name, place := range map[string]func(path string) error{
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"file":      func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) },
		"link":      func(path string) error { return os.Symlink("/nowhere", path) },
		"fifo":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(shortDir(t), "s")
			if err := place(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Listen(path); err == nil || errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want an error that names the path", err)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("it was replaced: %v", err)
			}
		})
	}
}

func TestListenRefusesBadPaths(t *testing.T) {
	dir := shortDir(t)
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, "linked.lock")); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"none":            "",
		"abstract":        "@overlayd",
		"too long":        "/tmp/" + strings.Repeat("x", longestPath),
		"below a file":    filepath.Join(dir, "file", "s"),
		"lock is a link":  filepath.Join(dir, "linked"),
		"directory there": dir,
	} {
		t.Run(name, func(t *testing.T) {
			if l, err := Listen(path); err == nil {
				t.Errorf("listens on %q", path)
				_ = l.Close()
			}
		})
	}
	if _, err := os.Lstat(filepath.Join(dir, "elsewhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a lock was made through a link")
	}
	_ = os.Remove(dir + ".lock")
}

func TestListenerAdmits(t *testing.T) {
	l := &listener{uid: 1000}
	for uid, want := range map[uint32]bool{0: true, 1000: true, 1001: false, 65534: false} {
		if got := l.admits(uid); got != want {
			t.Errorf("uid %d: %v, want %v", uid, got, want)
		}
	}
	ours := &listener{uid: uint32(os.Geteuid())}
	listening := listen(t, filepath.Join(shortDir(t), "s")).(*listener)
	conn, err := dialSocket(t.Context(), listening.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	uid, err := peerUID(conn.(*net.UnixConn))
	if err != nil || !ours.admits(uid) {
		t.Errorf("this process is uid %d, %v: not admitted", uid, err)
	}
}

// TestListenerTurnsOthersAway lets another user reach the socket, and sees
// that the listener does not talk to it. Only root can become another user;
// TestListenerAdmits covers the rule for the rest.
func TestListenerTurnsOthersAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: this process cannot become another user (CI runs as root)")
	}
	d := startDaemon(t, nothing, ServeOptions{})
	for path, mode := range map[string]fs.FileMode{d.path: 0o666, filepath.Dir(d.path): 0o755, filepath.Dir(filepath.Dir(d.path)): 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(filepath.Dir(filepath.Dir(d.path)), "dialer")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, self, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		uid  uint32
		want string
	}{{0, "<nil>"}, {1234, ErrUnreachable.Error()}} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, binary)
		cmd.Env = []string{envDialAs + "=" + d.path}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: test.uid, Gid: test.uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("uid %d: %v\n%s", test.uid, err, out)
		}
		if !strings.Contains(string(out), test.want) || strings.Contains(string(out), "permission denied") {
			t.Errorf("uid %d was told %q, want %q", test.uid, out, test.want)
		}
	}
	d.mustServe()
}

// seen is what a handler learned of the file that came with a request.
type seen struct {
	file       *os.File
	inode      uint64
	closeOnExe bool
	err        error
}

// inspect answers every request and reports the file of its handle.
func inspect(report chan<- seen) HandlerFunc {
	return func(_ context.Context, req Request) (Response, error) {
		s := seen{file: fileOf(req)}
		if s.file != nil {
			s.inode, s.err = inode(s.file)
			flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, s.file.Fd(), syscall.F_GETFD, 0)
			s.closeOnExe = errno == 0 && flags&syscall.FD_CLOEXEC != 0
		}
		report <- s
		return nil, nil
	}
}

func inode(file *os.File) (uint64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

func ownNetns(t *testing.T) *os.File {
	t.Helper()
	file, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return file
}

// leaveOpen keeps the garbage collector from closing what the code forgot.
func leaveOpen(t *testing.T) {
	t.Helper()
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
}

// descriptors counts this process's open files.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNamespaceCrossesTheSocket(t *testing.T) {
	report := make(chan seen, 1)
	d := startDaemon(t, inspect(report), ServeOptions{})
	c := d.client()
	netns := ownNetns(t)
	want, err := inode(netns)
	if err != nil {
		t.Fatal(err)
	}
	handle := &LinuxNetns{ContainerID: "c1", IfName: "eth0", File: netns}
	for _, req := range []Request{&AttachContainer{Handle: handle}, &CheckContainer{Handle: handle}, &DetachContainer{Handle: handle}} {
		if _, err := c.Call(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		got := within(t, report, "the handler")
		if got.file == nil || got.err != nil || got.inode != want || !got.closeOnExe {
			t.Errorf("%s: handler saw %+v, want inode %d, close-on-exec", req.Op(), got, want)
		}
		if _, err := got.file.Stat(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: answered with the server's copy open: %v", req.Op(), err)
		}
	}
	if _, err := netns.Stat(); err != nil {
		t.Errorf("the client's own file: %v", err)
	}
	handle.File = nil
	if err := c.Detach(t.Context(), handle); err != nil {
		t.Fatal(err)
	}
	if got := within(t, report, "the handler"); got.file != nil {
		t.Error("a file where none was sent")
	}
}

func TestNamespaceWithALargeFrame(t *testing.T) {
	report := make(chan seen, 1)
	c := startDaemon(t, inspect(report), ServeOptions{}).client()
	_, err := c.Call(t.Context(), &AttachContainer{Handle: &LinuxNetns{Netns: strings.Repeat("x", 2<<20), File: ownNetns(t)}})
	if err != nil {
		t.Fatal(err)
	}
	if got := within(t, report, "the handler"); got.file == nil {
		t.Error("the file was lost")
	}
}

func TestAFileThatIsClosedIsNotSent(t *testing.T) {
	d := startDaemon(t, nothing, ServeOptions{})
	c := d.client()
	file := ownNetns(t)
	_ = file.Close()
	if err := c.Detach(t.Context(), &LinuxNetns{ContainerID: "c1", File: file}); !errors.Is(err, os.ErrClosed) || errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v, want os.ErrClosed", err)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestUnwantedFilesAreClosed(t *testing.T) {
	leaveOpen(t)
	report := make(chan seen, 4)
	d := startDaemon(t, inspect(report), ServeOptions{})
	netns := ownNetns(t)
	attach, err := encodeRequest(1, &AttachContainer{Handle: &LinuxNetns{ContainerID: "c1"}})
	if err != nil {
		t.Fatal(err)
	}
	status, err := encodeRequest(1, &Status{})
	if err != nil {
		t.Fatal(err)
	}
	unknown := document(`{"frame":"request","id":1,"request":{"op":"make_coffee"}}`)
	for _, test := range []struct {
		name  string
		frame []byte
		at    int // the byte that the files ride on
		files int
		wants bool // the handler gets one
		runs  bool
	}{
		{"two", attach, 0, 2, true, true},
		{"two hundred", attach, 0, 200, true, true},
		{"in the middle of a frame", attach, 10, 1, false, true},
		{"with a request of nothing", status, 0, 1, false, true},
		{"with an unknown operation", unknown, 0, 1, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := d.raw()
			c.ask(9, &Hello{})
			c.answer() // the server's end is open: count from here
			before := descriptors(t)
			fds := make([]int, test.files)
			for i := range fds {
				fds[i] = int(netns.Fd())
			}
			c.send(test.frame[:test.at])
			if _, _, err := c.Conn.(*net.UnixConn).WriteMsgUnix(test.frame[test.at:], syscall.UnixRights(fds...), nil); err != nil {
				t.Fatal(err)
			}
			if _, resp := c.answer(); test.runs != (resp.Result() == "ok") {
				t.Errorf("answer %v", resp)
			}
			if test.runs {
				if got := within(t, report, "the handler"); test.wants != (got.file != nil) {
					t.Errorf("handler got %v", got.file)
				}
			}
			eventually(t, "the descriptors closed", func() bool { return descriptors(t) <= before })
		})
	}
	t.Run("with a frame that never ends", func(t *testing.T) {
		c := d.raw()
		c.ask(9, &Hello{})
		c.answer()
		before := descriptors(t)
		if _, _, err := c.Conn.(*net.UnixConn).WriteMsgUnix(attach[:6], syscall.UnixRights(int(netns.Fd())), nil); err != nil {
			t.Fatal(err)
		}
		if err := c.Conn.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		c.failure(0, CodeInvalid)
		eventually(t, "the descriptors closed", func() bool { return descriptors(t) <= before })
	})
}

func TestAFileNeedsASocket(t *testing.T) {
	ours, theirs := net.Pipe()
	defer func() { _ = ours.Close(); _ = theirs.Close() }()
	if err := writeWithFile(ours, []byte("x"), ownNetns(t)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
}

func TestRequestsLeftUnreadAtTheEndLoseTheirFiles(t *testing.T) {
	leaveOpen(t)
	begun, release := make(chan struct{}, 2), make(chan struct{})
	d := startDaemon(t, func(context.Context, Request) (Response, error) {
		begun <- struct{}{}
		<-release
		return nil, nil
	}, ServeOptions{MaxRequests: 1, DrainTimeout: patience})
	netns := ownNetns(t)
	before := descriptors(t)
	c := d.raw()
	c.ask(1, &Ready{})
	within(t, begun, "the first request")
	attach, err := encodeRequest(2, &AttachContainer{Handle: &LinuxNetns{ContainerID: "c1", File: netns}})
	if err != nil {
		t.Fatal(err)
	}
	if err := writeWithFile(c.Conn, attach, netns); err != nil {
		t.Fatal(err)
	}
	// Read, but above the bound: our end, the server's end, and the file.
	eventually(t, "the second request read", func() bool { return descriptors(t) >= before+3 })
	d.cancel()
	// The listener's two are closed as well.
	eventually(t, "its file closed", func() bool { return descriptors(t) <= before })
	close(release)
	c.answer()
	d.stop()
	if len(begun) > 0 {
		t.Error("the second request ran after the end")
	}
	_ = c.SetDeadline(time.Time{})
}
