package nat

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"
)

// Resolve looks up the addresses of a host name.
type Resolve func(ctx context.Context, host string) ([]netip.Addr, error)

const (
	// maxMissed is how many refreshes in a row may bring no answer of a server
	// before what servers said before is forgotten.
	maxMissed = 3
	// bareRefresh is between refreshes while nothing else keeps the mapping that
	// others are told of: less than the 30 s for which translators remember.
	bareRefresh = 25 * time.Second
	// freshTime is for how long a refresh has seen the network as it is, so that none
	// is begun anew because somebody begins to watch for changes.
	freshTime = 100 * time.Millisecond
	// refreshAgain is the least time between refreshes that lost paths ask for.
	refreshAgain = 10 * time.Second
	// maxSeen bounds the candidates of a family that peers tell of.
	maxSeen = 2
	// checkSpread is between the checks of two paths when all are checked.
	checkSpread = 2 * time.Millisecond
)

// observation is what a peer saw this node come from.
type observation struct {
	addr netip.AddrPort
	by   netip.Addr
	at   time.Time
}

// refreshing looks up this node's candidates, once at a time.
type refreshing struct {
	servers *Discoverer
	found   chan found
	run     uint64
	running bool
	cancel  context.CancelFunc
	wanted  bool
	began   time.Time
	next    time.Time
	ticks   []chan error // to be answered when the refresh is done
	done    []chan error // and the device was looked at
	missed  [families]int
	// doubt is about what servers said before, since a path was silent; doubted is
	// that of the refresh that runs.
	doubt, doubted bool
}

// found is what a refresh has found so far.
type found struct {
	run     uint64
	hosts   []netip.AddrPort // nil if they could not be read
	servers Discovery
	done    bool
}

// startRefresh begins to look up candidates if it is time.
func (e *engine) startRefresh(ctx context.Context) {
	r := &e.refresh
	if !r.wanted && e.now.Before(r.next) || r.running {
		return
	}
	r.wanted, r.running = false, true
	r.doubt, r.doubted = false, r.doubt
	r.began, r.next = e.now, e.now.Add(e.refreshInterval())
	r.run++
	run := r.run
	ctx, r.cancel = context.WithCancel(ctx)
	e.beside.Go(func() {
		f := found{run: run, hosts: e.hostAddrs()}
		e.report(ctx, f)
		f.servers = r.servers.Discover(ctx, e.config.STUNServers, func(d Discovery) {
			e.report(ctx, found{run: run, hosts: f.hosts, servers: d})
		})
		f.done = true
		e.report(ctx, f)
	})
}

// refreshInterval is until the next refresh.
func (e *engine) refreshInterval() time.Duration {
	bare := e.isNatted()
	for _, p := range e.peers {
		u := p.inUse
		bare = bare && (u == nil || u.way != e.direct || !e.translates(u.remote.Addr())) // not by the translator
	}
	if bare {
		return min(bareRefresh, e.config.RefreshInterval)
	}
	return e.config.RefreshInterval
}

// refreshSoon has candidates looked up again, but not again and again.
func (e *engine) refreshSoon() {
	e.refresh.doubt = true
	if soon := e.refresh.began.Add(refreshAgain); soon.Before(e.refresh.next) {
		e.refresh.next = soon
	}
}

func (e *engine) report(ctx context.Context, f found) {
	select {
	case e.refresh.found <- f:
	case <-ctx.Done():
	}
}

// hostAddrs are this node's own addresses with the WireGuard port, or nil if
// they cannot be read.
func (e *engine) hostAddrs() []netip.AddrPort {
	addrs, err := e.options.Hosts()
	if err != nil {
		e.log.Warn("addresses of this node cannot be read", "err", err)
		return nil
	}
	hosts := []netip.AddrPort{}
	for _, addr := range addrs {
		hosts = append(hosts, netip.AddrPortFrom(addr.Unmap(), uint16(e.options.ListenPort()))) //nolint:gosec // a port
	}
	return hosts
}

// networkChanged begins the refresh anew and checks every path in use, because the
// network changed.
func (e *engine) networkChanged() {
	if r := &e.refresh; !r.running || e.now.Sub(r.began) > freshTime {
		r.wanted = true
		if r.running {
			r.cancel()
			r.running = false
		}
	}
	check := e.now
	for _, p := range e.peers {
		if p.inUse != nil {
			check = check.Add(checkSpread)
			p.inUse.check = check
		}
		p.hastened = time.Time{} // nobody else has a hand in that
		e.renew(p)
	}
	e.stepAll()
}

// discovered takes in what a refresh has found.
func (e *engine) discovered(f found) {
	r := &e.refresh
	if f.run != r.run || !r.running {
		return
	}
	if f.hosts != nil && !slices.Equal(e.hosts, f.hosts) {
		e.hosts = f.hosts
		e.judgePeers()
	}
	for i, said := range [families]Reflection{f.servers.IPv4, f.servers.IPv6} {
		e.reflect(i, said, f.done)
	}
	if f.done {
		r.cancel()
		r.running = false
		e.seen = e.seenByPeers()
		for server, err := range f.servers.Faults {
			e.log.Debug("STUN server at fault", "server", server, "err", err)
		}
		e.setMapping(overall(f.servers))
		r.done, r.ticks = append(r.done, r.ticks...), nil
		if e.look(); e.nextLook().IsZero() && !e.device.running {
			e.answerTicks(nil)
		}
	}
	e.judgeOwn()
	if next := r.began.Add(e.refreshInterval()); f.done && next.Before(r.next) { // perhaps a translator is known just now
		r.next = next
	}
}

// answerTicks tells those who wait that the device was looked at, or why not.
func (e *engine) answerTicks(err error) {
	for _, done := range e.refresh.done {
		done <- err // which has room for it
	}
	e.refresh.done = nil
}

// reflect takes in what servers say of a family. While some have not answered
// it takes in only what is new. A symmetric mapping's ports are of no use to
// others, so new ones are no news, unless a path was silent: it may be that servers
// contradict each other, and the mapping is not symmetric.
func (e *engine) reflect(family int, said Reflection, done bool) {
	r, was := &e.refresh, e.reflexive[family]
	switch {
	case len(said.Addrs) == 0:
		if done {
			if r.missed[family]++; r.missed[family] >= maxMissed {
				e.reflexive[family] = Reflection{}
			}
		}
		return
	case was.Mapping == Symmetric && !r.doubted && (said.Mapping == Symmetric || !done) && containsAll(hostsOf(was.Addrs), hostsOf(said.Addrs)):
	case !done && len(was.Addrs) > 0 && !r.doubted: // who answers first may be the one that is wrong
	case done || !containsAll(was.Addrs, said.Addrs):
		e.reflexive[family] = said
	}
	r.missed[family] = 0
}

func hostsOf(addrs []netip.AddrPort) []netip.Addr {
	var hosts []netip.Addr
	for _, a := range addrs {
		hosts = append(hosts, a.Addr())
	}
	return hosts
}

func containsAll[T comparable](all, some []T) bool {
	return !slices.ContainsFunc(some, func(s T) bool { return !slices.Contains(all, s) })
}

// overall is the worse of what is known of both families.
func overall(d Discovery) Mapping {
	for _, m := range []Mapping{Symmetric, EndpointIndependent} {
		if d.IPv4.Mapping == m || d.IPv6.Mapping == m {
			return m
		}
	}
	return MappingUnknown
}

// seenByPeers are the addresses that become candidates because peers see this
// node come from there, by the rule that [Agent] tells.
func (e *engine) seenByPeers() []netip.AddrPort {
	var seen []netip.AddrPort
	for f := range families {
		voters := map[netip.Addr]bool{}
		votes := map[netip.AddrPort]map[netip.Addr]bool{}
		for _, p := range e.peers {
			o := p.observed[f]
			if !o.addr.IsValid() || family(o.addr.Addr()) != f || e.now.Sub(o.at) > 2*e.config.RefreshInterval {
				continue
			}
			voters[o.by] = true
			if votes[o.addr] == nil {
				votes[o.addr] = map[netip.Addr]bool{}
			}
			votes[o.addr][o.by] = true
		}
		var best []netip.AddrPort
		for addr, by := range votes {
			alone := len(voters) == 1 && len(e.reflexive[f].Addrs) == 0
			if (len(by) > 1 || alone) && !slices.Contains(e.hosts, addr) && !slices.Contains(e.reflexive[f].Addrs, addr) {
				best = append(best, addr)
			}
		}
		slices.SortFunc(best, func(a, b netip.AddrPort) int {
			return cmp.Or(cmp.Compare(len(votes[b]), len(votes[a])), a.Compare(b))
		})
		seen = append(seen, best[:min(maxSeen, len(best))]...)
	}
	return seen
}
