//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const (
	// lookupTries and lookupTimeout are how patient who asks is: less than most
	// resolvers are.
	lookupTries   = 2
	lookupTimeout = 2 * time.Second
)

// lookup asks a server for the records of a name. What is no answer, SERVFAIL
// among it, is asked for again, and then an error.
func (p place) lookup(ctx context.Context, network string, server netip.AddrPort, name string, kind uint16) (*dns.Msg, error) {
	var last error
	for range lookupTries {
		answer, err := p.lookupOnce(ctx, network, server, name, kind)
		if err == nil && answer.Rcode == dns.RcodeServerFailure {
			err = fmt.Errorf("%v says SERVFAIL", server)
		}
		if err == nil {
			return answer, nil
		}
		last = err
	}
	return nil, fmt.Errorf("%s asks %v for %s of %s by %s: %w", p.name, server, dns.TypeToString[kind], name, network, last)
}

func (p place) lookupOnce(ctx context.Context, network string, server netip.AddrPort, name string, kind uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	conn, err := p.dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	const size = 1232
	question := new(dns.Msg).SetQuestion(name, kind).SetEdns0(size, false)
	client := dns.Client{Net: network, UDPSize: size, Timeout: lookupTimeout}
	answer, _, err := client.ExchangeWithConnContext(ctx, question, &dns.Conn{Conn: conn, UDPSize: size})
	return answer, err
}

// addresses are those of a name, of both families, in order. A name without any
// of a family is an error, or there is no such name.
func (p place) addresses(ctx context.Context, server netip.AddrPort, name string) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		answer, err := p.lookup(ctx, "udp", server, name, kind)
		if err != nil {
			return nil, err
		}
		found := addrsIn(answer)
		if len(found) == 0 {
			return nil, fmt.Errorf("%s of %s: %s without addresses", dns.TypeToString[kind], name, dns.RcodeToString[answer.Rcode])
		}
		all = append(all, found...)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all, nil
}

func addrsIn(answer *dns.Msg) []netip.Addr {
	var addrs []netip.Addr
	for _, record := range answer.Answer {
		switch r := record.(type) {
		case *dns.A:
			addrs = append(addrs, addrOf(r.A.To4()))
		case *dns.AAAA:
			addrs = append(addrs, addrOf(r.AAAA))
		}
	}
	return addrs
}

// nameAnswer is what came of a question, and when.
type nameAnswer struct {
	at    time.Time
	rcode int
	addrs []netip.Addr
	err   error
}

// nameWatch asks for the IPv4 addresses of a name again and again.
type nameWatch struct {
	server netip.AddrPort
	stop   func()
	done   chan struct{}

	mu      sync.Mutex // guards the field below
	answers []nameAnswer
}

// watch asks from now on, until the watch ends.
func (n nameTests) watch(server netip.AddrPort, name string) *nameWatch {
	const interval = 200 * time.Millisecond
	ctx, stop := context.WithCancel(context.Background())
	w := &nameWatch{server: server, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			a := nameAnswer{}
			answer, err := n.client.lookup(ctx, "udp", server, name, dns.TypeA)
			if ctx.Err() != nil {
				return
			}
			if a.at, a.err = time.Now(), err; err == nil {
				a.rcode, a.addrs = answer.Rcode, addrsIn(answer)
			}
			w.mu.Lock()
			w.answers = append(w.answers, a)
			w.mu.Unlock()
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return w
}

// until waits for the first answer after a time.
func (w *nameWatch) until(t *testing.T, at time.Time) {
	t.Helper()
	eventually(t, "questions are asked", func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.answers) == 0 || w.answers[len(w.answers)-1].at.Before(at) {
			return fmt.Errorf("none since %v", at)
		}
		return nil
	})
}

// end returns all answers. It may be called again.
func (w *nameWatch) end() []nameAnswer {
	w.stop()
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.answers
}
