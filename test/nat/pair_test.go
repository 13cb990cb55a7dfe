//go:build linux

package nat

import (
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/natlab"
)

// TestPair has two nodes behind port restricted NATs meet.
func TestPair(t *testing.T) {
	l := newLab(t, "pair")
	l.behind(l.router("ra", nil, natlab.Config{IPv4: natlab.PortRestricted}), "a")
	l.behind(l.router("rb", nil, natlab.Config{IPv4: natlab.PortRestricted}), "b")
	l.start()
	first := l.eventually("first packet", patience, func() error { return l.echoTo("a", "b").past(0) })
	path := l.eventually("path", patience, func() error { return l.agree("a", "b", shim.ConnectionHolePunched) })
	t.Logf("first packet after %v, path after %v\n%s", first, path, l.describe())
}
