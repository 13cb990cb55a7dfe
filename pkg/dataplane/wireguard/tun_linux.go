package wireguard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const tunPath = "/dev/net/tun"

// openTUN attaches to the TUN name, which is made if it does not exist. What it
// makes vanishes with the descriptor until persist is called.
func openTUN(name string) (fd int, err error) {
	fd, err = unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", tunPath, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("attach to TUN %s: another process holds it: %w", name, err)
	case err != nil:
		err = fmt.Errorf("attach to TUN %s: %w", name, err)
	default:
		return fd, nil
	}
	return -1, errors.Join(err, unix.Close(fd))
}

// tunDevice is wireguard-go's TUN with the packets in flight bounded. It does
// not watch the link as wireguard-go's own does: that one closes the device when
// its netlink socket overflows, which a burst of pods is enough for.
type tunDevice struct {
	tun.Device
	out, in *gate
	stop    chan struct{}

	mu     sync.Mutex // guards closed and sending on events
	closed bool
	events chan tun.Event
}

// newTUNDevice takes fd over.
func newTUNDevice(fd int, out, in *gate) (*tunDevice, error) {
	device, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("use TUN: %w", err)
	}
	return &tunDevice{Device: device, out: out, in: in, events: make(chan tun.Event, 1), stop: make(chan struct{})}, nil
}

// BatchSize returns what the package's buffers are cut for.
func (t *tunDevice) BatchSize() int { return batchSize }

// Events returns a channel that carries changes of the MTU alone: the device is
// brought up by its owner, and stays up.
func (t *tunDevice) Events() <-chan tun.Event { return t.events }

// mtuChanged makes wireguard-go read the link's MTU again.
func (t *tunDevice) mtuChanged() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	select {
	case t.events <- tun.EventMTUUpdate:
	default: // one is waiting already
	}
}

// persist makes the TUN outlive its descriptors.
func (t *tunDevice) persist() error {
	conn, err := t.File().SyscallConn()
	if err == nil {
		controlErr := conn.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) })
		err = errors.Join(controlErr, err)
	}
	if err != nil {
		return fmt.Errorf("make TUN persistent: %w", err)
	}
	return nil
}

// Close detaches from the TUN. Closing twice is fine.
func (t *tunDevice) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	close(t.stop)
	close(t.events)
	return t.Device.Close()
}

// Read waits until there is room for more packets, then reads. wireguard-go
// closes the device on any error, so a packet that it cannot take apart is
// dropped here.
func (t *tunDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if !t.out.wait(t.stop) {
		return 0, os.ErrClosed
	}
	n, err := t.Device.Read(bufs, sizes, offset)
	var failed *fs.PathError
	switch {
	case err == nil, errors.Is(err, os.ErrClosed), errors.As(err, &failed):
	case errors.Is(err, tun.ErrTooManySegments): // the first ones are good
	default:
		return 0, nil
	}
	t.out.enter(bufs[:n], t.in)
	return n, err
}

// Write passes packets to the kernel.
func (t *tunDevice) Write(bufs [][]byte, offset int) (int, error) {
	n, err := t.Device.Write(bufs, offset)
	t.in.leave(bufs)
	return n, err
}
