package nat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	relayRetryFirst = time.Second
	relayRetryMax   = 30 * time.Second
	// relayUpgrade is how often a client that had to use TCP looks whether UDP
	// works by now, and relayLinger how long it then still takes packets by TCP.
	relayUpgrade = 5 * time.Minute
	relayLinger  = time.Minute
	// relayRemoteIdle is how long a remote lives without traffic.
	relayRemoteIdle    = 5 * time.Minute
	relayIdleCheck     = 30 * time.Second
	relayDefaultRemote = channelLast - channelFirst + 1
)

// RelayClientConfig is what a relay's client needs to know.
type RelayClientConfig struct {
	// UDP, TCP and TLS are the relay's addresses, as host:port; what is empty is
	// not tried. Fingerprint is RelayFingerprint of its certificate; empty, the
	// certificate must be one for that host that this machine trusts.
	UDP, TCP, TLS string
	Fingerprint   string

	// Relay is the WireGuard key of a node that is a relay, Self this node's, and
	// Shared its secrets.
	Relay, Self wgtypes.Key
	Shared      SharedSecret
	// Username and Credential are for a TURN server that is none of the cluster's.
	Username   string
	Credential Secret

	// WireGuardPort is where the device listens.
	WireGuardPort uint16
	// MaxRemotes bounds the addresses that a device exchanges packets with, as many
	// as a relay has channels if zero.
	MaxRemotes int
	// Deliver gets STUN packets of peers. It must not block, and packet is valid
	// only in the call.
	Deliver func(way Way, from netip.AddrPort, packet []byte)
	// Up is told each new relayed address, and Down when there is none any more,
	// or none at the first try, and why. They are called one at a time.
	Up   func(relayed netip.AddrPort)
	Down func(err error)
	Log  *slog.Logger
}

func (c *RelayClientConfig) address(kind string) string {
	return map[string]string{"udp": c.UDP, "tcp": c.TCP, "tls": c.TLS}[kind]
}

// RelayClient keeps an allocation at a relay, and is a Way through it. Safe for
// concurrent use.
type RelayClient struct {
	cfg         RelayClientConfig
	credentials relayCredentials
	current     atomic.Pointer[turnSession]
	buffers     sync.Pool
	wg          sync.WaitGroup

	// Times that are constants but for tests.
	refresh, answer, upgrade, linger, idle, idleCheck time.Duration

	// port is the one that UDP left from last: from there a relay knows an allocation
	// that could not be given back. Of the goroutine that runs.
	port uint16

	mu         sync.RWMutex // guards all below
	running    bool
	remotes    map[netip.AddrPort]*relayRemote
	byEndpoint map[netip.AddrPort]*relayRemote
	strangers  int // of remotes, made for what came from elsewhere

	permitMu sync.Mutex // guards permits
	permits  map[netip.Addr]*relayPermit
}

var _ Diverter = (*RelayClient)(nil)

// NewRelayClient checks a configuration; Run connects.
func NewRelayClient(cfg RelayClientConfig) (*RelayClient, error) {
	c := &RelayClient{
		remotes: make(map[netip.AddrPort]*relayRemote), byEndpoint: make(map[netip.AddrPort]*relayRemote),
		permits: make(map[netip.Addr]*relayPermit),
		refresh: relayRefresh, answer: relayAnswerTime, upgrade: relayUpgrade, linger: relayLinger,
		idle: relayRemoteIdle, idleCheck: relayIdleCheck,
	}
	c.buffers.New = func() any { return new([relayPool]byte) }
	setDefault(&cfg.MaxRemotes, relayDefaultRemote)
	switch {
	case cfg.UDP == "" && cfg.TCP == "" && cfg.TLS == "":
		return nil, errors.New("client of a relay: no address")
	case cfg.Deliver == nil || cfg.Up == nil || cfg.Down == nil || cfg.Log == nil || cfg.WireGuardPort == 0:
		return nil, errors.New("client of a relay: incomplete configuration")
	case cfg.Shared == nil && (cfg.Username == "" || cfg.Credential == nil):
		return nil, errors.New("client of a relay: no credential")
	}
	if cfg.Shared == nil {
		c.credentials.fixed = &relayCredential{username: cfg.Username, password: cfg.Credential}
	} else {
		secret, err := cfg.Shared(cfg.Relay)
		if err != nil {
			return nil, fmt.Errorf("client of relay %s: %w", cfg.Relay, err)
		}
		c.credentials.secret, c.credentials.id = NewSecret(string(secret)), relayID(secret, cfg.Self)
	}
	c.cfg = cfg
	return c, nil
}

// Transport returns how the relay is reached: "udp", "tcp", "tls", or "" if not
// at all.
func (c *RelayClient) Transport() string {
	session := c.current.Load()
	if session == nil {
		return ""
	}
	return session.kind
}

// Run keeps an allocation until its context ends. It may be called once.
func (c *RelayClient) Run(ctx context.Context) error {
	c.setRunning(true)
	defer c.wg.Wait()
	defer c.setRunning(false)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.wg.Go(func() { c.watchIdle(ctx) })
	retry := relayRetryFirst
	for ctx.Err() == nil {
		session, err := c.connect(ctx)
		if err == nil {
			retry = relayRetryFirst
			err = c.serve(ctx, session)
		}
		if ctx.Err() != nil {
			break
		}
		c.cfg.Down(err)
		select {
		case <-ctx.Done():
		case <-time.After(retry/2 + rand.N(retry)): // not all at once after a relay's restart
		}
		retry = min(2*retry, relayRetryMax)
	}
	return nil
}

func (c *RelayClient) setRunning(running bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = running
	if running {
		return
	}
	for _, remote := range c.remotes {
		c.closeLocked(remote)
	}
}

func (c *RelayClient) watchIdle(ctx context.Context) {
	ticker := time.NewTicker(c.idleCheck)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.dropIdle(c.idle)
		}
	}
}

// connect makes an allocation by the first transport that works.
func (c *RelayClient) connect(ctx context.Context) (*turnSession, error) {
	var errs []error
	for _, kind := range []string{"udp", "tcp", "tls"} {
		if c.cfg.address(kind) == "" {
			continue
		}
		session, err := c.openSession(ctx, kind)
		if err == nil {
			return session, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// serve uses a session until it is lost, and others that replace it.
func (c *RelayClient) serve(ctx context.Context, session *turnSession) error {
	ticker := time.NewTicker(c.upgrade)
	defer ticker.Stop()
	c.use(session)
	for {
		select {
		case <-ctx.Done():
			c.current.Store(nil)
			session.close()
			return nil
		case err := <-session.lost:
			c.current.Store(nil)
			session.close()
			return err
		case <-ticker.C:
		}
		if session.kind == "udp" || c.cfg.UDP == "" {
			continue
		}
		better, err := c.openSession(ctx, "udp")
		if err != nil {
			c.cfg.Log.Debug("relay not reached by udp", "err", err)
			continue
		}
		c.use(better)
		old := session
		session = better
		c.wg.Go(func() { c.lingerOn(ctx, old) })
	}
}

// use makes a session the one by which packets leave.
func (c *RelayClient) use(session *turnSession) {
	c.current.Store(session)
	c.rebind(session)
	c.cfg.Up(session.relayed)
}

// lingerOn takes packets by a former session for a while, until all peers have
// seen the new address.
func (c *RelayClient) lingerOn(ctx context.Context, session *turnSession) {
	timer := time.NewTimer(c.linger)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case err := <-session.lost:
		c.cfg.Log.Debug("former allocation lost", "err", err)
	case <-timer.C:
	}
	session.close()
}
