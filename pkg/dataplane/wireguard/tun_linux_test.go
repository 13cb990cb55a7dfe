package wireguard

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// scriptedTUN reads n packets and an error.
type scriptedTUN struct {
	tun.Device
	n   int
	err error
}

func (s *scriptedTUN) Read([][]byte, []int, int) (int, error) { return s.n, s.err }

// wireguard-go closes a device whose TUN returns an error, so only errors of
// the TUN itself may come through.
func TestReadDropsWhatCannotBeTakenApart(t *testing.T) {
	gone := &fs.PathError{Op: "read", Path: tunPath, Err: unix.EBADFD}
	for _, c := range []struct {
		name      string
		inner     scriptedTUN
		n, inside int
		err       error
	}{
		{"good packets", scriptedTUN{n: 3}, 3, 3, nil},
		{"a packet with a bad header", scriptedTUN{err: errors.New("tcp header len is invalid: 0")}, 0, 0, nil},
		{"too many segments", scriptedTUN{n: 2, err: tun.ErrTooManySegments}, 2, 2, tun.ErrTooManySegments},
		{"closed", scriptedTUN{err: os.ErrClosed}, 0, 0, os.ErrClosed},
		{"link deleted", scriptedTUN{err: gone}, 0, 0, gone},
	} {
		t.Run(c.name, func(t *testing.T) {
			device := &tunDevice{Device: &c.inner, out: newGate(markOut, 10), in: newGate(markIn, 10)}
			n, err := device.Read(buffers(5), make([]int, 5), 16)
			if n != c.n || !errors.Is(err, c.err) {
				t.Errorf("read %d packets and %v, want %d and %v", n, err, c.n, c.err)
			}
			if inside := device.out.inside.Load(); inside != int64(c.inside) {
				t.Errorf("%d packets count as inside, want %d", inside, c.inside)
			}
		})
	}
}
