package nat

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pion/logging"
	"github.com/pion/turn/v5"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	// RelayMaxLifetime is how long an allocation lasts that is not refreshed: longer
	// than a client waits for answers, and not much longer, since what a client could
	// not give back takes one of its places.
	RelayMaxLifetime = time.Minute

	relayRealm          = "zlayer"
	relayDefaultPort    = 3478
	relayDefaultMax     = 100
	relayDefaultPerNode = 4
	relayDefaultRate    = 32 << 20

	// The ports of allocations lie in the range from which the kernel takes those of
	// sockets that ask for none, so one in use by another program is passed over.
	relayPortMin = 49152
	relayPortMax = 50175
	// relayLocalRefresh is how soon an address that the node got is known to be
	// its own.
	relayLocalRefresh = 15 * time.Second
)

// RelayConfig is what a relay needs to know.
type RelayConfig struct {
	// External are the addresses by which others reach this node, at most one of
	// each family. They may be a translator's that forwards all ports below.
	External []netip.Addr
	// ListenPort is where clients come by UDP, 3478 if zero. TCPPort and TLSPort
	// are for those who cannot; zero is none.
	ListenPort, TCPPort, TLSPort uint16
	// Certificate is for TLS; nil is one made at random, see NewRelayCertificate
	// for one that lasts. What is relayed is WireGuard's, encrypted from end to
	// end: TLS is here for networks that let nothing else out.
	Certificate *tls.Certificate
	// MaxSessions bounds allocations, 100 if zero; MaxPerNode those of one node, 4
	// if zero.
	MaxSessions, MaxPerNode int
	// Bandwidth is how many bytes a second an allocation may relay in each
	// direction, 32 MiB if zero.
	Bandwidth int
	// Shared is this node's.
	Shared SharedSecret
	// Forbidden are prefixes to which nothing is relayed besides what is never:
	// services, and pods beyond those of the peers.
	Forbidden []netip.Prefix
	// WireGuardPort is the one port of this node itself that may be reached at an
	// external address: for a client that can reach nothing but its relay. Zero is
	// none.
	WireGuardPort uint16
	// OnServing is called when Run serves from now on; nil is fine.
	OnServing func()
	// Local returns this node's addresses with their networks; nil asks the
	// system.
	Local func() ([]netip.Prefix, error)
	Log   *slog.Logger
}

// RelayServer passes packets on for nodes that cannot reach each other: a TURN
// server (RFC 8656) for the nodes of this cluster, to the nodes of this cluster.
// Safe for concurrent use.
type RelayServer struct {
	cfg      RelayConfig
	stats    RelayStats
	nodes    *relayNodes
	sessions *relaySessions
	filter   atomic.Pointer[relayFilter]
	peers    atomic.Pointer[[]RelayPeer]
	// forbidden is as RelayConfig's.
	forbidden atomic.Pointer[[]netip.Prefix]
	poke      chan struct{}
	failed    chan error
	local     atomic.Pointer[map[netip.Addr]bool]
	filtered  relayFilterInput // what filter was made of; of the goroutine that runs

	// Times that are constants but for tests.
	hello, lifetime time.Duration
}

// NewRelayServer checks a configuration; Run serves.
func NewRelayServer(cfg RelayConfig) (*RelayServer, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	r := &RelayServer{
		cfg: cfg, poke: make(chan struct{}, 1), failed: make(chan error, 1),
		hello: relayHello, lifetime: RelayMaxLifetime,
	}
	r.nodes = newRelayNodes(cfg.Shared, &r.stats, cfg.Log)
	r.sessions = newRelaySessions(cfg.MaxSessions, cfg.MaxPerNode, &r.stats)
	r.peers.Store(&[]RelayPeer{})
	r.forbidden.Store(&cfg.Forbidden)
	r.filter.Store(newRelayFilter(relayFilterInput{}))
	r.local.Store(&map[netip.Addr]bool{})
	return r, nil
}

func (c *RelayConfig) complete() error {
	setDefault(&c.ListenPort, relayDefaultPort)
	setDefault(&c.MaxSessions, relayDefaultMax)
	setDefault(&c.MaxPerNode, relayDefaultPerNode)
	setDefault(&c.Bandwidth, relayDefaultRate)
	if c.Local == nil {
		c.Local = localPrefixes
	}
	families := make(map[bool]bool)
	for _, addr := range c.External {
		if unreachable(netip.AddrPortFrom(addr, 1)) != "" {
			return fmt.Errorf("external address %s is not one by which others reach this node", addr)
		}
		if families[addr.Is4()] {
			return errors.New("more than one external address of a family")
		}
		families[addr.Is4()] = true
	}
	switch {
	case len(c.External) == 0:
		return errors.New("no external address")
	case c.Shared == nil || c.Log == nil:
		return errors.New("no secrets or no log")
	case c.MaxSessions < 0 || c.MaxPerNode < 0 || c.Bandwidth < 0:
		return errors.New("negative limit")
	}
	return nil
}

func setDefault[T comparable](value *T, otherwise T) {
	var zero T
	if *value == zero {
		*value = otherwise
	}
}

// Stats returns the relay's counters.
func (r *RelayServer) Stats() *RelayStats { return &r.stats }

// SetPeers replaces the nodes that may use the relay and be reached by it. The
// allocations of a node that is gone end.
func (r *RelayServer) SetPeers(peers []RelayPeer) {
	if slices.EqualFunc(*r.peers.Load(), peers, RelayPeer.equal) {
		return
	}
	keys := make([]wgtypes.Key, 0, len(peers))
	for _, peer := range peers {
		keys = append(keys, peer.Key)
	}
	r.peers.Store(&peers)
	r.nodes.set(keys)
	r.sessions.closeIf(func(node string) bool { return !r.nodes.has(node) })
	r.wake()
}

// SetForbidden replaces RelayConfig's Forbidden.
func (r *RelayServer) SetForbidden(prefixes []netip.Prefix) {
	if slices.Equal(*r.forbidden.Load(), prefixes) {
		return
	}
	r.forbidden.Store(&prefixes)
	r.wake()
}

// wake has Run look at what changed.
func (r *RelayServer) wake() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// Run serves until its context ends, which ends all allocations.
func (r *RelayServer) Run(ctx context.Context) error {
	select {
	case err := <-r.failed: // of another socket of a run before this one
		r.cfg.Log.Debug("relay failed before", "err", err)
	default:
	}
	if err := r.refilter(); err != nil {
		return err
	}
	r.nodes.derive()
	server, err := r.listen(ctx)
	if err != nil {
		return err
	}
	r.cfg.Log.Info("relay serves", "ip", fmt.Sprint(r.cfg.External), "port", r.cfg.ListenPort)
	if r.cfg.OnServing != nil {
		r.cfg.OnServing()
	}
	err = r.wait(ctx)
	closeErr := server.Close()
	r.sessions.closeIf(func(string) bool { return true })
	if err == nil && closeErr != nil {
		err = fmt.Errorf("close relay: %w", closeErr)
	}
	return err
}

func (r *RelayServer) wait(ctx context.Context) error {
	ticker := time.NewTicker(relayLocalRefresh)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-r.failed:
			return fmt.Errorf("relay: %w", err)
		case <-r.poke:
			r.nodes.derive()
		case <-ticker.C:
		}
		if err := r.refilter(); err != nil {
			// What is known of the node's addresses goes on to hold.
			r.cfg.Log.Warn("relay cannot see the node's addresses", "err", err)
		}
	}
}

// fail ends Run: without one of its sockets a relay is none.
func (r *RelayServer) fail(err error) {
	select {
	case r.failed <- err:
	default:
	}
}

// refilter makes the filter anew if the peers or the node's addresses are others.
func (r *RelayServer) refilter() error {
	local, err := r.cfg.Local()
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	in := relayFilterInput{
		external: r.cfg.External, wireguardPort: r.cfg.WireGuardPort,
		local: local, forbidden: *r.forbidden.Load(), peers: *r.peers.Load(),
	}
	if in.equal(r.filtered) {
		return nil
	}
	addrs := make(map[netip.Addr]bool, len(local))
	for _, p := range local {
		addrs[p.Addr().Unmap()] = true
	}
	r.local.Store(&addrs)
	r.filter.Store(newRelayFilter(in))
	r.filtered = in
	return nil
}

func (r *RelayServer) count(verdict relayVerdict) {
	switch verdict {
	case relayForbiddenSelf:
		r.stats.ForbiddenSelf.Add(1)
	case relayForbiddenPeer:
		r.stats.ForbiddenPeer.Add(1)
	case relayAllowed:
	}
}

// bindAddr is where to bind so that packets leave from an external address:
// itself, or any if a translator has it.
func (r *RelayServer) bindAddr(external netip.Addr) netip.Addr {
	if (*r.local.Load())[external] {
		return external
	}
	if external.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// insideAddr is where another relayed socket of this relay is reached without
// leaving the node: a translator may not send back what comes from behind it.
func (r *RelayServer) insideAddr(external netip.Addr) netip.Addr {
	switch bound := r.bindAddr(external); {
	case !bound.IsUnspecified():
		return bound
	case bound.Is4():
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

func (r *RelayServer) externalOf(network string) (netip.Addr, bool) {
	for _, addr := range r.cfg.External {
		if addr.Is4() == (network == "udp4") {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

func (r *RelayServer) maxConnections() int { return r.cfg.MaxSessions + relayConnsPerAddr }

// listen opens all sockets, or none.
func (r *RelayServer) listen(ctx context.Context) (server *turn.Server, err error) {
	config := turn.ServerConfig{
		LoggerFactory: silentTURN{}, Realm: relayRealm, InboundMTU: relayFrame,
		AllocationLifetime: RelayMaxLifetime,
		AuthHandler:        r.authenticate,
		QuotaHandler:       r.hasRoom,
		EventHandler:       turn.EventHandler{OnAuth: r.authenticated, OnAllocationCreated: r.allocated},
	}
	defer func() {
		if err == nil {
			return
		}
		for _, c := range config.PacketConnConfigs {
			_ = c.PacketConn.Close()
		}
		for _, c := range config.ListenerConfigs {
			_ = c.Listener.Close()
		}
	}()
	for _, external := range r.cfg.External {
		if err := r.listenAt(ctx, external, &config); err != nil {
			return nil, fmt.Errorf("relay at %s: %w", external, err)
		}
	}
	if server, err = turn.NewServer(config); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	return server, nil
}

func (r *RelayServer) listenAt(ctx context.Context, external netip.Addr, config *turn.ServerConfig) error {
	udp, tcp := "udp6", "tcp6"
	if external.Is4() {
		udp, tcp = "udp4", "tcp4"
	}
	addr := netip.AddrPortFrom(r.bindAddr(external), r.cfg.ListenPort)
	conn, err := net.ListenUDP(udp, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	_ = conn.SetReadBuffer(4 * relaySocketBuffer) // less is only slower
	_ = conn.SetWriteBuffer(4 * relaySocketBuffer)
	config.PacketConnConfigs = append(config.PacketConnConfigs, turn.PacketConnConfig{
		PacketConn:            &relayFront{server: r, conn: conn, local: addr},
		RelayAddressGenerator: relayGenerator{r}, PermissionHandler: r.permits,
	})
	listen := func(port uint16, config *tls.Config) (turn.ListenerConfig, error) {
		var lc net.ListenConfig
		inner, err := lc.Listen(ctx, tcp, netip.AddrPortFrom(addr.Addr(), port).String())
		if err != nil {
			return turn.ListenerConfig{}, err
		}
		return turn.ListenerConfig{
			Listener:              newRelayListener(r, inner, config),
			RelayAddressGenerator: relayGenerator{r}, PermissionHandler: r.permits,
		}, nil
	}
	if r.cfg.TCPPort != 0 {
		l, err := listen(r.cfg.TCPPort, nil)
		if err != nil {
			return err
		}
		config.ListenerConfigs = append(config.ListenerConfigs, l)
	}
	if r.cfg.TLSPort != 0 {
		tlsConfig, err := r.tlsConfig()
		if err != nil {
			return err
		}
		l, err := listen(r.cfg.TLSPort, tlsConfig)
		if err != nil {
			return err
		}
		config.ListenerConfigs = append(config.ListenerConfigs, l)
	}
	return nil
}

func (r *RelayServer) tlsConfig() (*tls.Config, error) {
	certificate := r.cfg.Certificate
	if certificate == nil {
		seed := make([]byte, 32)
		_, _ = rand.Read(seed) // never fails
		made, err := NewRelayCertificate(seed)
		if err != nil {
			return nil, err
		}
		certificate = &made
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*certificate}}, nil
}

// silentTURN is the TURN server's log. It writes several lines for each packet,
// and strangers could fill a disk by it; what counts is counted.
type silentTURN struct{}

// NewLogger returns a logger that writes nothing.
func (silentTURN) NewLogger(string) logging.LeveledLogger {
	return &logging.DefaultLeveledLogger{}
}
