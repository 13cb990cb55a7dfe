package nat

import (
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v4"
)

// wire is what goes over the simulated network: STUN, or a packet of the
// simulated WireGuard.
type wire struct {
	stun []byte
	wg   *wgPacket
}

// receiver is anything at an address.
type receiver interface {
	receive(from, to netip.AddrPort, w wire)
}

// network is a set of addresses that reach each other, and the translator to
// the network above it, if there is one. A packet takes 10 ms.
type network struct {
	mu    sync.Mutex // guards hosts, down and count
	hosts map[netip.Addr]receiver
	down  bool
	noWG  bool // of all but relays
	stuns int  // STUN packets sent
	up    *translator
}

const hop = 10 * time.Millisecond

func newNetwork() *network { return &network{hosts: map[netip.Addr]receiver{}} }

func (n *network) attach(addr netip.Addr, r receiver) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[addr] = r
}

func (n *network) detach(addr netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.hosts, addr)
}

func (n *network) send(from, to netip.AddrPort, w wire) {
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
	case down:
	case r != nil:
		time.AfterFunc(hop, func() { r.receive(from, to, w) })
	case n.up != nil:
		time.AfterFunc(hop, func() { n.up.out(from, to, w) })
	}
}

func (n *network) setDown(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
}

// blockWG drops what WireGuard sends, unless it is by a relay.
func (n *network) blockWG(block bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.noWG = block
}

func isRelay(addr netip.AddrPort) bool { return addr.Port() > 50000 && addr.Port() < 50100 }

// sent is how many STUN packets the network has seen.
func (n *network) sent() int {
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

// translator is a NAT with an address in outer, and inner below it.
type translator struct {
	kind    natKind
	hairpin bool
	outer   *network
	inner   *network

	mu       sync.Mutex // guards all below
	addr     netip.Addr
	port     uint16
	expiry   time.Duration
	mappings []*mapping
}

type mapping struct {
	inside, outside netip.AddrPort
	to              netip.AddrPort // of a symmetric one
	contacted       map[netip.AddrPort]bool
	used            time.Time
}

func newTranslator(kind natKind, outer *network, addr string) *translator {
	t := &translator{kind: kind, outer: outer, inner: newNetwork(), addr: netip.MustParseAddr(addr), port: 40000, expiry: 30 * time.Second}
	t.inner.up = t
	outer.attach(t.addr, t)
	return t
}

// out takes a packet from below.
func (t *translator) out(from, to netip.AddrPort, w wire) {
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

func (t *translator) outbound(from, to netip.AddrPort) *mapping {
	t.expire()
	for _, m := range t.mappings {
		if m.inside == from && (t.kind != symmetricNAT || m.to == to) {
			m.contacted[to], m.used = true, time.Now()
			return m
		}
	}
	t.port++
	m := &mapping{inside: from, outside: netip.AddrPortFrom(t.addr, t.port), to: to, contacted: map[netip.AddrPort]bool{to: true}, used: time.Now()}
	t.mappings = append(t.mappings, m)
	return m
}

func (t *translator) expire() {
	kept := t.mappings[:0]
	for _, m := range t.mappings {
		if time.Since(m.used) < t.expiry {
			kept = append(kept, m)
		}
	}
	t.mappings = kept
}

// receive takes a packet from above.
func (t *translator) receive(from, to netip.AddrPort, w wire) {
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

func (t *translator) passes(m *mapping, from netip.AddrPort) bool {
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

// forget drops all mappings.
func (t *translator) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mappings = nil
}

// move gives the translator another address.
func (t *translator) move(addr string) {
	t.mu.Lock()
	was := t.addr
	t.addr = netip.MustParseAddr(addr)
	t.mappings = nil
	t.mu.Unlock()
	t.outer.detach(was)
	t.outer.attach(netip.MustParseAddr(addr), t)
}

// stunServer answers what it sees, or not.
type stunServer struct {
	net  *network
	addr netip.AddrPort

	mu     sync.Mutex // guards all below
	lie    netip.AddrPort
	late   time.Duration
	silent bool
	replay [][]byte // answers given before, sent again with each
	keep   bool
	count  int
}

func newSTUNServer(n *network, addr string) *stunServer {
	s := &stunServer{net: n, addr: netip.MustParseAddrPort(addr)}
	n.attach(s.addr.Addr(), s)
	return s
}

func (s *stunServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *stunServer) receive(from, _ netip.AddrPort, w wire) {
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
			s.net.send(s.addr, from, wire{stun: old})
		}
	}
	time.AfterFunc(s.late, func() { s.net.send(s.addr, from, wire{stun: answer}) })
}

// relayServer passes on packets for the nodes that it has allocations for.
type relayServer struct {
	net  *network
	addr netip.Addr

	mu    sync.Mutex // guards all below
	ports map[uint16]*relayWay
	next  uint16
}

func newRelayServer(n *network, addr string) *relayServer {
	s := &relayServer{net: n, addr: netip.MustParseAddr(addr), ports: map[uint16]*relayWay{}, next: 50000}
	n.attach(s.addr, s)
	return s
}

func (s *relayServer) receive(from, to netip.AddrPort, w wire) {
	s.mu.Lock()
	way := s.ports[to.Port()]
	s.mu.Unlock()
	if way != nil {
		time.AfterFunc(hop, func() { way.receive(from, w) })
	}
}

// allocate gives a node a way by the relay.
func (s *relayServer) allocate(n *node) *relayWay {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	way := &relayWay{server: s, node: n, relayed: netip.AddrPortFrom(s.addr, s.next), local: map[netip.AddrPort]netip.AddrPort{}, holds: map[netip.AddrPort]*[]wire{}}
	s.ports[s.next] = way
	return way
}

// release ends an allocation.
func (s *relayServer) release(way *relayWay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ports, way.relayed.Port())
}

// relayWay is an allocation.
type relayWay struct {
	server  *relayServer
	node    *node
	relayed netip.AddrPort

	mu    sync.Mutex                        // guards all below
	local map[netip.AddrPort]netip.AddrPort // by remote
	holds map[netip.AddrPort]*[]wire
}

// Hold implements Holder.
func (r *relayWay) Hold(remote netip.AddrPort, atMost time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holds[remote] == nil {
		r.holds[remote] = new([]wire)
		time.AfterFunc(atMost, func() { r.letGo(remote) })
	}
}

func (r *relayWay) letGo(remote netip.AddrPort) {
	r.mu.Lock()
	held := r.holds[remote]
	delete(r.holds, remote)
	r.mu.Unlock()
	for _, w := range *held {
		r.receive(remote, w)
	}
}

// holding keeps back w if its sender is to be held.
func (r *relayWay) holding(from netip.AddrPort, w wire) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := r.holds[from]
	if held != nil {
		*held = append(*held, w)
	}
	return held != nil
}

func (r *relayWay) Send(packet []byte, to netip.AddrPort) error {
	r.pass(wire{stun: packet}, to)
	return nil
}

func (r *relayWay) pass(w wire, to netip.AddrPort) {
	r.server.mu.Lock()
	alive := r.server.ports[r.relayed.Port()] == r
	r.server.mu.Unlock()
	if alive && r.node.online() {
		time.AfterFunc(hop, func() { r.server.net.send(r.relayed, to, w) })
	}
}

func (r *relayWay) Endpoint(to netip.AddrPort) (netip.AddrPort, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	local, ok := r.local[to]
	if !ok {
		local = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.node.loopback())
		r.local[to] = local
	}
	return local, nil
}

func (r *relayWay) Remote(endpoint netip.AddrPort) (netip.AddrPort, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for to, local := range r.local {
		if local == endpoint {
			return to, true
		}
	}
	return netip.AddrPort{}, false
}

func (r *relayWay) receive(from netip.AddrPort, w wire) {
	if w.stun != nil {
		r.node.deliver(r, from, w.stun)
		return
	}
	if r.holding(from, w) {
		return
	}
	local, _ := r.Endpoint(from)
	r.node.device.receive(local, w.wg)
}
