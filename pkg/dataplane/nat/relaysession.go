package nat

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pion/stun/v4"
)

const (
	// relayRefresh is how often a client refreshes its allocation: for a
	// translator on the way, and to see soon that a relay is gone.
	relayRefresh = 15 * time.Second
	// relayRebind is how often channels in use are bound again; a relay forgets
	// their permissions after 5 minutes.
	relayRebind = 2 * time.Minute
	// relayFirstWait is when a request is sent again; then it doubles.
	relayFirstWait = 250 * time.Millisecond
	// relayAnswerTime is how long a relay may take to answer.
	relayAnswerTime = 4 * time.Second
	// relayUnanswered requests in a row for a longer life mean that there is no relay.
	relayUnanswered = 3
	// relayRefusals in a row from a relay's machine mean that there is no relay.
	relayRefusals = 3
	// relayBinds is how many channels and permissions are asked for at the same time.
	relayBinds = 16
	// relaySoftware fills up the first request: a relay's challenge may not be
	// longer than what it answers.
	relaySoftware = 104
)

var (
	errRelayGone       = errors.New("allocation is gone")
	errRelayNoAnswer   = errors.New("relay does not answer")
	errRelayDenied     = errors.New("relay does not accept the credential")
	errRelayNoChannels = errors.New("all channels are used up")
)

// relayRefusal is an error answer of a relay that knows the credential.
type relayRefusal struct{ code int }

func (e relayRefusal) Error() string { return fmt.Sprintf("relay refuses with code %d", e.code) }

// turnSession is one allocation at a relay, over one connection.
type turnSession struct {
	client  *RelayClient
	conn    relayTransport
	kind    string
	relayed netip.AddrPort

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	lost   chan error    // why it ended by itself
	hurry  chan struct{} // refresh now
	binds  chan struct{} // one token for each question under way

	// channels holds remotes by channel number, for what arrives.
	channels [channelLast - channelFirst + 1]atomic.Pointer[relayRemote]

	mu           sync.Mutex // guards all below
	closed       bool
	credential   relayCredential
	realm, nonce string
	integrity    func() stun.MessageIntegrity // in a function, where no %v finds it
	pending      map[[stun.TransactionIDSize]byte]chan []byte
	numbers      map[netip.AddrPort]uint16
	peers        []netip.AddrPort // by number
}

// openSession connects and makes an allocation.
func (c *RelayClient) openSession(ctx context.Context, kind string) (*turnSession, error) {
	dialCtx, cancel := context.WithTimeout(ctx, c.answer)
	defer cancel()
	conn, err := c.dialRelay(dialCtx, kind)
	if err != nil {
		return nil, err
	}
	s := &turnSession{
		client: c, conn: conn, kind: kind,
		lost: make(chan error, 1), hurry: make(chan struct{}, 1), binds: make(chan struct{}, relayBinds),
		pending: make(map[[stun.TransactionIDSize]byte]chan []byte), numbers: make(map[netip.AddrPort]uint16),
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.wg.Go(s.read)
	if err := s.allocate(dialCtx); err != nil {
		select {
		case err = <-s.lost: // which is why there was no answer
		default:
		}
		s.close()
		return nil, fmt.Errorf("allocate at relay %s by %s: %w", conn.RemoteAddr(), kind, err)
	}
	s.wg.Go(s.keep)
	return s, nil
}

// close gives the allocation back and waits for the session's goroutines.
func (s *turnSession) close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.wg.Wait()
		return
	}
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	if s.relayed.IsValid() { // nobody waits for the answer
		if m, err := s.build(turnRefresh, turnLifetime(0)); err == nil {
			_, _ = s.conn.Write(m.Raw)
		}
	}
	_ = s.conn.Close()
	s.wg.Wait()
}

// fail says that the session has ended.
func (s *turnSession) fail(err error) {
	select {
	case s.lost <- err:
	default:
	}
}

func (s *turnSession) allocate(ctx context.Context) error {
	attrs := []stun.Setter{stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{17, 0, 0, 0}}}
	if addr := relayAddrOf(s.conn).Addr(); addr.Is6() {
		attrs = append(attrs, stun.RawAttribute{Type: stun.AttrRequestedAddressFamily, Value: []byte{2, 0, 0, 0}})
	}
	first := append(attrs[:len(attrs):len(attrs)], stun.NewSoftware(strings.Repeat("-", relaySoftware)))
	_, err := s.request(ctx, turnAllocate, first...)
	switch {
	case err == nil:
		return errors.New("relay does not ask for a credential")
	case !errors.Is(err, errRelayDenied):
		return err
	}
	s.renew(true)
	attrs = append(attrs, turnLifetime(RelayMaxLifetime))
	answer, err := s.request(ctx, turnAllocate, attrs...)
	if errors.Is(err, relayRefusal{codeMismatch}) { // what this port's last session could not give back
		if _, err := s.request(ctx, turnRefresh, turnLifetime(0)); err != nil && !errors.Is(err, errRelayGone) {
			return err
		}
		answer, err = s.request(ctx, turnAllocate, attrs...)
	}
	switch {
	case errors.Is(err, errRelayDenied) && s.client.credentials.fixed == nil:
		return fmt.Errorf("%w: it may not know this node yet, or the clocks of the two differ by more than %s", err, RelayClockSkew)
	case err != nil:
		return err
	}
	var relayed stun.XORMappedAddress
	if err := relayed.GetFromAs(answer, stun.AttrXORRelayedAddress); err != nil {
		return fmt.Errorf("answer without an address: %w", err)
	}
	ip, _ := netip.AddrFromSlice(relayed.IP)
	s.relayed = netip.AddrPortFrom(ip.Unmap(), uint16(relayed.Port)) //nolint:gosec // of two bytes
	return nil
}

func turnLifetime(d time.Duration) stun.Setter {
	value := binary.BigEndian.AppendUint32(nil, uint32(d/time.Second)) //nolint:gosec // some minutes
	return stun.RawAttribute{Type: stun.AttrLifetime, Value: value}
}

// renew takes another credential if the one in use is to be replaced.
func (s *turnSession) renew(first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if first || !s.credential.renew.IsZero() && now.After(s.credential.renew) {
		s.credential = s.client.credentials.next(now)
		integrity := stun.NewLongTermIntegrity(s.credential.username, s.realm, s.credential.password())
		s.integrity = func() stun.MessageIntegrity { return integrity }
	}
}

// keep refreshes the allocation, and the channels in use, until it fails.
func (s *turnSession) keep() {
	ticker := time.NewTicker(s.client.refresh)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.hurry:
		case <-ticker.C:
		}
		s.renew(false)
		if err := s.refresh(); err != nil && s.ctx.Err() == nil {
			s.fail(fmt.Errorf("refresh allocation %s: %w", s.relayed, err))
			return
		}
		s.client.rebind(s)
	}
}

// refresh asks for a longer life, and again if there is no answer: a network may
// lose packets for some seconds, and with another allocation all peers would have to
// find this node anew.
func (s *turnSession) refresh() (err error) {
	for range relayUnanswered {
		ctx, cancel := context.WithTimeout(s.ctx, s.client.answer)
		_, err = s.request(ctx, turnRefresh, turnLifetime(RelayMaxLifetime))
		cancel()
		if !errors.Is(err, errRelayNoAnswer) || s.ctx.Err() != nil {
			return err
		}
	}
	return err
}

// read takes messages off the connection until it ends.
func (s *turnSession) read() {
	buffer := make([]byte, relayPool)
	refusals := 0
	for {
		n, err := s.conn.Read(buffer)
		switch {
		case err == nil:
			refusals = 0
			s.receive(buffer[:n])
			continue
		case s.ctx.Err() != nil:
			return
		case errors.Is(err, syscall.ECONNREFUSED): // of a packet sent before
			if refusals++; refusals < relayRefusals {
				select {
				case s.hurry <- struct{}{}:
				default:
				}
				continue
			}
		}
		s.fail(fmt.Errorf("relay %s: %w", s.conn.RemoteAddr(), err))
		s.cancel() // whoever waits for an answer
		return
	}
}

// receive handles one message. It must not block.
func (s *turnSession) receive(p []byte) {
	if number, data, ok := channelData(p); ok {
		remote := s.channels[number-channelFirst].Load()
		if remote == nil || remote.closed.Load() {
			remote = s.revive(number)
		}
		if remote != nil {
			s.client.arrived(remote, data)
		}
		return
	}
	if !isSTUNPacket(p) {
		return
	}
	switch kind := stunType(p); {
	case kind == turnDataReceived:
		s.receiveIndication(p)
	case kind&stunClassSuccess != 0:
		s.mu.Lock()
		waiting := s.pending[[stun.TransactionIDSize]byte(p[8:stunHeader])]
		s.mu.Unlock()
		if waiting == nil {
			return
		}
		select {
		case waiting <- append([]byte(nil), p...):
		default:
		}
	}
}

// receiveIndication handles what comes from a peer without a channel: from
// another port than was known.
func (s *turnSession) receiveIndication(p []byte) {
	value, _ := stunAttr(p, attrPeerAddress)
	from, err := decodeAddr(value, p[4:stunHeader])
	if err != nil {
		return
	}
	if data, ok := stunAttr(p, attrData); ok {
		s.client.arrivedFrom(from, data)
	}
}

// revive makes the remote of a channel anew that was closed because it was idle.
func (s *turnSession) revive(number uint16) *relayRemote {
	s.mu.Lock()
	index := int(number - channelFirst)
	var peer netip.AddrPort
	if index < len(s.peers) {
		peer = s.peers[index]
	}
	s.mu.Unlock()
	if !peer.IsValid() {
		return nil
	}
	remote, err := s.client.remote(peer, false)
	if err != nil {
		return nil
	}
	s.channels[index].Store(remote)
	return remote
}

// number returns the channel of a peer. A channel once bound stays that peer's.
func (s *turnSession) number(peer netip.AddrPort) (uint16, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if number, ok := s.numbers[peer]; ok {
		return number, nil
	}
	if len(s.peers) > channelLast-channelFirst {
		return 0, errRelayNoChannels
	}
	number := uint16(channelFirst + len(s.peers)) //nolint:gosec // checked above
	s.peers = append(s.peers, peer)
	s.numbers[peer] = number
	return number, nil
}

// bind binds a remote's channel, in a goroutine of its own, and says whether it
// has begun.
func (s *turnSession) bind(remote *relayRemote) bool {
	return s.aside(func() {
		number, err := s.bindNow(remote)
		if errors.Is(err, errRelayNoChannels) {
			s.fail(err)
		}
		remote.bound(s, number, err)
	})
}

// aside asks the relay something in a goroutine of its own, and says whether it
// has begun: only so many do at a time.
func (s *turnSession) aside(ask func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	select {
	case s.binds <- struct{}{}:
	default:
		return false
	}
	s.wg.Go(func() {
		defer func() { <-s.binds }()
		ask()
	})
	return true
}

func (s *turnSession) bindNow(remote *relayRemote) (uint16, error) {
	number, err := s.number(remote.addr)
	if err != nil {
		return 0, err
	}
	s.channels[number-channelFirst].Store(remote) // data may be faster than we are
	ctx, cancel := context.WithTimeout(s.ctx, s.client.answer)
	defer cancel()
	_, err = s.request(ctx, turnChannelBind,
		stun.RawAttribute{Type: stun.AttrChannelNumber, Value: []byte{byte(number >> 8), byte(number), 0, 0}},
		turnPeer(remote.addr))
	if err != nil {
		return 0, fmt.Errorf("bind channel to %s: %w", remote.addr, err)
	}
	return number, nil
}

// turnPeer is an XOR-PEER-ADDRESS.
type turnPeer netip.AddrPort

// AddTo adds it to a message.
func (p turnPeer) AddTo(m *stun.Message) error {
	addr := netip.AddrPort(p)
	x := stun.XORMappedAddress{IP: net.IP(addr.Addr().AsSlice()), Port: int(addr.Port())}
	return x.AddToAs(m, stun.AttrXORPeerAddress)
}
