package wireguard

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
)

// uapiTries is how often the folder is made, which the removal of another
// device takes away when it is empty.
const uapiTries = 10

func uapiPath(name string) string { return filepath.Join(UAPIDir, name+".sock") }

// uapiServer answers wgctrl and wg for a wireguard-go device.
type uapiServer struct {
	listener *net.UnixListener
	made     os.FileInfo // of the socket, to notice when it is removed or replaced
	device   *device.Device
	running  sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// serveUAPI listens on name's socket, mode 0600. A socket that a dead process
// left is replaced; one that somebody answers on is an error.
func serveUAPI(name string, dev *device.Device) (*uapiServer, error) {
	listener, err := listenUAPI(uapiPath(name))
	if err != nil {
		return nil, fmt.Errorf("listen for wgctrl: %w", err)
	}
	made, err := os.Stat(uapiPath(name))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for wgctrl: %w", err), listener.Close())
	}
	u := &uapiServer{listener: listener, made: made, device: dev, conns: map[net.Conn]struct{}{}}
	u.running.Go(u.accept)
	return u, nil
}

func listenUAPI(path string) (*net.UnixListener, error) {
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	var listener *net.UnixListener
	err := error(unix.ENOENT)
	for try := 0; errors.Is(err, unix.ENOENT) && try < uapiTries; try++ {
		if err = os.MkdirAll(UAPIDir, 0o755); err != nil {
			return nil, err
		}
		listener, err = net.ListenUnix("unix", addr)
	}
	if errors.Is(err, unix.EADDRINUSE) {
		if conn, dialErr := net.DialUnix("unix", nil, addr); dialErr == nil {
			return nil, errors.Join(fmt.Errorf("another process serves %s", path), conn.Close())
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		listener, err = net.ListenUnix("unix", addr)
	}
	if err != nil {
		return nil, err
	}
	// Until here only the umask guards it; connecting takes the right to write, which no common umask leaves.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

func (u *uapiServer) accept() {
	for {
		conn, err := u.listener.Accept()
		if err != nil {
			return
		}
		u.mu.Lock()
		if u.conns == nil { // closed meanwhile
			u.mu.Unlock()
			_ = conn.Close()
			return
		}
		u.conns[conn] = struct{}{}
		u.mu.Unlock()
		u.running.Go(func() {
			u.device.IpcHandle(conn) // closes conn
			u.mu.Lock()
			defer u.mu.Unlock()
			delete(u.conns, conn)
		})
	}
}

// alive reports whether clients still find the socket.
func (u *uapiServer) alive() bool {
	now, err := os.Stat(u.listener.Addr().String())
	return err == nil && os.SameFile(now, u.made)
}

// close removes the socket and ends the connections.
func (u *uapiServer) close() error {
	u.listener.SetUnlinkOnClose(u.alive()) // not somebody else's
	err := u.listener.Close()
	u.mu.Lock()
	for conn := range u.conns {
		_ = conn.Close()
	}
	u.conns = nil
	u.mu.Unlock()
	u.running.Wait()
	return err
}
