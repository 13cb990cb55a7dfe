package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/pion/stun/v4"
)

const (
	// relayPermits bounds the addresses that checks are exchanged with by a relay:
	// more than the nodes of a large cluster have candidates.
	relayPermits = 1 << 16
	// relayPermitBatch is how many permissions are renewed by one request.
	relayPermitBatch = 32
)

var errRelayRefused = errors.New("relay refuses the address")

// relayPermit is a relay's permission to exchange packets with an address. Checks
// need no more: a channel and a loopback socket are for what a device sends.
type relayPermit struct {
	session *turnSession // that has it
	asking  *turnSession // that is asking for it
	at      time.Time    // when it was given last
	used    time.Time
	refused time.Time
	waiting []relayPacket
}

type relayPacket struct {
	to   netip.AddrPort
	data []byte
}

// sendIndication sends a packet to an address that may have no channel.
func (c *RelayClient) sendIndication(packet []byte, to netip.AddrPort) error {
	session := c.current.Load()
	if session == nil {
		return errRelayDown
	}
	ready, ask, err := c.usePermit(session, packet, to)
	if err != nil {
		return err
	}
	if addr := to.Addr(); ask && !session.aside(func() { c.askPermits(session, []netip.Addr{addr}) }) {
		c.endPermits(session, []netip.Addr{addr}, errRelayBusy)
	}
	if ready {
		return session.indicate(packet, to)
	}
	return nil
}

// usePermit says whether a packet may be sent now, else it is kept until the
// relay has been asked, and whether to ask.
func (c *RelayClient) usePermit(session *turnSession, packet []byte, to netip.AddrPort) (ready, ask bool, err error) {
	c.permitMu.Lock()
	defer c.permitMu.Unlock()
	permit, now := c.permits[to.Addr()], time.Now()
	switch {
	case permit == nil && len(c.permits) >= relayPermits:
		return false, false, errTooManyPeers
	case permit == nil:
		permit = &relayPermit{}
		c.permits[to.Addr()] = permit
	case now.Sub(permit.refused) < relayRefusedPause:
		return false, false, errRelayRefused
	}
	permit.used = now
	ready = permit.session == session
	if !ready && len(permit.waiting) < relayWaiting {
		permit.waiting = append(permit.waiting, relayPacket{to, slices.Clone(packet)})
	}
	ask = permit.asking != session && (!ready || now.Sub(permit.at) >= relayRebind)
	if ask {
		permit.asking = session
	}
	return ready, ask, nil
}

// renewPermits asks again for those that are in use and old, or that a session
// before this one had, and forgets those that are not in use.
func (c *RelayClient) renewPermits(session *turnSession) {
	var due []netip.Addr
	c.permitMu.Lock()
	for addr, permit := range c.permits {
		switch {
		case time.Since(permit.used) >= c.idle:
			delete(c.permits, addr)
		case permit.session != nil && permit.asking != session && (permit.session != session || time.Since(permit.at) >= relayRebind):
			permit.asking = session
			due = append(due, addr)
		}
	}
	c.permitMu.Unlock()
	for batch := range slices.Chunk(due, relayPermitBatch) {
		if !session.aside(func() { c.askPermits(session, batch) }) {
			c.endPermits(session, batch, errRelayBusy)
		}
	}
}

// askPermits asks the relay for permissions.
func (c *RelayClient) askPermits(session *turnSession, addrs []netip.Addr) {
	ctx, cancel := context.WithTimeout(session.ctx, c.answer)
	defer cancel()
	peers := make([]stun.Setter, 0, len(addrs))
	for _, addr := range addrs {
		peers = append(peers, turnPeer(netip.AddrPortFrom(addr, 0)))
	}
	_, err := session.request(ctx, turnCreatePermission, peers...)
	for _, packet := range c.endPermits(session, addrs, err) {
		_ = session.indicate(packet.data, packet.to) // lost, as in a network
	}
}

// endPermits notes how the question for permissions ended, and returns what may be
// sent now. Of several that are refused each is asked for alone when it is used.
func (c *RelayClient) endPermits(session *turnSession, addrs []netip.Addr, err error) (send []relayPacket) {
	var refusal relayRefusal
	refused := errors.As(err, &refusal)
	if refused {
		c.cfg.Log.Debug("relay refuses", "ip", fmt.Sprint(addrs), "err", err)
	}
	c.permitMu.Lock()
	defer c.permitMu.Unlock()
	for _, addr := range addrs {
		permit := c.permits[addr]
		if permit == nil || permit.asking != session {
			continue
		}
		permit.asking = nil
		switch {
		case err == nil:
			permit.session, permit.at = session, time.Now()
			send = append(send, permit.waiting...)
		case refused:
			permit.session = nil
			if len(addrs) == 1 {
				permit.refused = time.Now()
			}
		}
		if !errors.Is(err, errRelayBusy) { // then the next packet asks
			permit.waiting = nil
		}
	}
	return send
}

// indicate sends a packet without a channel.
func (s *turnSession) indicate(packet []byte, to netip.AddrPort) error {
	m, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), turnPeer(to),
		stun.RawAttribute{Type: stun.AttrData, Value: packet})
	if err != nil {
		return fmt.Errorf("build indication: %w", err)
	}
	_, err = s.conn.Write(m.Raw)
	return err
}
