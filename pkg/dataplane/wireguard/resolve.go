package wireguard

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	// lookupTimeout is longer than a resolver's own retries against two servers.
	lookupTimeout = 12 * time.Second
	// refreshHost is how often a host name is looked up again.
	refreshHost = time.Minute
	// retryHost is the pause after the first failure; it doubles up to refreshHost.
	retryHost = 2 * time.Second
	// maxLookups bounds the lookups under way at once. It is generous, since
	// names that time out must not keep the others waiting.
	maxLookups = 64
)

// resolver keeps the addresses of a set of host names fresh. A name that
// cannot be resolved keeps the address it had. Safe for concurrent use.
type resolver struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	log    *slog.Logger
	kick   chan struct{} // the set changed

	mu    sync.Mutex // guards hosts and what it points to
	hosts map[string]*hostState
}

type hostState struct {
	overlay  []netip.Prefix // where the address may not be
	addr     netip.Addr     // the zero value until the first answer
	due      time.Time      // of the next lookup
	failures int
	busy     bool
}

func newResolver(cfg Config) *resolver {
	return &resolver{lookup: cfg.Resolve, log: cfg.Log, kick: make(chan struct{}, 1), hosts: map[string]*hostState{}}
}

// set replaces the names to keep fresh, each with the prefixes where its address
// may not be.
func (r *resolver) set(hosts map[string][]netip.Prefix) {
	r.mu.Lock()
	for host := range r.hosts {
		if _, wanted := hosts[host]; !wanted {
			delete(r.hosts, host)
		}
	}
	for host, overlay := range hosts {
		state := r.hosts[host]
		if state == nil {
			state = &hostState{}
			r.hosts[host] = state
		}
		state.overlay = overlay
		if holderOf(overlay, state.addr).IsValid() {
			state.addr, state.due = netip.Addr{}, time.Time{}
		}
	}
	r.mu.Unlock()
	notify(r.kick)
}

// addr returns the address to use for host, or the zero value.
func (r *resolver) addr(host string) netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	if state := r.hosts[host]; state != nil {
		return state.addr
	}
	return netip.Addr{}
}

// run looks names up when they are due, each on its own, until ctx ends. It
// calls changed after an address changed.
func (r *resolver) run(ctx context.Context, changed func()) {
	var lookups sync.WaitGroup
	defer lookups.Wait()
	done := make(chan struct{}, 1)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.kick:
		case <-done:
		case <-timer.C:
		}
		due, pause := r.due(time.Now())
		timer.Reset(pause)
		for _, host := range due {
			lookups.Go(func() {
				if r.refresh(ctx, host) {
					changed()
				}
				notify(done)
			})
		}
	}
}

// due returns the names to look up now, marked busy, and how long it is until
// the next one is.
func (r *resolver) due(now time.Time) ([]string, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	busy := 0
	for _, state := range r.hosts {
		if state.busy {
			busy++
		}
	}
	var due []string
	pause := refreshHost
	for host, state := range r.hosts {
		wait := state.due.Sub(now)
		switch {
		case state.busy:
		case wait <= 0 && busy < maxLookups:
			state.busy = true
			busy++
			due = append(due, host)
		case wait > 0: // the others go when a lookup ends
			pause = min(pause, wait)
		}
	}
	return due, pause
}

// refresh looks host up and reports whether its address changed.
func (r *resolver) refresh(ctx context.Context, host string) bool {
	lookup, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := r.lookup(lookup, host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	if ctx.Err() != nil {
		return false
	}
	return r.settle(host, addrs, err)
}

func (r *resolver) settle(host string, addrs []netip.Addr, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := r.hosts[host]
	if state == nil { // no longer wanted
		return false
	}
	state.busy = false
	usable := slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool {
		return !usableEndpoint(a) || holderOf(state.overlay, a).IsValid()
	})
	if err == nil && len(usable) == 0 {
		err = fmt.Errorf("resolve %s: no node can be reached at %v, or only through the overlay %v", host, addrs, state.overlay)
	}
	if err != nil {
		if state.failures == 0 {
			r.log.Warn("cannot resolve endpoint", "host", host, "err", err)
		}
		state.due = time.Now().Add(min(retryHost<<min(state.failures, 10), refreshHost))
		state.failures++
		return false
	}
	state.failures = 0
	state.due = time.Now().Add(refreshHost)
	if slices.Contains(usable, state.addr) { // servers shuffle their answers; that is no change
		return false
	}
	state.addr = usable[0]
	return true
}

// resolved returns peers with the endpoints of host names filled in as far as
// they are known.
func (r *resolver) resolved(peers []Peer) []Peer {
	filled := slices.Clone(peers)
	for i := range filled {
		if filled[i].Host == "" {
			continue
		}
		host, port, ok := hostPort(filled[i].Host)
		if addr := r.addr(host); ok && addr.IsValid() {
			filled[i].Endpoint = netip.AddrPortFrom(addr, port)
		}
	}
	return filled
}

// hostsOf returns the host names among the peers' endpoints, each with the
// overlay's prefixes.
func hostsOf(peers []Peer) map[string][]netip.Prefix {
	hosts := map[string][]netip.Prefix{}
	for i := range peers {
		if host, _, ok := hostPort(peers[i].Host); ok {
			hosts[host] = peers[i].Overlay
		}
	}
	return hosts
}

func hostPort(text string) (string, uint16, bool) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", 0, false
	}
	number, err := strconv.ParseUint(port, 10, 16)
	return host, uint16(number), err == nil && host != ""
}

// notify wakes the one that waits on signal, or the one that will.
func notify(signal chan<- struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}
