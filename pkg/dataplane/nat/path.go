package nat

import (
	"net/netip"
	"slices"
	"time"
)

// path is a pair of candidates, this node's way and the peer's address.
type path struct {
	way    Way
	remote netip.AddrPort
}

// What a path is worth, more for a better one. The two ends of a relayed path
// have to agree, or each would change to what it likes better. A path by the port itself
// is worth its remote kind's priority, which is at least [Reflexive]'s, and
// openWorth more if nothing translates.
const (
	openWorth      = 1
	oneRelayWorth  = 20
	twoRelaysWorth = 10
)

const (
	// maxStrangers bounds the addresses of a search that are no candidates of the
	// peer's, but that checks of it came from.
	maxStrangers = 4
	// maxPorts bounds the ports of one address at which a peer is looked for: a
	// symmetric translator shows servers and peers a few.
	maxPorts = 4
)

// Diverter is a [Way] that can send what the device sends by it another way
// instead. WireGuard sends to where it last heard a peer from. If a path is
// changed under traffic, packets that are under way by the former one lead this
// end's device back to it, the answers do so to the peer's, and so on for ever. With a
// diversion the peer hears nothing by the former path, so it changes to the new
// one, and by and by nothing comes by the former one any more. Nothing is lost
// or late.
type Diverter interface {
	Way
	// Divert has what the device sends to remote by this way go to an address by
	// another way, for a time. It takes the place of an earlier one.
	Divert(remote netip.AddrPort, by Way, to netip.AddrPort, during time.Duration)
}

// translates reports whether a translator of this node is on the way to addr.
func (e *engine) translates(addr netip.Addr) bool {
	return e.translated[family(addr)] && !addr.IsPrivate() && !addr.IsLinkLocalUnicast()
}

const families = 2

func family(addr netip.Addr) int {
	if addr.Is6() {
		return 1
	}
	return 0
}

// speaks reports whether this node has addresses of addr's family, as far as is
// known.
func (e *engine) speaks(addr netip.Addr) bool {
	return len(e.hosts) == 0 || slices.ContainsFunc(e.hosts, func(h netip.AddrPort) bool { return family(h.Addr()) == family(addr) })
}

// mixed reports whether one of this node and a peer is published in a family that
// the other lacks, so that it has to look for another address.
func (e *engine) mixed(p *peer) bool {
	if p.Endpoint.IsValid() && !e.speaks(p.Endpoint.Addr()) {
		return true
	}
	remotes := p.remotes()
	if e.options.Published == nil || len(remotes) == 0 {
		return false
	}
	own := e.options.Published()
	return own.IsValid() && !slices.ContainsFunc(remotes, func(r netip.AddrPort) bool { return family(r.Addr()) == family(own.Addr()) })
}

// kindOf says what a peer's address is. One that the peer does not tell of was
// seen by packets, so it is reflexive.
func (p *peer) kindOf(addr netip.AddrPort) Kind {
	if addr == p.Endpoint {
		return Host
	}
	for _, c := range p.Candidates { // sorted: the best kind first
		if c.Addr == addr {
			return c.Kind
		}
	}
	return Reflexive
}

// pathKind is what a path is to people.
func (e *engine) pathKind(p *peer, x path) PathKind {
	switch kind := p.kindOf(x.remote); {
	case x.way != e.direct || kind == Relayed:
		return ByRelay
	case kind == Reflexive || e.translates(x.remote.Addr()):
		return HolePunched
	}
	return Direct
}

// useKind is what the path in use is to people. What the peer sees of us tells of
// a translator that no server is behind.
func (e *engine) useKind(p *peer) PathKind {
	u := p.inUse
	if kind := e.pathKind(p, u.path); kind != Direct || !u.mapped.IsValid() || e.isOwn(u.mapped) {
		return kind
	}
	return HolePunched
}

// kept reports whether a path may close if nothing is sent. Routers that
// translate one family mostly keep strangers out by the other, so where one is on the
// way, paths between public addresses are kept open, too.
func (e *engine) kept(p *peer, x path) bool {
	return e.pathKind(p, x) != Direct || !x.remote.Addr().IsPrivate() && (e.isNatted() || isTranslated(p.Candidates))
}

// score is what a path is worth.
func (e *engine) score(p *peer, x path) int {
	kind := p.kindOf(x.remote)
	switch {
	case x.way != e.direct && kind == Relayed:
		return twoRelaysWorth
	case x.way != e.direct || kind == Relayed:
		return oneRelayWorth
	case e.pathKind(p, x) != Direct:
		return int(kind.Priority())
	}
	return int(kind.Priority()) + openWorth
}

// remotes are the addresses at which a peer may be.
func (p *peer) remotes() []netip.AddrPort {
	var addrs []netip.AddrPort
	add := func(addr netip.AddrPort) {
		ports := 0
		for _, a := range addrs {
			if a.Addr() == addr.Addr() {
				ports++
			}
		}
		if unreachable(addr) == "" && !slices.Contains(addrs, addr) && ports < maxPorts {
			addrs = append(addrs, addr)
		}
	}
	add(p.Endpoint)
	for _, c := range p.Candidates {
		add(c.Addr)
	}
	for _, s := range p.strangers {
		add(s.addr)
	}
	return addrs
}

// wayIn is a way of this node, with what it reaches.
type wayIn struct {
	way     Way
	relayed netip.AddrPort // the zero value for the port itself
}

// reaches reports whether a way may lead to one of a peer's addresses. A relay that
// has a public address is hardly in the peer's LAN, so it is not asked to go to a
// private one if there is a public one.
func (w wayIn) reaches(addr netip.Addr, all []netip.AddrPort) bool {
	switch {
	case !w.relayed.IsValid():
		return true
	case w.relayed.Addr().Is4() != addr.Is4():
		return false
	case !addr.IsPrivate() || w.relayed.Addr().IsPrivate():
		return true
	}
	return !slices.ContainsFunc(all, func(a netip.AddrPort) bool { return a.Addr().Is4() == addr.Is4() && !a.Addr().IsPrivate() })
}

// ways are the port itself and the relays.
func (e *engine) ways() []wayIn {
	ways := []wayIn{{way: e.direct}}
	return append(ways, e.relays...)
}

// pathOf is the path that the device takes when it sends to endpoint.
func (e *engine) pathOf(endpoint netip.AddrPort) (path, bool) {
	for _, r := range e.relays {
		if to, ok := r.way.Remote(endpoint); ok {
			return path{r.way, to}, true
		}
	}
	if !endpoint.IsValid() || endpoint.Addr().IsLoopback() {
		return path{}, false
	}
	to, ok := e.direct.Remote(endpoint)
	return path{e.direct, to}, ok
}
