//go:build linux

package nat

import (
	"testing"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/natlab"
)

const (
	// idle is for how long nothing is sent through the tunnel, and forgotten after
	// how much less than that a router forgets.
	idle      = 50 * time.Second
	forgotten = 20 * time.Second
	// atOnce is too short for a new search: a path that is silent is given up after 12 s.
	atOnce = 8 * time.Second
)

// TestIdlePath has nothing sent for longer than routers remember, and then one
// end begin. Everything is as a daemon has it by default.
func TestIdlePath(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, what string
		config     natlab.Config
		want       shim.ConnectionType
	}{
		{"idn", "a translator at each end", natlab.Config{IPv4: natlab.PortRestricted}, shim.ConnectionHolePunched},
		{"idf", "a firewall for IPv6 at each end", natlab.Config{IPv4: natlab.Symmetric, IPv6: natlab.Firewall}, shim.ConnectionDirect},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, test.name)
			test.config.Timeout = forgotten
			for _, name := range []string{"a", "b"} {
				l.behind(l.router("r"+name, nil, test.config), name)
				nat := l.config.NAT[name]
				nat.RefreshSeconds = 0
				l.config.NAT[name] = nat
			}
			l.start()
			l.eventually("they meet", patience, func() error { return l.agree("a", "b", test.want) })
			echo := l.nodes["a"].echo
			l.eventually("answers", patience, func() error { return l.echoTo("a", "b").past(0) })
			echo.silent.Store(true)
			<-time.After(idle)
			count := l.echoTo("a", "b").count()
			echo.silent.Store(false)
			took := l.eventually("an answer after the pause", atOnce, func() error { return l.echoTo("a", "b").past(count) })
			t.Logf("answered %.2fs after a pause of %v", took.Seconds(), idle)
		})
	}
}
