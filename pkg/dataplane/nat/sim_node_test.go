package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// simWG is a packet of the simulated WireGuard.
type simWG struct {
	from, to wgtypes.Key
	kind     string // init, resp, data, echo, reply, keepalive
	seq      int
}

func (p simWG) size() uint64 {
	switch p.kind {
	case "init":
		return 148
	case "resp":
		return 92
	case "keepalive":
		return 32
	}
	return 128
}

// simDevice behaves as WireGuard does: it begins handshakes when there is something
// to send, and follows its peers to wherever they send from.
type simDevice struct {
	node *simNode

	mu    sync.Mutex // guards all below
	peers map[wgtypes.Key]*simPeer
	got   map[int]int // data received, by number
	uses  []netip.AddrPort
	looks int
	fail  bool
	blind error
	slow  time.Duration // to switch, set before the start
}

type simPeer struct {
	PeerState
	published netip.AddrPort
	wanted    netip.AddrPort // zero: what is published
	queued    []simWG
	lastInit  time.Time
	awaiting  time.Time // since when sent data is not answered
	answering bool      // a keepalive is due
}

func (d *simDevice) peer(key wgtypes.Key) *simPeer {
	p := d.peers[key]
	if p == nil {
		p = &simPeer{PeerState: PeerState{Key: key}}
		d.peers[key] = p
	}
	return p
}

func (d *simDevice) Peers(context.Context) ([]PeerState, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks++
	if d.blind != nil {
		return nil, d.blind
	}
	var states []PeerState
	for _, p := range d.peers {
		states = append(states, p.PeerState)
	}
	return states, nil
}

func (d *simDevice) Use(ctx context.Context, endpoints map[wgtypes.Key]netip.AddrPort) error {
	select {
	case <-time.After(d.slow):
	case <-ctx.Done():
		return ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, endpoint := range endpoints {
		d.uses = append(d.uses, endpoint)
		if !d.fail {
			d.peer(key).wanted = endpoint
			d.peer(key).Endpoint = d.peer(key).want()
		}
	}
	if d.fail {
		return errors.New("device says no")
	}
	return nil
}

func (d *simDevice) Hold(_ context.Context, endpoints map[wgtypes.Key]netip.AddrPort) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, endpoint := range endpoints {
		d.peer(key).wanted = endpoint
	}
	return nil
}

// want is where the device sends to a peer that has not roamed.
func (p *simPeer) want() netip.AddrPort {
	if p.wanted.IsValid() {
		return p.wanted
	}
	return p.published
}

// compare does what the device does every now and then: peers that have roamed
// and have no session any more are sent to where they were wanted.
func (d *simDevice) compare() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.peers {
		if p.Endpoint != p.want() && time.Since(p.LastHandshake) >= 180*time.Second {
			p.Endpoint = p.want()
		}
	}
}

func (d *simDevice) Rouse(_ context.Context, keys []wgtypes.Key) {
	for _, key := range keys {
		d.send(key, "echo", 0)
	}
}

// send sends through the tunnel.
func (d *simDevice) send(to wgtypes.Key, kind string, seq int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sendLocked(d.peer(to), simWG{from: d.node.key, to: to, kind: kind, seq: seq})
}

func (d *simDevice) sendLocked(p *simPeer, packet simWG) {
	if time.Since(p.LastHandshake) > 180*time.Second {
		p.queued = append(p.queued, packet)
		d.initiateLocked(p, 0)
		return
	}
	if packet.kind != "keepalive" {
		if p.awaiting.IsZero() {
			p.awaiting = time.Now()
			began := p.awaiting
			time.AfterFunc(15*time.Second, func() { d.unheard(p, began) })
		}
		if time.Since(p.LastHandshake) > 120*time.Second {
			d.initiateLocked(p, 0)
		}
	}
	p.answering = false
	d.transmitLocked(p, packet)
}

// unheard begins a handshake if the peer has not been heard since.
func (d *simDevice) unheard(p *simPeer, began time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.awaiting.Equal(began) {
		d.initiateLocked(p, 0)
	}
}

func (d *simDevice) initiateLocked(p *simPeer, attempt int) {
	if time.Since(p.lastInit) < 5*time.Second || attempt > 18 {
		return
	}
	p.lastInit = time.Now()
	at := p.lastInit
	d.transmitLocked(p, simWG{from: d.node.key, to: p.Key, kind: "init"})
	time.AfterFunc(5100*time.Millisecond, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if p.LastHandshake.Before(at) && d.peers[p.Key] == p {
			d.initiateLocked(p, attempt+1)
		}
	})
}

func (d *simDevice) transmitLocked(p *simPeer, packet simWG) {
	if !p.Endpoint.IsValid() {
		return
	}
	p.TxBytes += packet.size()
	d.node.transmit(p.Endpoint, simPacket{wg: &packet})
}

func (d *simDevice) receive(from netip.AddrPort, packet *simWG) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[packet.from]
	if p == nil || packet.to != d.node.key {
		return
	}
	if packet.kind != "init" && packet.kind != "resp" && p.LastHandshake.IsZero() {
		return // of a session that this device does not have
	}
	p.RxBytes += packet.size()
	p.Endpoint = from
	p.awaiting = time.Time{}
	switch packet.kind {
	case "init":
		p.LastHandshake = time.Now()
		d.transmitLocked(p, simWG{from: d.node.key, to: p.Key, kind: "resp"})
	case "resp":
		p.LastHandshake = time.Now()
		if len(p.queued) == 0 {
			d.transmitLocked(p, simWG{from: d.node.key, to: p.Key, kind: "keepalive"})
		}
	case "echo":
		d.sendLocked(p, simWG{from: d.node.key, to: p.Key, kind: "reply", seq: packet.seq})
	case "data":
		d.got[packet.seq]++
		d.answerLocked(p)
	case "reply":
		d.got[packet.seq]++
		d.answerLocked(p)
	}
	if packet.kind != "init" { // the peer has the session, too
		d.flushLocked(p)
	}
}

func (d *simDevice) flushLocked(p *simPeer) {
	queued := p.queued
	p.queued = nil
	for _, q := range queued {
		d.sendLocked(p, q)
	}
}

// answerLocked has a keepalive sent unless something else is.
func (d *simDevice) answerLocked(p *simPeer) {
	if p.answering {
		return
	}
	p.answering = true
	time.AfterFunc(10*time.Second, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if p.answering {
			d.sendLocked(p, simWG{from: d.node.key, to: p.Key, kind: "keepalive"})
		}
	})
}

func (d *simDevice) state(key wgtypes.Key) PeerState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.peer(key).PeerState
}

func (d *simDevice) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// simNode is a machine with an agent and a device.
type simNode struct {
	name   string
	key    wgtypes.Key
	nets   map[bool]*simNet // by IPv4
	addrs  []netip.Addr
	world  *simWorld
	device *simDevice
	config Config
	count  *atomic.Int64 // secrets made

	mu     sync.Mutex // guards all below
	agent  *Agent
	down   bool
	port   uint16
	stop   func()
	news   []PathNews
	relays []*simWay
}

const wgPort = 51820

func (n *simNode) loopback() uint16 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.port++
	return 30000 + n.port
}

func (n *simNode) online() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.down
}

// transmit sends from the WireGuard port.
func (n *simNode) transmit(to netip.AddrPort, w simPacket) {
	if to.Addr().IsLoopback() {
		n.mu.Lock()
		relays := slices.Clone(n.relays)
		n.mu.Unlock()
		for _, r := range relays {
			if remote, ok := r.Remote(to); ok {
				r.transmit(w, remote)
			}
		}
		return
	}
	for _, addr := range n.addrs {
		if addr.Is4() == to.Addr().Is4() && n.online() {
			n.nets[addr.Is4()].send(netip.AddrPortFrom(addr, wgPort), to, w)
			return
		}
	}
}

func (n *simNode) receive(from, to netip.AddrPort, w simPacket) {
	if to.Port() != wgPort || !n.online() {
		return
	}
	if w.stun != nil {
		n.deliver(n, from, w.stun)
		return
	}
	n.device.receive(from, w.wg)
}

func (n *simNode) deliver(way Way, from netip.AddrPort, packet []byte) {
	n.mu.Lock()
	agent := n.agent
	n.mu.Unlock()
	if agent != nil {
		agent.Deliver(way, from, packet)
	}
}

// Send makes a node the way of its own port.
func (n *simNode) Send(packet []byte, to netip.AddrPort) error {
	n.transmit(to, simPacket{stun: slices.Clone(packet)})
	return nil
}

func (n *simNode) Endpoint(to netip.AddrPort) (netip.AddrPort, error) { return to, nil }

func (n *simNode) Remote(endpoint netip.AddrPort) (netip.AddrPort, bool) { return endpoint, true }

// simWorld is everything.
type simWorld struct {
	t        *testing.T
	internet *simNet
	nodes    []*simNode
	servers  []*simServer

	mu         sync.Mutex // guards all below
	candidates map[string][]Candidate
	frozen     map[string]bool // nodes whose candidates are not published any more
}

func newWorld(t *testing.T) *simWorld {
	w := &simWorld{t: t, internet: newNetwork(), candidates: map[string][]Candidate{}, frozen: map[string]bool{}}
	w.servers = []*simServer{newSTUNServer(w.internet, "198.51.100.1:3478"), newSTUNServer(w.internet, "198.51.100.2:3478")}
	return w
}

// node adds a machine with addresses, the first of which is its endpoint.
func (w *simWorld) node(name string, in *simNet, addrs ...string) *simNode {
	key := wgtypes.Key{31: byte(len(w.nodes) + 1)}
	key[0] = name[0]
	n := &simNode{name: name, key: key, world: w, nets: map[bool]*simNet{true: in, false: w.internet}}
	for _, s := range w.servers {
		n.config.STUNServers = append(n.config.STUNServers, s.addr.String())
	}
	for _, a := range addrs {
		addr := netip.MustParseAddr(a)
		n.addrs = append(n.addrs, addr)
		n.nets[addr.Is4()].attach(addr, n)
	}
	n.device = &simDevice{node: n, peers: map[wgtypes.Key]*simPeer{}, got: map[int]int{}}
	w.nodes = append(w.nodes, n)
	return n
}

// behind adds a machine behind a translator of its own.
func (w *simWorld) behind(name string, kind natKind, number int) *simNode {
	if kind == noNAT {
		return w.node(name, w.internet, fmt.Sprintf("203.0.113.%d", number))
	}
	box := newTranslator(kind, w.internet, fmt.Sprintf("203.0.113.%d", number))
	return w.node(name, box.inner, fmt.Sprintf("192.168.%d.2", number))
}

func (n *simNode) box() *simNAT { return n.nets[true].up }

func (n *simNode) endpoint() netip.AddrPort { return netip.AddrPortFrom(n.addrs[0], wgPort) }

// start starts all agents and returns when everything has been told.
func (w *simWorld) start() {
	for _, n := range w.nodes {
		for _, other := range w.nodes {
			if other != n {
				n.device.set(func() {
					p := n.device.peer(other.key)
					p.Endpoint, p.published = other.endpoint(), other.endpoint()
				})
			}
		}
	}
	for _, n := range w.nodes {
		n.start()
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ticker := time.NewTicker(30 * time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			for _, n := range w.nodes {
				n.device.compare()
			}
		}
	}()
	w.t.Cleanup(func() {
		cancel()
		for _, n := range w.nodes {
			n.halt()
		}
	})
}

// start starts a node's agent.
func (n *simNode) start() {
	agent, err := New(n.options())
	if err != nil {
		n.world.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	n.mu.Lock()
	n.agent = agent
	n.stop = func() { cancel(); <-done }
	relays := slices.Clone(n.relays)
	n.mu.Unlock()
	for _, r := range relays {
		agent.AddWay(r, r.relayed)
	}
	n.world.distribute(n)
	go func() {
		defer close(done)
		_ = agent.Run(ctx)
	}()
}

func (n *simNode) options() Options {
	return Options{
		Config: n.config, Key: n.key, Shared: n.shared, Direct: n, Device: n.device,
		Hosts:      func() ([]netip.Addr, error) { return slices.Clone(n.addrs), nil },
		ListenPort: func() int { return wgPort },
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return nil, errors.New("no names here")
		},
		OnCandidates: func() { n.world.publish(n) },
		OnPath: func(news PathNews) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.news = append(n.news, news)
		},
	}
}

// halt ends a node's agent.
func (n *simNode) halt() {
	n.mu.Lock()
	stop := n.stop
	n.agent, n.stop = nil, nil
	n.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// reset is a device that begins anew.
func (n *simNode) reset() {
	n.device.set(func() {
		for key, p := range n.device.peers {
			n.device.peers[key] = &simPeer{PeerState: PeerState{Key: key, Endpoint: p.published}, published: p.published}
		}
	})
}

// allocateAt gives the node a relay.
func (n *simNode) allocateAt(s *simRelay) *simWay {
	way := s.allocate(n)
	n.mu.Lock()
	n.relays = append(n.relays, way)
	agent := n.agent
	n.mu.Unlock()
	if agent != nil {
		agent.AddWay(way, way.relayed)
	}
	return way
}

// loseRelay ends an allocation, and tells the node.
func (n *simNode) loseRelay(way *simWay) {
	way.server.release(way)
	n.mu.Lock()
	n.relays = slices.DeleteFunc(n.relays, func(r *simWay) bool { return r == way })
	agent := n.agent
	n.mu.Unlock()
	if agent != nil {
		agent.RemoveWay(way)
	}
}

// shared is a secret of two nodes.
func (n *simNode) shared(peer wgtypes.Key) ([]byte, error) {
	if n.count != nil {
		n.count.Add(1)
	}
	secret := make([]byte, wgtypes.KeyLen)
	for i := range secret {
		secret[i] = n.key[i] ^ peer[i]
	}
	return secret, nil
}

// publish tells everybody a node's candidates, which takes a while.
func (w *simWorld) publish(n *simNode) {
	n.mu.Lock()
	agent := n.agent
	n.mu.Unlock()
	if agent == nil {
		return
	}
	candidates := agent.Candidates()
	w.mu.Lock()
	frozen := w.frozen[n.name]
	if !frozen {
		w.candidates[n.name] = candidates
	}
	w.mu.Unlock()
	if frozen {
		return
	}
	for _, other := range w.nodes {
		if other != n {
			time.AfterFunc(time.Second, func() { w.distribute(other) })
		}
	}
}

// distribute gives a node the peers as they are known now.
func (w *simWorld) distribute(to *simNode) {
	w.mu.Lock()
	var peers []Peer
	for _, n := range w.nodes {
		if n != to {
			peers = append(peers, Peer{Key: n.key, Node: n.name, Endpoint: n.endpoint(), Candidates: w.candidates[n.name]})
		}
	}
	w.mu.Unlock()
	to.mu.Lock()
	agent := to.agent
	to.mu.Unlock()
	if agent != nil {
		agent.SetPeers(peers)
	}
}

// path is what a node's status says of another.
func (n *simNode) path(to *simNode) PathKind { return n.status(to).Path }

func (n *simNode) status(to *simNode) PeerStatus {
	n.mu.Lock()
	agent := n.agent
	n.mu.Unlock()
	if agent == nil {
		return PeerStatus{}
	}
	for _, p := range agent.Status().Peers {
		if p.Key == to.key {
			return p
		}
	}
	return PeerStatus{}
}

// reaches reports whether what a node sends through the tunnel arrives soon.
func (n *simNode) reaches(to *simNode) bool {
	seq := int(time.Now().UnixNano())
	n.device.send(to.key, "data", seq)
	time.Sleep(500 * time.Millisecond)
	synctest.Wait()
	to.device.mu.Lock()
	defer to.device.mu.Unlock()
	return to.device.got[seq] > 0
}

// within waits until a condition holds.
func (w *simWorld) within(limit time.Duration, what string, holds func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	for !holds() {
		if time.Since(began) > limit {
			w.t.Fatalf("after %v: not %s", limit, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(began)
}
