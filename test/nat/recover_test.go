//go:build linux

package nat

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/natlab"
)

const (
	// recovery is how long a path may be away. It takes a check of a path that is
	// silent (15 s), two more (3 s each), and a search, of which WireGuard's
	// handshake may take two tries (5 s each). The rest is for slow machines.
	recovery = 90 * time.Second
	// steady is how many answers in a row are a path.
	steady = 3
)

// pair is a lab in which a and b are behind a router each and have met.
type pair struct {
	*lab
	a, b *natlab.Router
	want shim.ConnectionType
}

func newPair(t *testing.T, name string, kind natlab.Kind, relays ...string) *pair {
	t.Helper()
	t.Parallel()
	l := newLab(t, name)
	p := &pair{lab: l, want: shim.ConnectionHolePunched}
	if len(relays) > 0 {
		p.want = shim.ConnectionRelayed
	}
	p.a, p.b = l.router("ra", nil, natlab.Config{IPv4: kind}), l.router("rb", nil, natlab.Config{IPv4: kind})
	l.behind(p.a, "a")
	l.behind(p.b, "b")
	for _, relay := range relays {
		l.relay(relay)
	}
	return p
}

// meets waits until the nodes meet for the first time.
func (p *pair) meets() {
	p.t.Helper()
	p.start()
	p.t.Logf("met after %.1fs", p.arrives("a and b meet", patience).Seconds())
}

// recovers breaks something, and waits until the path is there again.
func (p *pair) recovers(what string, breakIt func() error) {
	p.t.Helper()
	if err := breakIt(); err != nil {
		p.t.Fatalf("%s: %v", what, err)
	}
	p.t.Logf("%s: recovered after %.1fs", what, p.arrives(what, recovery).Seconds())
}

// arrives waits until some packets get through, and both ends say that they are
// on the wanted path.
func (p *pair) arrives(what string, within time.Duration) time.Duration {
	p.t.Helper()
	echo := p.echoTo("a", "b")
	count := echo.count() + steady - 1
	return p.eventually(what, within, func() error {
		return errors.Join(echo.past(count), p.agree("a", "b", p.want))
	})
}

func TestMappingForgotten(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		kind natlab.Kind
	}{{"fgp", natlab.PortRestricted}, {"fgc", natlab.FullCone}} {
		if testing.Short() && test.kind == natlab.FullCone {
			continue // much the same
		}
		t.Run(test.kind.String(), func(t *testing.T) {
			p := newPair(t, test.name, test.kind)
			p.meets()
			p.recovers("a's router forgot its mappings", p.a.ForgetMappings)
			p.recovers("b's router forgot its mappings", p.b.ForgetMappings)
			p.recovers("both routers forgot their mappings", func() error {
				return errors.Join(p.a.ForgetMappings(), p.b.ForgetMappings())
			})
		})
	}
}

func TestAddressChanged(t *testing.T) {
	p := newPair(t, "adr", natlab.PortRestricted)
	p.meets()
	p.recovers("a's address changed", p.a.ChangeAddress)
	p.recovers("b's address changed", p.b.ChangeAddress)
}

func TestDaemonRestarted(t *testing.T) {
	p := newPair(t, "rst", natlab.PortRestricted)
	p.meets()
	for _, name := range []string{"a", "b"} {
		p.recovers("the daemon of "+name+" was restarted", func() error {
			n := p.nodes[name]
			return errors.Join(n.Stop(t.Context()), n.Start(t.Context()))
		})
		p.recovers("the daemon of "+name+" was killed", func() error {
			n := p.nodes[name]
			return errors.Join(n.Kill(), n.Start(t.Context()))
		})
	}
}

// TestRelayKilled takes away each of two relays in turn.
func TestRelayKilled(t *testing.T) {
	p := newPair(t, "rel", natlab.Symmetric, "r1", "r2")
	p.meets()
	for _, name := range []string{"r1", "r2"} {
		relay := p.nodes[name]
		p.recovers(name+" was killed", relay.Kill)
		p.recovers(name+" is back", func() error { return relay.Start(t.Context()) })
	}
}

// TestSTUNServers has a server that behaves badly while the nodes meet, and
// then both while what they said has to be learned anew.
func TestSTUNServers(t *testing.T) {
	t.Parallel()
	elsewhere := func(seen netip.AddrPort) netip.AddrPort {
		addr := netip.MustParseAddr("203.0.113.250")
		if seen.Addr().Is6() {
			addr = netip.MustParseAddr("2001:db8::bad")
		}
		return netip.AddrPortFrom(addr, seen.Port()+1)
	}
	for _, test := range []struct {
		name   string
		what   string
		manner manner
		all    bool // nodes can do with no other server
	}{
		{name: "lie", what: "lying", manner: manner{lie: elsewhere}},
		{name: "lat", what: "late", manner: manner{late: 3 * time.Second}, all: true},
		{name: "rep", what: "replaying", manner: manner{replay: true}, all: true},
		{name: "sil", what: "silent", manner: manner{silent: true}},
	} {
		if testing.Short() && test.all {
			continue // TestLyingServers of the package nat has the same without daemons
		}
		t.Run(test.what, func(t *testing.T) {
			p := newPair(t, test.name, natlab.PortRestricted)
			p.stun[0].behave(test.manner)
			p.meets()
			if test.all {
				p.stun[1].behave(test.manner)
			}
			p.recovers("mappings forgotten and addresses changed", func() error {
				return errors.Join(p.a.ChangeAddress(), p.b.ForgetMappings())
			})
			if p.stun[0].questions() == 0 {
				t.Error("nobody asked the server")
			}
		})
	}
}
