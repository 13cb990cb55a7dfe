//go:build linux

package nat

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/zlayer/zlayer-cni/pkg/shim"
	"github.com/zlayer/zlayer-cni/test/natlab"
)

// site is a node of the matrix, and what is between it and the internet.
type site struct {
	name string
	// kind is what the other nodes' ways depend on.
	kind kind
	// add builds it; sites of one group are built after each other.
	add func(l *lab, name string)
	// group is whom it shares its portions with.
	group group
}

// group is a part of the sites. Nodes that share a router are of one group.
type group int

const (
	everywhere group = iota // in every portion
	groups           = 4    // the others are of 1 to this
)

// kind is how a node is reached.
type kind struct {
	// filter is who comes in to a mapping by IPv4, easy to hard, and symmetric
	// whether there is another mapping for each destination.
	filter    filter
	symmetric bool
	// translated tells whether its IPv4 address is not what others see.
	translated bool
	// ipv6 is a public address of that family, behind nothing or a firewall, and
	// noIPv4 that there is no other.
	ipv6, noIPv4 bool
	// noUDP is TCP alone.
	noUDP bool
	// lan is a network whose members reach each other, with the path that they do it by.
	lan  string
	path shim.ConnectionType
}

type filter int

const (
	everybody filter = iota
	byAddress
	byPort
)

// sites are the matrix.
func sites() []site {
	one := func(config natlab.Config) func(*lab, string) {
		return func(l *lab, name string) { l.behind(l.router(name+"-r", nil, config), name) }
	}
	var home, carrier, tight *natlab.Router
	return []site{
		{name: "symmetric", group: 1, kind: kind{filter: byPort, symmetric: true, translated: true}, add: one(natlab.Config{IPv4: natlab.Symmetric})},
		{name: "symmetric-2", group: 2, kind: kind{filter: byPort, symmetric: true, translated: true}, add: one(natlab.Config{IPv4: natlab.Symmetric})},
		{name: "port", group: 1, kind: kind{filter: byPort, translated: true}, add: one(natlab.Config{IPv4: natlab.PortRestricted})},
		{name: "port-2", group: 2, kind: kind{filter: byPort, translated: true}, add: one(natlab.Config{IPv4: natlab.PortRestricted})},
		{name: "address", group: 3, kind: kind{filter: byAddress, translated: true}, add: one(natlab.Config{IPv4: natlab.AddressRestricted})},
		{name: "full-cone", group: 3, kind: kind{translated: true}, add: one(natlab.Config{IPv4: natlab.FullCone})},
		{name: "firewall", group: 4, kind: kind{filter: byPort}, add: one(natlab.Config{IPv4: natlab.Firewall})},
		{name: "home", group: 1, kind: kind{filter: byPort, translated: true, lan: "home", path: shim.ConnectionDirect}, add: func(l *lab, name string) {
			home = l.router(name+"-r", nil, natlab.Config{IPv4: natlab.PortRestricted})
			l.behind(home, name)
		}},
		{name: "home-2", group: 1, kind: kind{filter: byPort, translated: true, lan: "home", path: shim.ConnectionDirect}, add: func(l *lab, name string) { l.behind(home, name) }},
		{name: "carrier", group: 2, kind: kind{filter: byPort, translated: true, lan: "carrier", path: shim.ConnectionHolePunched}, add: func(l *lab, name string) {
			carrier = l.router("cgn", nil, natlab.Config{IPv4: natlab.PortRestricted, Hairpin: true})
			l.behind(l.router(name+"-r", carrier, natlab.Config{IPv4: natlab.PortRestricted}), name)
		}},
		{name: "carrier-2", group: 2, kind: kind{filter: byPort, translated: true, lan: "carrier", path: shim.ConnectionHolePunched}, add: func(l *lab, name string) {
			l.behind(l.router(name+"-r", carrier, natlab.Config{IPv4: natlab.PortRestricted}), name)
		}},
		{name: "tight", group: 3, kind: kind{filter: byPort, translated: true, lan: "tight", path: shim.ConnectionRelayed}, add: func(l *lab, name string) {
			tight = l.router("tight-cgn", nil, natlab.Config{IPv4: natlab.PortRestricted})
			l.behind(l.router(name+"-r", tight, natlab.Config{IPv4: natlab.FullCone}), name)
		}},
		{name: "tight-2", group: 3, kind: kind{filter: byPort, translated: true, lan: "tight", path: shim.ConnectionRelayed}, add: func(l *lab, name string) {
			l.behind(l.router(name+"-r", tight, natlab.Config{IPv4: natlab.FullCone}), name)
		}},
		{name: "wall6", group: 1, kind: kind{filter: byPort, symmetric: true, translated: true, ipv6: true}, add: one(natlab.Config{IPv4: natlab.Symmetric, IPv6: natlab.Firewall})},
		{name: "six", group: 2, kind: kind{ipv6: true, noIPv4: true}, add: one(natlab.Config{IPv6: natlab.Firewall})},
		{name: "ipv6", group: 3, kind: kind{filter: byPort, translated: true, ipv6: true}, add: one(natlab.Config{IPv4: natlab.PortRestricted, IPv6: natlab.Routed})},
		{name: "ipv6-2", group: 4, kind: kind{filter: byPort, symmetric: true, translated: true, ipv6: true}, add: one(natlab.Config{IPv4: natlab.Symmetric, IPv6: natlab.Routed})},
		{name: "no-udp", group: 4, kind: kind{noUDP: true}, add: one(natlab.Config{IPv4: natlab.PortRestricted, NoUDP: true})},
		{name: "public", group: 4, kind: kind{ipv6: true}, add: func(l *lab, name string) { l.behind(nil, name) }},
		{name: "relay", group: everywhere, kind: kind{ipv6: true}, add: func(l *lab, name string) { l.relay(name) }},
	}
}

// apart is the path of two nodes that have no family in common.
const apart shim.ConnectionType = ""

// meet says by which path two nodes have to end up.
func meet(a, b kind) shim.ConnectionType {
	blocked := func(a, b kind) bool { return a.symmetric && (b.symmetric || b.filter == byPort) }
	switch {
	case a.noIPv4 && !b.ipv6, b.noIPv4 && !a.ipv6:
		return apart
	case a.noUDP || b.noUDP:
		return shim.ConnectionRelayed
	case a.lan != "" && a.lan == b.lan:
		return a.path
	case a.ipv6 && b.ipv6, !a.translated && !b.translated:
		return shim.ConnectionDirect
	case blocked(a, b) || blocked(b, a):
		return shim.ConnectionRelayed
	}
	return shim.ConnectionHolePunched
}

// cell is what became of a pair of nodes.
type cell struct {
	a, b   site
	want   shim.ConnectionType
	first  time.Duration // until the first packet through the tunnel
	direct time.Duration // until the wanted path
	heard  int           // answers by then
	fault  error
}

// portions are the sites by the labs that they meet in: one, or for a slow
// machine one for each two groups.
func portions(short bool) [][]site {
	all := sites()
	if !short {
		return [][]site{all}
	}
	var some [][]site
	for a := group(1); a <= groups; a++ {
		for b := a + 1; b <= groups; b++ {
			some = append(some, slices.DeleteFunc(slices.Clone(all), func(s site) bool {
				return s.group != everywhere && s.group != a && s.group != b
			}))
		}
	}
	return some
}

// TestPortionsHaveEveryPair has the portions be the matrix.
func TestPortionsHaveEveryPair(t *testing.T) {
	met := map[[2]string]bool{}
	for _, portion := range portions(true) {
		for i, a := range portion {
			for _, b := range portion[i+1:] {
				met[[2]string{a.name, b.name}] = true
			}
		}
	}
	all := sites()
	for i, a := range all {
		for _, b := range all[i+1:] {
			if !met[[2]string{a.name, b.name}] {
				t.Errorf("%s and %s are in no portion together", a.name, b.name)
			}
			if a.kind.lan != "" && a.kind.lan == b.kind.lan && a.group != b.group {
				t.Errorf("%s and %s share a router, but are of groups %d and %d", a.name, b.name, a.group, b.group)
			}
		}
	}
}

// TestMatrix has nodes behind every kind of router meet each other, all that one
// lab holds at the same time, and prints how.
func TestMatrix(t *testing.T) {
	for i, portion := range portions(testing.Short()) {
		name := fmt.Sprintf("matrix%d", i+1)
		t.Run(name, func(t *testing.T) { allMeet(t, name, portion) })
	}
}

// allMeet has every pair of the sites meet.
func allMeet(t *testing.T, name string, all []site) {
	t.Helper()
	began := time.Now()
	l := newLab(t, name)
	for _, s := range all {
		s.add(l, s.name)
	}
	l.start()
	var cells []*cell
	for i, a := range all {
		for _, b := range all[i+1:] {
			cells = append(cells, &cell{a: a, b: b, want: meet(a.kind, b.kind), fault: errors.New("not looked at")})
		}
	}
	defer func() { t.Log(table(cells)) }()
	l.eventually("all pairs on their paths", patience, func() error { return l.judge(cells) })
	for _, c := range cells {
		c.heard = l.echoTo(c.a.name, c.b.name).count()
	}
	l.eventually("all pairs still there, and so say the devices", patience, func() error { return l.verify(cells) })
	t.Logf("%d nodes: up after %.1fs, all met after %.1fs", len(all), l.began.Sub(began).Seconds(), time.Since(l.began).Seconds())
}

// verify says which cells are not on their paths now, by what the nodes say, by
// where their devices send to, and by packets.
func (l *lab) verify(cells []*cell) error {
	devices := l.endpoints()
	var errs []error
	for _, c := range cells {
		echo := l.echoTo(c.a.name, c.b.name)
		errs = append(errs, l.agree(c.a.name, c.b.name, c.want))
		if c.want == apart {
			if echo.count() > 0 {
				errs = append(errs, fmt.Errorf("%s reaches %s, with no family in common", c.a.name, c.b.name))
			}
			continue
		}
		errs = append(errs, echo.past(c.heard))
		if c.want == shim.ConnectionDirect {
			errs = append(errs, l.atHome(devices, c.a.name, c.b.name), l.atHome(devices, c.b.name, c.a.name))
		}
	}
	return errors.Join(errs...)
}

// judge looks at the cells that have not arrived yet, and says which.
func (l *lab) judge(cells []*cell) error {
	var missing []string
	for _, c := range cells {
		if c.fault == nil {
			continue
		}
		echo := l.echoTo(c.a.name, c.b.name)
		if first := echo.firstAnswer(); !first.IsZero() {
			c.first = first.Sub(l.began)
		}
		if c.want == apart {
			c.fault = nil // verify waits for all the others
			continue
		}
		if c.fault = l.agree(c.a.name, c.b.name, c.want); c.fault != nil {
			c.direct = 0
		} else {
			if c.direct == 0 {
				c.direct, c.heard = time.Since(l.began), echo.count()
			}
			c.fault = echo.past(c.heard) // on that path
		}
		if c.fault != nil {
			missing = append(missing, c.fault.Error())
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%d of %d are not:\n%s", len(missing), len(cells), strings.Join(missing, "\n"))
	}
	return nil
}

// table prints the cells.
func table(cells []*cell) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "\npair\t\tpath\tfirst packet\ton that path\n")
	for _, c := range cells {
		verdict := seconds(c.direct)
		if c.fault != nil {
			verdict = "never"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", c.a.name, c.b.name, cmp.Or(string(c.want), "none"), seconds(c.first), verdict)
	}
	_ = w.Flush()
	return text.String()
}

func seconds(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}
