package wireguard

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// batchSize is how many packets wireguard-go handles at once. Its own choice
	// is 128, and every goroutine that reads holds as many buffers of 64 KiB all
	// the time. One packet of the kernel's, 64 KiB in segments of 1,400 bytes,
	// makes 47.
	batchSize = 64
	// receivePause is the wait after a failed receive.
	receivePause = 10 * time.Millisecond
)

// bind is wireguard-go's UDP socket pair with the packets in flight bounded, in
// the namespace of the device.
//
// Being of a type of its own, it also keeps wireguard-go from following the
// routing table: that asks the kernel for the route to every peer whenever any
// IPv4 route changes, which is several times for every pod.
type bind struct {
	conn.Bind
	ns      *namespace
	out, in *gate
	onSTUN  func(at netip.Addr, from netip.AddrPort, packet []byte) // may be nil
	log     *slog.Logger

	to6     atomic.Pointer[conn.Bind] // what sends to IPv6; nil before Open
	sockets atomic.Pointer[sockets]   // nil before Open

	mu   sync.Mutex    // guards stop
	stop chan struct{} // closed with the sockets; nil while they are closed
}

func newBind(cfg Config, ns *namespace, out, in *gate) *bind {
	return &bind{Bind: conn.NewStdNetBind(), ns: ns, out: out, in: in, onSTUN: cfg.OnSTUN, log: cfg.Log}
}

// BatchSize returns what the package's buffers are cut for.
func (b *bind) BatchSize() int { return batchSize }

// Open opens the sockets in the device's namespace.
func (b *bind) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = b.ns.do(func() error {
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	readers, err := b.opened()
	if err != nil {
		return nil, 0, errors.Join(err, b.Bind.Close())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stop = make(chan struct{})
	fns = fns[:0]
	for _, reader := range readers {
		fns = append(fns, newReceiver(reader.read, b).receive)
	}
	return fns, actual, nil
}

// opened gets hold of the sockets that were opened.
func (b *bind) opened() ([]*packetReader, error) {
	to6, err := bindOf6(b.Bind)
	if err != nil {
		return nil, err
	}
	sockets, err := socketsOf(b.Bind)
	if err != nil {
		return nil, err
	}
	b.to6.Store(&to6)
	b.sockets.Store(&sockets)
	return newPacketReaders(sockets)
}

// Close closes the sockets and ends the waits of their receivers.
func (b *bind) Close() error {
	b.mu.Lock()
	if b.stop != nil {
		close(b.stop)
		b.stop = nil
	}
	b.mu.Unlock()
	return b.Bind.Close()
}

// Send sends bufs.
func (b *bind) Send(bufs [][]byte, endpoint conn.Endpoint) error {
	defer b.out.leave(bufs)
	return b.sendBy(bufs, endpoint)
}

// sendBy sends by the endpoint's family, and from the address that the routes
// choose if this node has the one no more that the peer sent to. wireguard-go itself
// would give that up only when it has heard nothing for 15 s.
func (b *bind) sendBy(bufs [][]byte, endpoint conn.Endpoint) error {
	err := b.sendFrom(bufs, endpoint)
	if sticky, is := endpoint.(*conn.StdNetEndpoint); is && noSuchSource(err) && sticky.SrcIP().IsValid() {
		return b.sendFrom(bufs, &conn.StdNetEndpoint{AddrPort: sticky.AddrPort})
	}
	return err
}

// noSuchSource tells whether an error may mean that this node does not have the
// address to send from.
func noSuchSource(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)
}

func (b *bind) sendFrom(bufs [][]byte, endpoint conn.Endpoint) error {
	if to6 := b.to6.Load(); to6 != nil && endpoint.DstIP().Is6() {
		return (*to6).Send(bufs, endpoint)
	}
	return b.Bind.Send(bufs, endpoint)
}

// sendSTUN sends a packet that is none of wireguard-go's, past the gates.
func (b *bind) sendSTUN(packet []byte, from netip.Addr, to netip.AddrPort) error {
	sockets := b.sockets.Load()
	if sockets == nil {
		return net.ErrClosed
	}
	socket := sockets[family(to.Addr())]
	if socket == nil {
		return unix.EAFNOSUPPORT
	}
	_, _, err := socket.WriteMsgUDPAddrPort(packet, sourceControl(from), to)
	return err
}

// readFunc fills bufs with packets, says from where and to which of this node's
// addresses they came, and returns how many.
type readFunc func(bufs [][]byte, sizes []int, from []conn.Endpoint, at []netip.Addr) (int, error)

// receiver gives a readFunc the 128 buffers that one packet of the kernel's may
// fill while wireguard-go brings only batchSize: what does not fit waits for the
// next call. It belongs to one goroutine.
type receiver struct {
	fn        readFunc
	out, in   *gate
	onSTUN    func(at netip.Addr, from netip.AddrPort, packet []byte) // may be nil
	log       *slog.Logger
	stop      <-chan struct{}
	bufs      [][]byte // the caller's, then our own
	sizes     []int
	endpoints []conn.Endpoint
	at        []netip.Addr
	next, end int      // what waits in our own buffers
	full      [][]byte // scratch of enter
}

func newReceiver(fn readFunc, b *bind) *receiver {
	r := &receiver{
		fn: fn, out: b.out, in: b.in, onSTUN: b.onSTUN, log: b.log, stop: b.stop,
		bufs:      make([][]byte, conn.IdealBatchSize),
		sizes:     make([]int, conn.IdealBatchSize),
		endpoints: make([]conn.Endpoint, conn.IdealBatchSize),
		at:        make([]netip.Addr, conn.IdealBatchSize),
	}
	// Most of this is never touched, so it is address space rather than memory.
	own := make([]byte, (conn.IdealBatchSize-batchSize)*bufferSize)
	for i := batchSize; i < conn.IdealBatchSize; i++ {
		r.bufs[i], own = own[:bufferSize:bufferSize], own[bufferSize:]
	}
	return r
}

// receive is a conn.ReceiveFunc. wireguard-go stops receiving for good on an
// error like a lack of memory, so only the end of the sockets is one.
func (r *receiver) receive(bufs [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
	if !r.in.wait(r.stop) {
		return 0, net.ErrClosed
	}
	if r.next == r.end {
		copy(r.bufs[:batchSize], bufs)
		n, err := r.read()
		if err != nil {
			return 0, err
		}
		first := min(n, batchSize)
		copy(sizes, r.sizes[:first])
		copy(endpoints, r.endpoints[:first])
		r.next, r.end = first, n
		r.enter(bufs[:first], sizes)
		return first, nil
	}
	n := 0
	for ; n < len(bufs) && r.next < r.end; n++ {
		sizes[n] = copy(bufs[n], r.bufs[r.next][:r.sizes[r.next]])
		endpoints[n], r.endpoints[r.next] = r.endpoints[r.next], nil
		r.next++
	}
	r.enter(bufs[:n], sizes)
	return n, nil
}

// enter counts into the gate what wireguard-go will not pass over.
func (r *receiver) enter(bufs [][]byte, sizes []int) {
	r.full = r.full[:0]
	for i, buf := range bufs {
		if sizes[i] > 0 {
			r.full = append(r.full, buf)
		}
	}
	r.in.enter(r.full, r.out)
}

// sift hands over the STUN messages among the n packets read. Their places stay,
// as wireguard-go knows its buffers by them, but are empty then, and
// wireguard-go passes over what is too short for a message.
func (r *receiver) sift(n int) {
	if r.onSTUN == nil {
		return
	}
	for i, size := range r.sizes[:n] {
		packet := r.bufs[i][:size]
		if !isSTUN(packet) {
			continue
		}
		if from, ok := r.endpoints[i].(*conn.StdNetEndpoint); ok {
			r.onSTUN(r.at[i], plainAddrPort(from.AddrPort), packet)
		}
		r.sizes[i] = 0
	}
}

func (r *receiver) read() (int, error) {
	for {
		n, err := r.fn(r.bufs, r.sizes, r.endpoints, r.at)
		if err == nil {
			r.sift(n)
			return n, nil
		}
		if errors.Is(err, net.ErrClosed) {
			return 0, err
		}
		r.log.Debug("receive from underlay", "err", err)
		select {
		case <-r.stop:
			return 0, net.ErrClosed
		case <-time.After(receivePause):
		}
	}
}
