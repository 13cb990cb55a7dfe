package wireguard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	// replyRoom is more than a reply takes with what it brings back.
	replyRoom = 256
	// reqTimedOut is IP_REQ_TIMED_OUT of ipexport.h.
	reqTimedOut = syscall.Errno(11010)
)

// Probe sends one ICMP echo request from the device's address to each of targets,
// which are addresses of peers on the overlay, and returns who answered before ctx
// ends, as soon as all have. Of many targets some may not have their turn before,
// and have no result. An error is about this node, and says nothing of the peers.
func (d *Device) Probe(ctx context.Context, targets map[wgtypes.Key]netip.Addr) (map[wgtypes.Key]ProbeResult, error) {
	echo, err := newEchoSender(d.cfg.Addresses)
	if err != nil {
		return nil, fmt.Errorf("probe peers of %s: %w", d.cfg.Name, err)
	}
	results, err := probeEach(ctx, targets, echo.send)
	if err != nil {
		return nil, fmt.Errorf("probe peers of %s: %w", d.cfg.Name, err)
	}
	return results, nil
}

// echoSender sends echo requests by the IP Helper API, which needs no raw socket.
type echoSender struct {
	sources      [2]netip.Addr
	create       [2]*windows.LazyProc
	send4, send6 *windows.LazyProc
	closeFile    *windows.LazyProc
}

func newEchoSender(addrs []netip.Addr) (*echoSender, error) {
	api := windows.NewLazySystemDLL("iphlpapi.dll")
	e := &echoSender{
		create: [2]*windows.LazyProc{api.NewProc("IcmpCreateFile"), api.NewProc("Icmp6CreateFile")},
		send4:  api.NewProc("IcmpSendEcho2Ex"), send6: api.NewProc("Icmp6SendEcho2"), closeFile: api.NewProc("IcmpCloseHandle"),
	}
	for _, addr := range addrs {
		e.sources[family(addr)] = addr
	}
	return e, errors.Join(e.create[0].Find(), e.create[1].Find(), e.send4.Find(), e.send6.Find(), e.closeFile.Find())
}

// send sends one request and waits for its answer, which nothing ends before.
func (e *echoSender) send(_ context.Context, to netip.Addr, within time.Duration) error {
	fam := family(to)
	from := e.sources[fam]
	if !from.IsValid() {
		return fmt.Errorf("%w to %v: this node has no address of that family", errNotAsked, to)
	}
	handle, _, err := e.create[fam].Call()
	if windows.Handle(handle) == windows.InvalidHandle {
		return fmt.Errorf("%w: %w", errNoICMP, err)
	}
	defer func() { _, _, _ = e.closeFile.Call(handle) }()
	request := request{handle: handle, from: from, to: to, within: uint32(max(within.Milliseconds(), 1))}
	reply := make([]byte, replyRoom)
	count, err := e.ask(request, reply)
	switch {
	case count > 0:
		return helperStatus(fam, reply)
	case errors.Is(err, reqTimedOut):
		return errNoEcho
	}
	return fmt.Errorf("send an echo request to %v: %w", to, err)
}

// request is one echo request.
type request struct {
	handle   uintptr
	from, to netip.Addr
	within   uint32 // milliseconds
}

// ask calls Windows, which returns the number of replies.
func (e *echoSender) ask(r request, reply []byte) (count uintptr, err error) {
	data := []byte("zlayer")
	const none = 0 // event, routine, context, options
	if r.to.Is4() {
		from, to := r.from.As4(), r.to.As4()
		count, _, err = e.send4.Call(r.handle, none, none, none,
			uintptr(binary.NativeEndian.Uint32(from[:])), uintptr(binary.NativeEndian.Uint32(to[:])),
			uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), none,
			uintptr(unsafe.Pointer(&reply[0])), uintptr(len(reply)), uintptr(r.within))
		return count, err
	}
	from := windows.RawSockaddrInet6{Family: windows.AF_INET6, Addr: r.from.As16()}
	to := windows.RawSockaddrInet6{Family: windows.AF_INET6, Addr: r.to.As16()}
	count, _, err = e.send6.Call(r.handle, none, none, none,
		uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&to)),
		uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), none,
		uintptr(unsafe.Pointer(&reply[0])), uintptr(len(reply)), uintptr(r.within))
	return count, err
}
