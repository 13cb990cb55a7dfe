package nat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// How RFC 8489, section 6.2.1, retransmits over UDP.
const (
	// firstWait is how long the first request may go unanswered; the wait doubles
	// with each that follows.
	firstWait = 500 * time.Millisecond
	// maxRequests is how often a request is sent.
	maxRequests = 7
	// lastWait is how long the last one may go unanswered.
	lastWait = 16 * firstWait
)

// lookupTimeout is longer than a resolver's own retries against two servers.
const lookupTimeout = 12 * time.Second

// Mapping says how the way out chooses the address that others see.
type Mapping string

// The kinds of mapping.
const (
	// MappingUnknown is the mapping if fewer than two servers have answered.
	MappingUnknown Mapping = "unknown"
	// EndpointIndependent gives all destinations the same address, as no NAT at
	// all does: a peer may use what a server has seen.
	EndpointIndependent Mapping = "endpoint-independent"
	// Symmetric gives destinations different ones: what a server has seen says
	// little about what a peer will see.
	Symmetric Mapping = "symmetric"
)

// Reflection is what one family looks like from outside.
type Reflection struct {
	// Addrs are the node's addresses as servers saw them, sorted: one, or with a
	// symmetric mapping, several.
	Addrs []netip.AddrPort
	// Mapping is never empty.
	Mapping Mapping
}

// Discovery is what servers said. It is advice and no proof: see [Discoverer].
type Discovery struct {
	IPv4, IPv6 Reflection
	// Faults says by server what was wrong with it.
	Faults map[string]error
}

// Discoverer asks STUN servers what this node's WireGuard port looks like from
// outside. Safe for concurrent use.
//
// Anybody can run a server, so none is believed alone where others speak. Each
// has one voice per family, and so has each address if several servers share
// one. If more than half of them, and at least two, saw one address, that is the
// address, and those who saw others are at fault: of three servers, one liar gains
// nothing. Of two that differ nobody can tell who lies: then the mapping is
// symmetric and both addresses are reported, which costs peers some checks that nobody
// answers, as a server that is alone and lies does. A liar can never make a
// path used, since only a check that the peer itself answers proves a path. What is
// not an answer to a request under way, from the very address asked, is no voice.
type Discoverer struct {
	send    func(packet []byte, to netip.AddrPort) error
	resolve func(ctx context.Context, host string) ([]netip.Addr, error)

	mu    sync.Mutex // guards asked and what it points to
	asked map[TransactionID]*question
}

// question is a request under way.
type question struct {
	to     netip.AddrPort
	answer chan Message   // has room for the one answer
	stray  netip.AddrPort // who else answered it
}

// NewDiscoverer returns a discoverer that sends by send, which has to be the
// WireGuard port itself and may fail, and looks names up with resolve.
func NewDiscoverer(send func(packet []byte, to netip.AddrPort) error, resolve func(ctx context.Context, host string) ([]netip.Addr, error)) *Discoverer {
	return &Discoverer{send: send, resolve: resolve, asked: map[TransactionID]*question{}}
}

// Deliver hands over a message that came in from an address, and reports
// whether it answers one of the discoverer's requests. It does not block.
func (d *Discoverer) Deliver(from netip.AddrPort, m Message) (taken bool) {
	if m.Class != ClassSuccess && m.Class != ClassError {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	q := d.asked[m.ID]
	if q == nil {
		return false
	}
	if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); from != q.to {
		q.stray = from
		return true
	}
	delete(d.asked, m.ID) // what comes again is no answer
	q.answer <- m
	return true
}

// report is how one server did in one family. Without an error, it saw the
// request come from seen.
type report struct {
	server int // its place in the list
	asked  netip.AddrPort
	seen   netip.AddrPort
	err    error
}

// Discover asks all servers, given as HOST:PORT, at the same time, at one address
// in each family that they have. It returns when each has answered or failed, which
// takes 40 s if one is silent, or when ctx ends. So it also calls known, unless
// that is nil, with what is known after each answer and each failure, one call at a
// time.
func (d *Discoverer) Discover(ctx context.Context, servers []string, known func(Discovery)) Discovery {
	servers = distinct(servers)
	incoming := make(chan report)
	var asking sync.WaitGroup
	for i, server := range servers {
		asking.Go(func() { d.askServer(ctx, i, server, incoming) })
	}
	go func() {
		asking.Wait()
		close(incoming)
	}()
	var reports []report
	for r := range incoming {
		reports = append(reports, r)
		if known != nil {
			known(conclude(servers, reports))
		}
	}
	return conclude(servers, reports)
}

// distinct drops repetitions and keeps the order.
func distinct(texts []string) []string {
	var kept []string
	for _, text := range texts {
		if !slices.Contains(kept, text) {
			kept = append(kept, text)
		}
	}
	return kept
}

// askServer reports on a server in each family, or that it has no address.
func (d *Discoverer) askServer(ctx context.Context, place int, server string, incoming chan<- report) {
	addrs, err := d.addrsOf(ctx, server)
	if err != nil {
		incoming <- report{server: place, err: err}
		return
	}
	var asking sync.WaitGroup
	for _, addr := range addrs {
		asking.Go(func() {
			seen, err := d.ask(ctx, addr)
			incoming <- report{server: place, asked: addr, seen: seen, err: err}
		})
	}
	asking.Wait()
}

// addrsOf returns a server's address in each family that it has.
func (d *Discoverer) addrsOf(ctx context.Context, server string) ([]netip.AddrPort, error) {
	host, port, err := ParseServer(server)
	if err != nil {
		return nil, err
	}
	addr, err := netip.ParseAddr(host)
	addrs := []netip.Addr{addr}
	if err != nil {
		lookup, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		if addrs, err = d.resolve(lookup, host); err != nil {
			return nil, fmt.Errorf("resolve STUN server %s: %w", host, err)
		}
	}
	var chosen []netip.AddrPort
	for _, addr := range addrs {
		to := netip.AddrPortFrom(addr.Unmap(), port)
		sameFamily := func(other netip.AddrPort) bool { return other.Addr().Is4() == to.Addr().Is4() }
		if unreachable(to) == "" && !slices.ContainsFunc(chosen, sameFamily) {
			chosen = append(chosen, to)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("STUN server %s: no server can be at %v", server, addrs)
	}
	return chosen, nil
}

// ParseServer splits HOST:PORT, in which an IPv6 address is in brackets.
func ParseServer(text string) (host string, port uint16, err error) {
	host, digits, err := net.SplitHostPort(text)
	if err != nil {
		return "", 0, fmt.Errorf("STUN server %q: want HOST:PORT: %w", text, err)
	}
	number, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || number == 0 || host == "" {
		return "", 0, fmt.Errorf("STUN server %q: want HOST:PORT", text)
	}
	return host, uint16(number), nil
}

// ask sends requests to an address until it answers, and returns where it saw
// them come from. Without a route it gives up at once: when there is one, it is
// time to ask anew.
func (d *Discoverer) ask(ctx context.Context, to netip.AddrPort) (netip.AddrPort, error) {
	id, q := NewTransactionID(), &question{to: to, answer: make(chan Message, 1)}
	d.begin(id, q)
	defer d.end(id)
	packet := ServerRequest(id)
	var unsent error
	wait := firstWait
	for n := 1; n <= maxRequests; n++ {
		if unsent = d.send(packet, to); noRoute(unsent) {
			return netip.AddrPort{}, fmt.Errorf("ask %v: %w", to, unsent)
		}
		if n == maxRequests {
			wait = lastWait
		}
		timer := time.NewTimer(wait)
		select {
		case m := <-q.answer:
			timer.Stop()
			return seenBy(to, m)
		case <-ctx.Done():
			timer.Stop()
			return netip.AddrPort{}, d.unanswered(q, n, errors.Join(ctx.Err(), unsent))
		case <-timer.C:
		}
		wait *= 2
	}
	return netip.AddrPort{}, d.unanswered(q, maxRequests, unsent)
}

func (d *Discoverer) begin(id TransactionID, q *question) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked[id] = q
}

func (d *Discoverer) end(id TransactionID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.asked, id)
}

// unanswered says that nothing came, and what did.
func (d *Discoverer) unanswered(q *question, requests int, cause error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := fmt.Errorf("ask %v: no answer to %d requests", q.to, requests)
	if q.stray.IsValid() {
		err = fmt.Errorf("%w, but one from %v", err, q.stray)
	}
	if cause != nil {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// noRoute tells a family or network that this node does not have from a packet
// that was lost on its way out.
func noRoute(err error) bool {
	return slices.ContainsFunc([]error{syscall.ENETUNREACH, syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT}, func(is error) bool { return errors.Is(err, is) })
}

// seenBy returns what an answer says, if it can be.
func seenBy(server netip.AddrPort, m Message) (netip.AddrPort, error) {
	if m.Class == ClassError {
		return netip.AddrPort{}, fmt.Errorf("ask %v: it answers with error %d", server, m.Code)
	}
	if why := unreachable(m.Mapped); why != "" {
		return netip.AddrPort{}, fmt.Errorf("ask %v: it says that the request came from %v, but no node can be at %s", server, m.Mapped, why)
	}
	if m.Mapped.Addr().Is4() != server.Addr().Is4() {
		return netip.AddrPort{}, fmt.Errorf("ask %v: it says that the request came from %v, of the other family", server, m.Mapped)
	}
	return m.Mapped, nil
}

// conclude makes of the reports what [Discoverer] promises.
func conclude(servers []string, reports []report) Discovery {
	reports = slices.Clone(reports)
	slices.SortStableFunc(reports, func(a, b report) int { return a.server - b.server })
	faulty := make([][]error, len(servers))
	var voices [2][]report // IPv4, IPv6
	for _, r := range reports {
		switch {
		case r.err != nil && !(noRoute(r.err) && answered(reports, r.server)): // one family will do
			faulty[r.server] = append(faulty[r.server], r.err)
		case r.err == nil && r.seen.Addr().Is4():
			voices[0] = append(voices[0], r)
		case r.err == nil:
			voices[1] = append(voices[1], r)
		}
	}
	dissent := func(r report, most netip.AddrPort) {
		faulty[r.server] = append(faulty[r.server], fmt.Errorf("ask %v: it says that the request came from %v, but most say %v", r.asked, r.seen, most))
	}
	d := Discovery{IPv4: tally(voices[0], dissent), IPv6: tally(voices[1], dissent), Faults: map[string]error{}}
	for i, errs := range faulty {
		if len(errs) > 0 {
			d.Faults[servers[i]] = errors.Join(errs...)
		}
	}
	return d
}

// answered reports whether a server answered in one of the families.
func answered(reports []report, server int) bool {
	return slices.ContainsFunc(reports, func(r report) bool { return r.server == server && r.err == nil })
}

// tally takes the voices of one family, and names those that most contradict.
func tally(voices []report, dissent func(r report, most netip.AddrPort)) Reflection {
	heard := map[netip.Addr]bool{}
	votes := map[netip.AddrPort]int{}
	var most netip.AddrPort
	for _, r := range voices {
		if heard[r.asked.Addr()] { // several servers at one address are one
			continue
		}
		heard[r.asked.Addr()] = true
		votes[r.seen]++
		if votes[r.seen] > votes[most] {
			most = r.seen
		}
	}
	if agree := votes[most]; agree > 1 && 2*agree > len(heard) {
		for _, r := range voices {
			if r.seen != most {
				dissent(r, most)
			}
		}
		return Reflection{Addrs: []netip.AddrPort{most}, Mapping: EndpointIndependent}
	}
	reflection := Reflection{Mapping: MappingUnknown}
	for addr := range votes {
		reflection.Addrs = append(reflection.Addrs, addr)
	}
	slices.SortFunc(reflection.Addrs, netip.AddrPort.Compare)
	if len(heard) > 1 {
		reflection.Mapping = Symmetric
	}
	return reflection
}
