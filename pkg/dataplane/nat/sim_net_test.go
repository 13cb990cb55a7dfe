package nat

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v4"
)

// simPacket is what goes over the simulated network: STUN, or a packet of the
// simulated WireGuard.
type simPacket struct {
	stun []byte
	wg   *simWG
}

// simHost is anything at an address.
type simHost interface {
	receive(from, to netip.AddrPort, w simPacket)
}

// simNet is a set of addresses that reach each other, and the translator to
// the network above it, if there is one. A packet takes 10 ms.
type simNet struct {
	mu    sync.Mutex // guards hosts, down and count
	hosts map[netip.Addr]simHost
	down  bool
	noWG  bool       // of all but relays
	loss  *rand.Rand // if not nil, a tenth of the packets are lost
	stuns int        // STUN packets sent
	up    *simNAT
}

const hop = 10 * time.Millisecond

func newNetwork() *simNet { return &simNet{hosts: map[netip.Addr]simHost{}} }

func (n *simNet) attach(addr netip.Addr, r simHost) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[addr] = r
}

func (n *simNet) detach(addr netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.hosts, addr)
}

func (n *simNet) send(from, to netip.AddrPort, w simPacket) {
	n.mu.Lock()
	r, down := n.hosts[to.Addr()], n.down
	if n.noWG && w.wg != nil && !isRelay(from) && !isRelay(to) {
		down = true
	}
	if w.stun != nil {
		n.stuns++
	}
	n.mu.Unlock()
	switch {
	case down || n.lost():
	case r != nil:
		time.AfterFunc(hop, func() { r.receive(from, to, w) })
	case n.up != nil:
		time.AfterFunc(hop, func() { n.up.out(from, to, w) })
	}
}

func (n *simNet) setDown(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
}

// lost reports whether a packet is lost.
func (n *simNet) lost() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.loss != nil && n.loss.IntN(10) == 0
}

// blockWG drops what WireGuard sends, unless it is by a relay.
func (n *simNet) blockWG(block bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.noWG = block
}

func isRelay(addr netip.AddrPort) bool { return addr.Port() > 50000 && addr.Port() < 50100 }

// sent is how many STUN packets the network has seen.
func (n *simNet) sent() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stuns
}

// natKind says how a translator maps and filters.
type natKind string

const (
	noNAT          natKind = "none"
	fullCone       natKind = "full cone"
	addrRestricted natKind = "address-restricted"
	portRestricted natKind = "port-restricted"
	symmetricNAT   natKind = "symmetric"
)

// simNAT is a NAT with an address in outer, and inner below it.
type simNAT struct {
	hairpin bool
	outer   *simNet
	inner   *simNet

	mu       sync.Mutex // guards all below
	kind     natKind
	addr     netip.Addr
	port     uint16
	expiry   time.Duration
	mappings []*simMapping
}

type simMapping struct {
	inside, outside netip.AddrPort
	to              netip.AddrPort // of a symmetric one
	contacted       map[netip.AddrPort]bool
	used            time.Time
}

func newTranslator(kind natKind, outer *simNet, addr string) *simNAT {
	t := &simNAT{kind: kind, outer: outer, inner: newNetwork(), addr: netip.MustParseAddr(addr), port: 40000, expiry: 30 * time.Second}
	t.inner.up = t
	outer.attach(t.addr, t)
	return t
}

// out takes a packet from below.
func (t *simNAT) out(from, to netip.AddrPort, w simPacket) {
	t.mu.Lock()
	m := t.outbound(from, to)
	mapped, own := m.outside, t.addr
	t.mu.Unlock()
	if to.Addr() != own {
		t.outer.send(mapped, to, w)
	} else if t.hairpin {
		t.receive(mapped, to, w)
	}
}

func (t *simNAT) outbound(from, to netip.AddrPort) *simMapping {
	t.expire()
	for _, m := range t.mappings {
		if m.inside == from && (t.kind != symmetricNAT || m.to == to) {
			m.contacted[to], m.used = true, time.Now()
			return m
		}
	}
	t.port++
	m := &simMapping{inside: from, outside: netip.AddrPortFrom(t.addr, t.port), to: to, contacted: map[netip.AddrPort]bool{to: true}, used: time.Now()}
	t.mappings = append(t.mappings, m)
	return m
}

func (t *simNAT) expire() {
	kept := t.mappings[:0]
	for _, m := range t.mappings {
		if time.Since(m.used) < t.expiry {
			kept = append(kept, m)
		}
	}
	t.mappings = kept
}

// receive takes a packet from above.
func (t *simNAT) receive(from, to netip.AddrPort, w simPacket) {
	t.mu.Lock()
	t.expire()
	var inside netip.AddrPort
	for _, m := range t.mappings {
		if m.outside == to && t.passes(m, from) {
			m.used = time.Now()
			inside = m.inside
		}
	}
	t.mu.Unlock()
	if inside.IsValid() {
		t.inner.send(from, inside, w)
	}
}

func (t *simNAT) passes(m *simMapping, from netip.AddrPort) bool {
	switch t.kind {
	case fullCone:
		return true
	case addrRestricted:
		for c := range m.contacted {
			if c.Addr() == from.Addr() {
				return true
			}
		}
		return false
	}
	return m.contacted[from]
}

// become changes the kind.
func (t *simNAT) become(kind natKind) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kind = kind
}

// forget drops all mappings.
func (t *simNAT) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mappings = nil
}

// move gives the translator another address.
func (t *simNAT) move(addr string) {
	t.mu.Lock()
	was := t.addr
	t.addr = netip.MustParseAddr(addr)
	t.mappings = nil
	t.mu.Unlock()
	t.outer.detach(was)
	t.outer.attach(netip.MustParseAddr(addr), t)
}

// simServer answers what it sees, or not.
type simServer struct {
	net  *simNet
	addr netip.AddrPort

	mu     sync.Mutex // guards all below
	lie    netip.AddrPort
	late   time.Duration
	silent bool
	replay [][]byte // answers given before, sent again with each
	keep   bool
	count  int
}

func newSTUNServer(n *simNet, addr string) *simServer {
	s := &simServer{net: n, addr: netip.MustParseAddrPort(addr)}
	n.attach(s.addr.Addr(), s)
	return s
}

func (s *simServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *simServer) receive(from, _ netip.AddrPort, w simPacket) {
	m, err := Parse(w.stun)
	if err != nil || m.Class != ClassRequest || m.Username != "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	if s.silent {
		return
	}
	seen := from
	if s.lie.IsValid() {
		seen = s.lie
	}
	answer := build(m.ID, stun.BindingSuccess, &stun.XORMappedAddress{IP: seen.Addr().AsSlice(), Port: int(seen.Port())}, stun.Fingerprint)
	if s.keep {
		s.replay = append(s.replay, answer)
		for _, old := range s.replay {
			s.net.send(s.addr, from, simPacket{stun: old})
		}
	}
	// Never at once: the race detector dies of timers of a bubble that do not wait (golang/go#78156).
	time.AfterFunc(max(s.late, 1), func() { s.net.send(s.addr, from, simPacket{stun: answer}) })
}

// simRelay passes on packets for the nodes that it has allocations for.
type simRelay struct {
	net  *simNet
	addr netip.Addr

	mu    sync.Mutex // guards all below
	ports map[uint16]*simWay
	next  uint16
}

func newRelayServer(n *simNet, addr string) *simRelay {
	s := &simRelay{net: n, addr: netip.MustParseAddr(addr), ports: map[uint16]*simWay{}, next: 50000}
	n.attach(s.addr, s)
	return s
}

func (s *simRelay) receive(from, to netip.AddrPort, w simPacket) {
	s.mu.Lock()
	way := s.ports[to.Port()]
	s.mu.Unlock()
	if way != nil {
		time.AfterFunc(hop, func() { way.receive(from, w) })
	}
}

// allocate gives a node a way by the relay.
func (s *simRelay) allocate(n *simNode) *simWay {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	way := &simWay{server: s, node: n, relayed: netip.AddrPortFrom(s.addr, s.next), local: map[netip.AddrPort]netip.AddrPort{}, diverted: map[netip.AddrPort]simDiversion{}}
	s.ports[s.next] = way
	return way
}

// release ends an allocation.
func (s *simRelay) release(way *simWay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ports, way.relayed.Port())
}

// simWay is an allocation.
type simWay struct {
	server  *simRelay
	node    *simNode
	relayed netip.AddrPort

	mu       sync.Mutex                        // guards all below
	local    map[netip.AddrPort]netip.AddrPort // by remote
	diverted map[netip.AddrPort]simDiversion
}

type simDiversion struct {
	by    Way
	to    netip.AddrPort
	until time.Time
}

// Divert implements Diverter.
func (r *simWay) Divert(remote netip.AddrPort, by Way, to netip.AddrPort, during time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.diverted[remote] = simDiversion{by, to, time.Now().Add(during)}
}

// transmit sends what the device sends.
func (r *simWay) transmit(w simPacket, to netip.AddrPort) {
	r.mu.Lock()
	d := r.diverted[to]
	r.mu.Unlock()
	if !time.Now().Before(d.until) {
		r.pass(w, to)
		return
	}
	switch by := d.by.(type) {
	case *simNode:
		by.transmit(d.to, w)
	case *simWay:
		by.pass(w, d.to)
	}
}

func (r *simWay) Send(packet []byte, to netip.AddrPort) error {
	r.pass(simPacket{stun: packet}, to)
	return nil
}

func (r *simWay) pass(w simPacket, to netip.AddrPort) {
	r.server.mu.Lock()
	alive := r.server.ports[r.relayed.Port()] == r
	r.server.mu.Unlock()
	if alive && r.node.online() {
		time.AfterFunc(hop, func() { r.server.net.send(r.relayed, to, w) })
	}
}

func (r *simWay) Endpoint(to netip.AddrPort) (netip.AddrPort, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	local, ok := r.local[to]
	if !ok {
		local = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.node.loopback())
		r.local[to] = local
	}
	return local, nil
}

func (r *simWay) Remote(endpoint netip.AddrPort) (netip.AddrPort, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for to, local := range r.local {
		if local == endpoint {
			return to, true
		}
	}
	return netip.AddrPort{}, false
}

func (r *simWay) receive(from netip.AddrPort, w simPacket) {
	if w.stun != nil {
		r.node.deliver(r, from, w.stun)
		return
	}
	local, _ := r.Endpoint(from)
	r.node.device.receive(local, w.wg)
}
